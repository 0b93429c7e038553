"""One track of a clip on its way into the toon: copied packet by packet, or, for sound, encoded again."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeAlias, cast

from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec import Codec
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

__all__ = ["AnyPacket", "CopiedTrack", "EncodedSound", "Span", "Track"]

AnyPacket: TypeAlias = "Packet[Stream]"

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
_BITS_A_CHANNEL = 96_000  # a second
_OPUS_RATE = 48_000  # its own clock
_GAP_SECONDS = 0.1  # a longer silence between packets is a gap in the clip, and kept


@dataclass(frozen=True, kw_only=True)
class Span:
    """When something is seen or heard, in seconds of the toon."""

    begin: Fraction
    length: Fraction

    @property
    def end(self) -> Fraction:
        """The first moment after it."""
        return self.begin + self.length


class Track(Protocol):
    """Packets of the clip in, packets for the toon out."""

    def take(self, packet: AnyPacket, span: Span) -> Iterator[AnyPacket]:
        """Carry one packet over, to be heard or seen in `span`."""
        ...

    def finish(self) -> Iterator[AnyPacket]:
        """Give what was held back."""
        ...


class CopiedTrack:
    """Copies packets byte by byte; only their times change.

    Containers with coarse times (Matroska: 1 ms) round those of sound packets. Where packets are of known
    length, the rounding is undone: one that begins within a unit of the end of the one before begins there.
    """

    def __init__(self, source: Stream, output: Stream) -> None:
        self._output = output
        self._unit = self._tick = source.time_base or Fraction(1, 1000)
        self._samples = 0
        self._expected: Fraction | None = None
        if isinstance(source, AudioStream) and source.codec_context.frame_size > 1:
            sample = Fraction(1, source.codec_context.sample_rate)
            if sample != self._unit:
                self._samples = source.codec_context.frame_size
                self._unit = sample

    def take(self, packet: AnyPacket, span: Span) -> Iterator[AnyPacket]:
        """Give the packet itself, with its new times."""
        begin, length = span.begin, span.length
        if self._samples:
            if self._expected is not None and abs(begin - self._expected) <= self._tick:
                begin = self._expected
            length = self._samples * self._unit
            self._expected = begin + length
        stamp = packet.pts if packet.pts is not None else packet.dts or 0
        early = (stamp - (packet.dts if packet.dts is not None else stamp)) * packet.time_base
        packet.time_base = self._unit
        packet.pts = round(begin / self._unit)
        packet.dts = packet.pts - round(early / self._unit)
        packet.duration = round(length / self._unit)
        packet.stream = self._output
        yield packet

    def finish(self) -> Iterator[AnyPacket]:
        """Nothing is held back."""
        return iter(())


def _nearest_rate(encoder: str, wanted: int) -> int:
    """The lowest rate of an encoder that loses nothing of the wanted one, or its highest."""
    rates = Codec(encoder, "w").audio_rates
    return min((rate for rate in rates if rate >= wanted), default=max(rates)) if rates else wanted


class EncodedSound:
    """Encodes sound again, for a container that cannot hold it as it is.

    Channels and rate stay where the encoder has them; packets that cannot be decoded leave a gap.
    """

    def __init__(self, source: AudioStream, container: OutputContainer, encoder: str) -> None:
        self._decoder = source.codec_context
        layout = _LAYOUTS.get(self._decoder.channels, "stereo")
        rate = _OPUS_RATE if encoder == "libopus" else _nearest_rate(encoder, self._decoder.sample_rate)
        self.output = cast(AudioStream, container.add_stream(encoder, rate=rate, layout=layout))
        self._encoder = self.output.codec_context
        self._encoder.bit_rate = _BITS_A_CHANNEL * self._encoder.channels
        self._resampler: AudioResampler | None = None
        self._clock: int | None = None  # pts of the next sample to encode, in samples

    def take(self, packet: AnyPacket, span: Span) -> Iterator[AnyPacket]:
        """Give what the encoder makes of it, which may be nothing yet."""
        now = round(span.begin * self._encoder.sample_rate)
        if self._clock is None or now - self._clock > _GAP_SECONDS * self._encoder.sample_rate:
            self._clock = now
        with suppress(FFmpegError):
            for frame in self._decoder.decode(packet):
                yield from self._encode(frame)

    def finish(self) -> Iterator[AnyPacket]:
        """Give the rest."""
        if self._clock is None:
            return
        with suppress(FFmpegError):
            for frame in self._decoder.decode(None):
                yield from self._encode(frame)
        yield from self._encode(None)
        yield from self._sealed(self._encoder.encode(None))

    def _encode(self, frame: AudioFrame | None) -> Iterator[AnyPacket]:
        if self._resampler is None:  # the encoder knows its frame size only once the file is begun
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
            yield from self._sealed(self._encoder.encode(part))

    def _sealed(self, packets: Iterable[AnyPacket]) -> Iterator[AnyPacket]:
        for packet in packets:
            packet.stream = self.output
            yield packet
