"""The sound of a live stream on its way out: copied where the container takes it, else encoded as AAC."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from typing import cast

from av.audio.codeccontext import AudioCodecContext
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec.context import CodecContext
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from toonstream.stream.sources.sound import Sound, SoundFormat

__all__ = ["SoundTrack"]

_ENCODERS = {"aac": "aac", "opus": "libopus"}
_OPUS_RATE = 48_000  # its own clock
_LAYOUTS = {1: "mono", 2: "stereo"}
_BITS_A_CHANNEL = 80_000  # a second
_GAP = Fraction(1, 10)  # seconds; a longer silence between packets is meant, and kept
_ROUNDING = Fraction(2, 1000)  # seconds; containers round the times of packets to 1 ms


class SoundTrack:
    """The one sound track of an output.

    Sound that comes in another format than the output was begun with is encoded to fit where the track is
    AAC or Opus, and left out where it is not.

    Args:
        container: what it is written to; its header is not written yet.
        format_: of the sound that is expected.
        copied: codecs that the container takes as they are.
        encoder: for all others.

    Attributes:
        copies: whether packets pass untouched.
        lost: packets that were left out.
    """

    def __init__(
        self, container: OutputContainer, format_: SoundFormat, *, copied: frozenset[str], encoder: str
    ) -> None:
        self.lost = 0
        # AAC that says in every packet what it is does not fit where that is said once.
        self.copies = format_.codec in copied and (format_.codec != "aac" or bool(format_.extradata))
        self._format = format_
        self._encoding: _Encoding | None = None
        self._latest: Fraction | None = None  # when the last packet began
        self._channels = 1 if format_.channels == 1 else 2
        self._rate = _OPUS_RATE if encoder == "libopus" else format_.rate
        self._again = _ENCODERS.get(format_.codec)  # what fits a track that began as a copy
        if self.copies:
            self._output = container.add_stream_from_template(format_.template)
            if format_.extradata:
                self._output.codec_context.extradata = format_.extradata
            self._rate = format_.rate
        else:
            self._output = cast(
                AudioStream, container.add_stream(encoder, rate=self._rate, layout=_LAYOUTS[self._channels])
            )
            self._output.codec_context.bit_rate = _BITS_A_CHANNEL * self._channels

    def take(self, sound: Sound, begin: Fraction) -> "list[Packet[AudioStream]]":
        """Give what to write of one packet, which may be nothing yet.

        Args:
            sound: the packet.
            begin: when it is heard, in seconds of the output.
        """
        if begin < 0:
            self.lost += 1
            return []
        if self.copies and sound.format.identity == self._format.identity:
            self._encoding = None
            return self._copied(sound, begin)
        if self._encoding is None or self._encoding.format.identity != sound.format.identity:
            encoder = self._encoder()
            if encoder is None:
                self.lost += 1
                return []
            self._encoding = _Encoding(sound.format, encoder)
        return self._written(self._encoding.take(sound, begin))

    def finish(self) -> "list[Packet[AudioStream]]":
        """Give what the encoder holds back."""
        return [] if self._encoding is None else self._written(self._encoding.finish())

    def _encoder(self) -> AudioCodecContext | None:
        """What makes packets that fit the track; None where nothing here does."""
        if not self.copies:
            return self._output.codec_context
        return None if self._again is None else _free_encoder(self._again, self._rate, self._channels)

    def _copied(self, sound: Sound, begin: Fraction) -> "list[Packet[AudioStream]]":
        if sound.format.frame_size and self._latest is not None:
            usual = self._latest + Fraction(sound.format.frame_size, sound.format.rate)
            begin = usual if abs(begin - usual) <= _ROUNDING else begin
        unit = Fraction(1, sound.format.rate)
        packet = cast("Packet[AudioStream]", Packet(sound.data))
        packet.time_base = unit
        packet.pts = packet.dts = round(begin / unit)
        packet.duration = round(sound.length / unit)
        return self._written([packet])

    def _written(self, packets: "Iterable[Packet[AudioStream]]") -> "list[Packet[AudioStream]]":
        """Address packets to the track; leave out what does not come after the one before."""
        kept = []
        for packet in packets:
            begin = (packet.pts or 0) * packet.time_base
            if self._latest is not None and begin <= self._latest:
                self.lost += 1
                continue
            self._latest = begin
            packet.stream = self._output
            kept.append(packet)
        return kept


class _Encoding:
    """Decodes sound of one format and encodes it again."""

    def __init__(self, format_: SoundFormat, encoder: AudioCodecContext) -> None:
        self.format = format_
        self._decoder = format_.decoder()
        self._encoder = encoder
        self._resampler: AudioResampler | None = None
        self._clock: int | None = None  # the next sample to encode

    def take(self, sound: Sound, begin: Fraction) -> "Iterator[Packet[AudioStream]]":
        now = round(begin * self._encoder.sample_rate)
        if self._clock is None or now - self._clock > _GAP * self._encoder.sample_rate:
            self._clock = now
        elif self._clock - now > _GAP * self._encoder.sample_rate:
            return  # time stands back: what was heard is not heard again
        with suppress(FFmpegError):
            for frame in self._decoder.decode(Packet(sound.data)):
                yield from self._encode(frame)

    def finish(self) -> "Iterator[Packet[AudioStream]]":
        if self._clock is None:
            return
        with suppress(FFmpegError):
            for frame in self._decoder.decode(None):
                yield from self._encode(frame)
        yield from self._encode(None)
        yield from self._encoder.encode(None)

    def _encode(self, frame: AudioFrame | None) -> "Iterator[Packet[AudioStream]]":
        if self._resampler is None:  # the encoder knows its frame size only once the output is begun
            self._resampler = AudioResampler(
                format=self._encoder.format,
                layout=self._encoder.layout,
                rate=self._encoder.sample_rate,
                frame_size=self._encoder.frame_size,
            )
        for part in self._resampler.resample(frame):
            clock = self._clock or 0
            part.pts, part.time_base = clock, Fraction(1, self._encoder.sample_rate)
            self._clock = clock + part.samples
            yield from self._encoder.encode(part)


def _free_encoder(name: str, rate: int, channels: int) -> AudioCodecContext:
    encoder = cast(AudioCodecContext, CodecContext.create(name, "w"))
    encoder.sample_rate = rate
    encoder.layout = _LAYOUTS[channels]
    encoder.format = "fltp" if name == "aac" else "flt"
    encoder.bit_rate = _BITS_A_CHANNEL * channels
    encoder.open()
    return encoder
