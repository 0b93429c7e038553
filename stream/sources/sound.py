"""The sound of a live stream as it passes through: packets, each with its time."""

import io
from dataclasses import dataclass
from fractions import Fraction

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.codec.context import CodecContext

__all__ = ["Sound", "SoundFormat"]

_LOW_COMPLEXITY = 2  # AAC's usual kind
# AAC numbers its rates.
_RATES = (
    96_000,
    88_200,
    64_000,
    48_000,
    44_100,
    32_000,
    24_000,
    22_050,
    16_000,
    12_000,
    11_025,
    8_000,
    7_350,
)
_ADTS = 7, 9  # bytes of its header without and with a checksum


@dataclass(frozen=True, kw_only=True, eq=False)
class SoundFormat:
    """What sound packets are in. Outlives the source it was read from.

    Attributes:
        codec: its name, such as `aac`.
        rate: samples a second.
        channels: how many.
        extradata: what decoders need to know beforehand, or None.
        frame_size: samples in a packet, or 0 where it varies.
        template: a stream of this format, for muxers to copy.
    """

    codec: str
    rate: int
    channels: int
    extradata: bytes | None
    frame_size: int
    template: AudioStream

    @classmethod
    def of(cls, stream: AudioStream) -> "SoundFormat":
        """Read the format off a source's stream."""
        context = stream.codec_context
        holder = av.open(io.BytesIO(), "w", format="nut")  # never written: it only keeps the template
        return cls(
            codec=context.codec.canonical_name,
            rate=context.sample_rate,
            channels=context.channels,
            extradata=context.extradata or _described(context),
            frame_size=max(0, context.frame_size),
            template=holder.add_stream_from_template(stream),
        )

    @property
    def identity(self) -> tuple[str, int, int, bytes | None]:
        """What two formats have in common whose packets may follow one another."""
        return self.codec, self.rate, self.channels, self.extradata

    def bare(self, data: bytes) -> bytes:
        """A packet without the header that MPEG-TS puts before each of AAC; `extradata` says the same."""
        if self.codec != "aac" or not self.extradata or data[:1] != b"\xff" or data[1] & 0xF6 != 0xF0:
            return data
        return data[_ADTS[0] if data[1] & 1 else _ADTS[1] :]

    def decoder(self) -> AudioCodecContext:
        """A fresh decoder."""
        source = self.template.codec_context
        decoder = CodecContext.create(source.codec.name, "r")
        assert isinstance(decoder, AudioCodecContext)
        decoder.sample_rate = self.rate
        decoder.layout = source.layout
        if self.extradata:
            decoder.extradata = self.extradata
        return decoder


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """One packet of sound.

    Attributes:
        data: as the source sent it, but for `SoundFormat.bare`.
        begin: when it is heard, in seconds of the stream's time.
        length: how long, in seconds, or 0 where it is not known.
        format: what it is in.
    """

    data: bytes
    begin: Fraction
    length: Fraction
    format: SoundFormat


def _described(context: AudioCodecContext) -> bytes | None:
    """What decoders of AAC need to know, where every packet says it again; None where it is not plain."""
    plain = context.codec.canonical_name == "aac" and context.profile == "LC" and context.channels <= 2
    if not plain or context.sample_rate not in _RATES:
        return None
    bits = _LOW_COMPLEXITY << 11 | _RATES.index(context.sample_rate) << 7 | context.channels << 3
    return bits.to_bytes(2, "big")
