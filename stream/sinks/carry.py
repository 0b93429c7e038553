"""The sound, subtitles, chapters, attachments and cover of a clip, carried over into its toon."""

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from av.audio.stream import AudioStream
from av.codec.context import CodecContext
from av.container import OutputContainer
from av.error import FFmpegError
from av.stream import AttachmentStream, Discard, Disposition, Stream

from toonstream.stream.sinks.text import ConvertedText, is_text
from toonstream.stream.sinks.track import AnyPacket, CopiedTrack, EncodedSound, Span, Track
from toonstream.stream.sources.clip import open_clip

if TYPE_CHECKING:
    from av.container.core import Chapter

__all__ = ["COPIED", "SOUND_ENCODER", "CarriedTracks"]

# What is copied, by suffix and kind: what the container can hold and players play. Other sound and other text
# is encoded again; subtitles that are pictures are left out, with a note.
_PCM = frozenset(f"pcm_{kind}" for kind in ("s16le", "s16be", "s24le", "s24be", "s32le", "f32le", "u8", "s8"))
_COMMON = frozenset(("aac", "mp3", "ac3", "eac3", "alac"))
COPIED: dict[str, dict[str, frozenset[str]]] = {
    ".mp4": {"audio": _COMMON | {"opus", "flac"}, "subtitle": frozenset(["mov_text"])},
    ".mov": {"audio": _COMMON | _PCM, "subtitle": frozenset(["mov_text"])},
    ".mkv": {
        "audio": _COMMON | _PCM | {"opus", "flac", "vorbis", "dts", "truehd", "mp2", "wavpack", "tta"},
        "subtitle": frozenset(
            ("subrip", "ass", "webvtt", "hdmv_pgs_subtitle", "dvd_subtitle", "dvb_subtitle")
        ),
    },
    ".webm": {"audio": frozenset(("opus", "vorbis")), "subtitle": frozenset(["webvtt"])},
}
SOUND_ENCODER = {".webm": "libopus"}
_TEXT_ENCODER = {".mp4": "mov_text", ".mov": "mov_text", ".mkv": "subrip", ".webm": "webvtt"}
_STYLED = "ass"  # text that says where it stands and how it looks, which no other kind does
_HOLDS_ATTACHMENTS = frozenset([".mkv"])
# How Matroska attaches the picture that stands for a whole clip, by its codec: media type and name.
_COVERS = {"mjpeg": ("image/jpeg", "cover.jpg"), "png": ("image/png", "cover.png")}
# Of a clip's tags, those that say how its file was made and not what it shows.
_OWN_TAGS = ("major_brand", "minor_version", "compatible_brands", "encoder", "duration")
_TAGS = ("language", "title", "handler_name")
# What mov_text puts between two subtitles; the muxer adds it anew.
_NO_TEXT = b"\0\0"
# How far before the start to look for a subtitle that is still shown there. Seconds.
_LOOK_BACK = 10
_CHAPTER_UNIT = Fraction(1, 1000)  # seconds


class CarriedTracks:
    """Reads a clip a second time for all but its pictures, in step with them, one packet ahead.

    All times move by the same amount as those of the pictures, so everything stays in sync.

    Attributes:
        notes: one line for each track that could not be copied as it is.
    """

    def __init__(
        self,
        path: Path,
        output: OutputContainer,
        *,
        suffix: str,
        shift: Fraction,
        cut: bool,
        end: Fraction | None = None,
    ) -> None:
        """Declare the tracks in `output`, before its header is written.

        Args:
            path: of the clip.
            output: of the toon.
            suffix: of the toon, which decides what it can hold.
            shift: the time of the clip that is 0 in the toon, in seconds.
            cut: whether what lies before `shift` is left out on purpose, and not a codec's run-in.
            end: where the toon ends by choice, in seconds of the toon; None where the clip does.

        Raises:
            InputError: the clip cannot be opened.
        """
        self.notes: list[str] = []
        self._output = output
        self._suffix = suffix
        self._shift = shift
        self._cut = cut
        self._input = open_clip(path)
        self._tracks: dict[int, Track] = {}
        for stream in self._input.streams:
            track = self._carry(stream)
            if track is None:
                stream.discard = Discard.all
            else:
                self._tracks[stream.index] = track
        self._carry_chapters(end)
        output.metadata.update(
            {tag: text for tag, text in self._input.metadata.items() if tag.lower() not in _OWN_TAGS}
        )
        self._packets = self._spanned_packets()
        self._next: tuple[AnyPacket, Span] | None = None
        if self._tracks:
            if self._cut:
                with suppress(FFmpegError):  # a clip that cannot be searched is read from its beginning
                    self._input.seek(int((shift - _LOOK_BACK) * 1_000_000))
            self._next = next(self._packets, None)

    def advance(self, time: Fraction | None, *, end: Fraction | None) -> None:
        """Hand the muxer everything that begins before `time` (None: all there is), nothing from `end` on.

        Both in seconds of the toon.
        """
        while self._next is not None and (time is None or self._next[1].begin < time):
            packet, span = self._next
            if end is None or span.begin < end:
                self._output.mux(list(self._tracks[packet.stream_index].take(packet, span)))
            self._next = next(self._packets, None)

    def finish(self) -> None:
        """Hand the muxer what encoders hold back."""
        for track in self._tracks.values():
            self._output.mux(list(track.finish()))

    def close(self) -> None:
        """Let go of the clip."""
        self._input.close()

    def _spanned_packets(self) -> Iterator[tuple[AnyPacket, Span]]:
        """Give the packets to carry, up to the end of the clip or to where it is damaged."""
        with suppress(FFmpegError):
            for packet in self._input.demux(*(self._input.streams[index] for index in self._tracks)):
                span = self._span(packet)
                if span is not None:
                    yield packet, span

    def _span(self, packet: AnyPacket) -> Span | None:
        """When a packet is heard or seen in the toon; None if it is not."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or packet.is_corrupt or stamp is None:
            return None
        if (
            packet.size == len(_NO_TEXT)
            and _codec_name(packet.stream) == "mov_text"
            and bytes(packet) == _NO_TEXT
        ):
            return None
        begin = stamp * packet.time_base - self._shift
        span = Span(begin=begin, length=(packet.duration or 0) * packet.time_base)
        if begin >= 0:
            return span
        if packet.stream.type == "subtitle":
            return Span(begin=Fraction(0), length=span.end) if span.end > 0 else None
        # A codec's run-in lies before 0: mp4 can say so, and Opus says it itself. Others would make Matroska
        # move all times. And what was cut is gone.
        known = self._suffix in (".mp4", ".mov") or _codec_name(packet.stream) == "opus"
        return span if known and not self._cut else None

    def _carry(self, stream: Stream) -> Track | None:
        if isinstance(stream, AttachmentStream):
            self._carry_attachment(stream)
            return None
        if stream.disposition & Disposition.attached_pic:
            self._carry_cover(stream)
            return None
        if stream.type not in ("audio", "subtitle"):
            return None
        number = stream.index
        codec = _codec_name(stream)
        if codec is None:
            self.notes.append(f"{stream.type} track {number} is of an unknown kind and was left out")
            return None
        if codec in COPIED[self._suffix][stream.type]:
            output = self._output.add_stream_from_template(stream)
            track: Track = CopiedTrack(stream, output)
        elif isinstance(stream, AudioStream):
            encoder = SOUND_ENCODER.get(self._suffix, "aac")
            sound = EncodedSound(stream, self._output, encoder)
            output, track = sound.output, sound
            self.notes.append(
                f"audio track {number} ({codec}) was encoded again: {self._suffix} cannot hold it"
            )
        elif is_text(stream):
            text = ConvertedText(stream, self._output, _TEXT_ENCODER[self._suffix])
            output, track = text.output, text
            if codec == _STYLED:
                self.notes.append(
                    f"subtitle track {number} ({codec}) is plain text now: {self._suffix} cannot hold its "
                    "fonts and places, .mkv may"
                )
        else:
            self.notes.append(
                f"subtitle track {number} ({codec}) was left out: {self._suffix} cannot hold it, .mkv may"
            )
            return None
        output.metadata.update({tag: stream.metadata[tag] for tag in _TAGS if tag in stream.metadata})
        output.disposition = stream.disposition
        return track

    def _carry_attachment(self, stream: AttachmentStream) -> None:
        name = stream.name or f"attachment {stream.index}"
        self._attach(name, stream.mimetype or "application/octet-stream", stream.data)

    def _carry_cover(self, stream: Stream) -> None:
        """Take over the picture that stands for the whole clip."""
        kind, name = _COVERS.get(_codec_name(stream) or "", ("", "cover"))
        with suppress(FFmpegError):
            packet = next((packet for packet in self._input.demux(stream) if packet.size), None)
            self._input.seek(0)
            self._attach(name, kind, bytes(packet) if packet else b"")

    def _attach(self, name: str, kind: str, content: bytes) -> None:
        if self._suffix in _HOLDS_ATTACHMENTS and kind and content:
            self._output.add_attachment(name, kind, content)
        else:
            self.notes.append(f"attachment {name} was left out: {self._suffix} cannot hold it here, .mkv can")

    def _carry_chapters(self, end: Fraction | None) -> None:
        """Take over the chapters, moved as all else is; those outside the toon are left out."""
        chapters: list[Chapter] = []
        for chapter in self._input.chapters():
            unit = chapter["time_base"] or Fraction(1)
            begin, stop = (max(chapter[at] * unit - self._shift, Fraction(0)) for at in ("start", "end"))
            if end is not None:
                stop = min(stop, end)
            if begin < stop:
                chapters.append(
                    {
                        "id": len(chapters) + 1,
                        "start": round(begin / _CHAPTER_UNIT),
                        "end": round(stop / _CHAPTER_UNIT),
                        "time_base": _CHAPTER_UNIT,
                        "metadata": chapter["metadata"],
                    }
                )
        if chapters:
            self._output.set_chapters(chapters)


def _codec_name(stream: Stream) -> str | None:
    context: CodecContext | None = (
        stream.codec_context
    )  # None where FFmpeg has no decoder, whatever its stubs say
    return context.codec.canonical_name if context else None
