"""The sound of a live stream as it passes through: packets, untouched, each with its time."""

import io
from dataclasses import dataclass
from fractions import Fraction

import av
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.codec.context import CodecContext

__all__ = ["Sound", "SoundFormat"]


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
        holder = av.open(io.BytesIO(), "w", format="matroska")  # never written: it only keeps the template
        return cls(
            codec=context.codec.canonical_name,
            rate=context.sample_rate,
            channels=context.channels,
            extradata=context.extradata,
            frame_size=max(0, context.frame_size),
            template=holder.add_stream_from_template(stream),
        )

    @property
    def identity(self) -> tuple[str, int, int, bytes | None]:
        """What two formats have in common whose packets may follow one another."""
        return self.codec, self.rate, self.channels, self.extradata

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
        data: as the source sent it.
        begin: when it is heard, in seconds of the stream's time.
        length: how long, in seconds, or 0 where it is not known.
        format: what it is in.
    """

    data: bytes
    begin: Fraction
    length: Fraction
    format: SoundFormat
