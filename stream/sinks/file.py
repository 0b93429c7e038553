"""A toon in a file: H.264 or VP9, with the source's sound, subtitles, chapters, tags and times."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import av
from av.error import FFmpegError

from toonstream.errors import OutputError
from toonstream.stream.frame import Frame
from toonstream.stream.sinks.carry import CarriedTracks
from toonstream.stream.sinks.place import OutputPlace
from toonstream.stream.sinks.video import VideoTrack
from toonstream.stream.sources.file import FileSource

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = ["FORMATS", "SUFFIXES", "FileFormat", "FileSink"]

_FALLBACK_TIME_BASE = Fraction(1, 90_000)  # exact for all usual rates
_FALLBACK_RATE = Fraction(25)
# How far apart packets of the same time may lie in a clip, in seconds.
_INTERLEAVE = 1
# Pixels this near to square are called square: sizes are rounded to what networks take, and players differ in
# what they make of a pixel 1 % wide.
_NEARLY_SQUARE = Fraction(1, 50)

# Written in fragments, each from a key frame to the next, so that a killed process leaves what can be played,
# and turned into a plain file with one index, in place, when it is closed. (FFmpeg 8.1 states a wrong length
# for fragments that end between key frames, as with frag_duration, and players then drop the last frame.)
# Packets wait for those of the other tracks, subtitles too, which may not come for long: a second at most.
_WRITTEN_SOON = {"flush_packets": "1", "max_interleave_delta": "1000000"}
_FRAGMENTS = {"movflags": "+hybrid_fragmented+delay_moov+frag_keyframe", **_WRITTEN_SOON}
_CLUSTERS = {"cluster_time_limit": "1000", **_WRITTEN_SOON}


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """How to write a kind of file.

    Attributes:
        muxer: FFmpeg's name of the container.
        muxer_options: for it.
        encoder: of the pictures.
        crf: the usual quality.
    """

    muxer: str
    muxer_options: dict[str, str]
    encoder: str
    crf: int


FORMATS = {
    ".mp4": FileFormat(muxer="mp4", muxer_options=_FRAGMENTS, encoder="libx264", crf=18),
    ".mov": FileFormat(muxer="mov", muxer_options=_FRAGMENTS, encoder="libx264", crf=18),
    ".mkv": FileFormat(muxer="matroska", muxer_options=_CLUSTERS, encoder="libx264", crf=18),
    ".webm": FileFormat(muxer="webm", muxer_options=_CLUSTERS, encoder="libvpx-vp9", crf=30),
}
SUFFIXES = tuple(FORMATS)


class FileSink:
    """Writes a toon. Nothing appears under the final name before it is finished.

    Frames go to a hidden file beside the target (see `OutputPlace`). `close` gives it the target's name: with
    all of the sound, or after an interruption with the sound up to the last frame. `abort` never touches the
    target: it keeps what can be played as `clip.partial.mp4`, or removes it where nothing can. As a context
    manager the sink closes itself: whole without an exception, as interrupted on KeyboardInterrupt, aborted
    on any other. A killed process leaves the hidden file, playable but for what the encoder held: a second
    or two.

    Times are the source's exactly, less what was left out at the front; Matroska and WebM round them to 1 ms.
    The shape on the screen is the source's too: where the size has another shape, pixels are not square (WebM
    cannot say so, and pictures are made wider or narrower instead).

    Attributes:
        path: the final name.
        frames: written so far.
        partial: the name under which a run that was not complete kept its result beside the target, or None.
    """

    def __init__(
        self,
        path: Path,
        *,
        source: FileSource | None,
        width: int,
        height: int,
        crf: int | None = None,
        preset: str = "veryfast",
        sample_aspect_ratio: Fraction | None = None,
    ) -> None:
        """Prepare the file.

        Args:
            path: the final name; its suffix, one of `SUFFIXES`, chooses the format.
            source: the clip whose sound, subtitles, chapters, tags and times to take over, or None: silence.
            width: of the frames that will be written, in pixels.
            height: likewise.
            crf: constant quality, lower is better; None: 18 for H.264, 30 for VP9.
            preset: x264's, from ultrafast to veryslow: time against size.
            sample_aspect_ratio: width of a pixel over its height; None: so that the source's shape is kept.

        Raises:
            OutputError: it cannot be written there or in that format.
        """
        suffix = path.suffix.lower()
        if suffix not in FORMATS:
            raise OutputError(f"{path} has no suffix that can be written: end it in {', '.join(SUFFIXES)}")
        self.path = path
        self.frames = 0
        self.partial: Path | None = None
        self._open = True
        self._last_end = Fraction(0)
        info = source.info if source else None
        self._shift = info.begin if info else Fraction(0)
        self._end = info.end - info.begin if info and info.end is not None else None
        self._unit = info.time_base if info else _FALLBACK_TIME_BASE
        self._rate = info.average_rate if info else _FALLBACK_RATE
        self._tracks: CarriedTracks | None = None
        self._place = OutputPlace(path, source=source.path if source else None)
        try:
            chosen = FORMATS[suffix]
            self._container = av.open(
                f"file:{self._place.temporary}",
                "w",
                format=chosen.muxer,
                container_options=chosen.muxer_options,
            )
            options = {"crf": str(chosen.crf if crf is None else crf)}
            if chosen.encoder == "libx264":
                options["preset"] = preset
            else:
                options |= {"b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1"}
            self._video = VideoTrack(
                self._container,
                encoder=chosen.encoder,
                options=options,
                width=width,
                height=height,
                sample_aspect_ratio=sample_aspect_ratio or _kept_aspect(source, width, height),
                rate=self._rate,
                time_base=self._unit,
            )
            if source is not None:
                self._tracks = CarriedTracks(
                    source.path,
                    self._container,
                    suffix=suffix,
                    shift=self._shift,
                    cut=source.start > 0,
                    end=self._end,
                )
            with self._reported():
                self._container.start_encoding()
        except BaseException:
            self._place.discard()
            raise

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be carried over as it is, one line each."""
        return tuple(self._tracks.notes) if self._tracks else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close(complete=kind is None)
        else:
            self.abort()

    def write(self, frame: Frame) -> None:
        """Encode one frame and hand the muxer what is ready, with the sound that belongs before it.

        Raises:
            OutputError: it cannot be written; `abort` keeps what there is.
            ValueError: the frame is of another size than the file.
        """
        begin = frame.pts * frame.time_base - self._shift
        length = frame.duration * frame.time_base if frame.duration else 1 / self._rate
        with self._reported():
            self._mux(self._video.encode(frame.image, round(begin / self._unit), round(length / self._unit)))
        self._last_end = begin + length
        self.frames += 1

    def close(self, *, complete: bool = True) -> None:
        """Finish the file and give it its name. Once is enough, more does no harm.

        Args:
            complete: whether the source was read to its end. If not, the sound stops with the last frame,
                a file without a frame is removed and not complained of, and one that was there before stays:
                what is new is `partial` then.

        Raises:
            OutputError: it cannot be finished; what there is was kept as by `abort`.
        """
        if not self._open:
            return
        if not self.frames:
            self.abort()
            if complete:
                raise OutputError(
                    f"{self.path} was not written, there was no frame: choose another part of the clip"
                )
            return
        try:
            with self._reported():
                self._finish(self._end if complete else self._last_end)
                if complete or not self._place.is_taken:
                    self._place.commit()
                else:
                    self.partial = self._place.keep_partial()
        except OutputError:
            self.abort()
            raise
        self._open = False

    def abort(self) -> None:
        """Give up: keep what plays under a partial name, remove the rest; the target stays as it was."""
        if not self._open:
            return
        self._open = False
        with suppress(FFmpegError, OSError):
            self._finish(self._last_end)
        if self.frames and _plays(self._place.temporary):
            self.partial = self._place.keep_partial()
        else:
            self._place.discard()

    def _mux(self, packets: "list[Packet[VideoStream]]") -> None:
        for packet in packets:
            if self._tracks and packet.dts is not None:
                self._tracks.advance(packet.dts * packet.time_base, end=self._end)
            self._container.mux(packet)

    def _finish(self, end: Fraction | None) -> None:
        """Write what the encoders hold, the other tracks up to `end` (seconds of the toon), and the index."""
        try:
            self._mux(self._video.finish())
            if self._tracks:
                self._tracks.advance(None if end is None else end + _INTERLEAVE, end=end)
                self._tracks.finish()
        finally:
            if self._tracks:
                self._tracks.close()
            self._container.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (FFmpegError, OSError) as error:
            if error.errno == errno.ENOSPC:
                raise OutputError(
                    f"the disk is full, {self.path} is not finished: free some space, or choose another place"
                ) from error
            reason = error.strerror or type(error).__name__
            raise OutputError(
                f"{self.path} cannot be written ({reason}): choose another place with -o"
            ) from error


def _kept_aspect(source: FileSource | None, width: int, height: int) -> Fraction:
    """The shape of a pixel with which a picture of this size looks as wide and high as the source's."""
    if source is None:
        return Fraction(1)
    info = source.info
    aspect = info.sample_aspect_ratio * Fraction(info.width, info.height) / Fraction(width, height)
    return Fraction(1) if abs(aspect - 1) < _NEARLY_SQUARE else aspect.limit_denominator(1000)


def _plays(path: Path) -> bool:
    """Whether at least one picture of a file can be decoded."""
    try:
        with av.open(f"file:{path}") as container:
            return next(container.decode(video=0), None) is not None
    except (FFmpegError, IndexError):
        return False
