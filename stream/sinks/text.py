"""Text subtitles on their way into a container of another kind: decoded, and encoded as what it holds."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

from av.codec.codec import Properties
from av.container import OutputContainer
from av.error import FFmpegError
from av.stream import Stream
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

from toonstream.stream.sinks.track import AnyPacket, Span

__all__ = ["ConvertedText", "is_text"]

_UNIT = Fraction(1, 1000)  # seconds; what all containers can state
_FIELDS = 8  # that stand before the text of a decoded line
_LINE = b"0,0,Default,,0,0,0,,"  # these fields, for the encoders, which mind the style at most
_ONE_AT_A_TIME = "mov_text"


@dataclass(frozen=True, kw_only=True)
class _Line:
    text: bytes
    span: Span


class ConvertedText:
    """Encodes text subtitles again, emphasis and line breaks included; places and fonts are lost.

    An mp4 shows one text at a time: lines that overlap are joined for as long as they do.

    Attributes:
        output: the stream they are written to.
    """

    def __init__(self, source: Stream, container: OutputContainer, encoder: str) -> None:
        self._decoder = cast(SubtitleStream, source).codec_context
        self._decoder.open(strict=False)
        self.output = cast(SubtitleStream, container.add_stream(encoder))
        self._encoder = self.output.codec_context
        self._encoder.subtitle_header = self._decoder.subtitle_header
        self._encoder.time_base = self.output.time_base = _UNIT
        self._joins = encoder == _ONE_AT_A_TIME
        self._shown: list[_Line] = []  # lines that are not wholly written yet
        self._written = Fraction(0)  # up to where they are, in seconds

    def take(self, packet: AnyPacket, span: Span) -> Iterator[AnyPacket]:
        """Give what is to be written of one packet, or of those before it."""
        text = self._read(packet)
        if not text:
            return
        line = _Line(text=text, span=span)
        if not self._joins:
            yield self._encoded(line)
            return
        yield from self._until(span.begin)
        self._shown.append(line)

    def finish(self) -> Iterator[AnyPacket]:
        """Give the rest."""
        yield from self._until(None)

    def _read(self, packet: AnyPacket) -> bytes:
        """The text of a packet as the decoder gives it, with ASS's marks; empty where there is none."""
        try:
            decoded = self._decoder.decode2(packet)
        except FFmpegError:
            return b""
        lines = [part.ass.split(b",", _FIELDS)[-1] for part in decoded or () if isinstance(part, AssSubtitle)]
        return b"\\N".join(line for line in lines if line)

    def _until(self, time: Fraction | None) -> Iterator[AnyPacket]:
        """Give what is shown before `time`, None: to the end; each stretch with the lines that share it."""
        while self._shown:
            begin = max(self._written, min(line.span.begin for line in self._shown))
            current = [line for line in self._shown if line.span.begin <= begin]
            end = min(line.span.end for line in current)
            if time is not None:
                end = min(end, time)
            if end > begin:
                span = Span(begin=begin, length=end - begin)
                yield self._encoded(_Line(text=b"\\N".join(line.text for line in current), span=span))
            self._written = max(begin, end)
            self._shown = [line for line in self._shown if line.span.end > self._written]
            if time is not None and self._written >= time:
                return

    def _encoded(self, line: _Line) -> AnyPacket:
        length = round(line.span.length / _UNIT)
        packet = self._encoder.encode_subtitle(SubtitleSet.create(_LINE + line.text, 0, length))
        packet.time_base = _UNIT
        packet.pts = packet.dts = round(line.span.begin / _UNIT)
        packet.duration = length
        packet.stream = self.output
        return packet


def is_text(stream: Stream) -> bool:
    """Whether subtitles are text and not pictures."""
    return bool(Properties(stream.codec_context.codec.properties) & Properties.TEXT_SUB)
