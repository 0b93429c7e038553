"""Interlaced pictures, two half pictures of different moments in one, made whole: one picture from each."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

from av.filter import Graph
from av.video.frame import VideoFrame

__all__ = ["deinterlaced"]

_MODE = "send_frame"  # as many pictures as come in: times stay those of the file
_ONLY = "interlaced"  # pictures that do not say they are interlaced pass unchanged
_UNIT = Fraction(1, 25)  # seconds; any would do: times are kept beside the filter


def deinterlaced(frames: Iterable[tuple[VideoFrame, int]]) -> Iterator[tuple[VideoFrame, int]]:
    """Pass pictures with their times through, those that say they are interlaced made whole.

    From the first one on, pictures come one later than they go in; before it nothing is done at all.
    """
    weaver: _Weaver | None = None
    for frame, pts in frames:
        if weaver is not None and not weaver.takes(frame):
            yield from weaver.finish()
            weaver = None
        if weaver is None and frame.interlaced_frame:
            weaver = _Weaver(frame)
        if weaver is None:
            yield frame, pts
        else:
            yield from weaver.push(frame, pts)
    if weaver is not None:
        yield from weaver.finish()


class _Weaver:
    """FFmpeg's bwdif for pictures of one size and format."""

    def __init__(self, first: VideoFrame) -> None:
        self._kind = _kind(first)
        self._times: deque[tuple[int, int]] = deque()  # pts and duration of the pictures inside
        self._graph = Graph()
        self._graph.threads = 1
        source = self._graph.add(
            "buffer",
            video_size=f"{first.width}x{first.height}",
            pix_fmt=first.format.name,
            time_base=str(_UNIT),
            pixel_aspect="1/1",
            colorspace=str(int(first.colorspace)),
            range=str(int(first.color_range)),
        )
        self._graph.link_nodes(
            source, self._graph.add("bwdif", mode=_MODE, deint=_ONLY), self._graph.add("buffersink")
        ).configure()

    def takes(self, frame: VideoFrame) -> bool:
        return _kind(frame) == self._kind

    def push(self, frame: VideoFrame, pts: int) -> Iterator[tuple[VideoFrame, int]]:
        self._times.append((pts, frame.duration or 0))
        frame.pts, frame.time_base = pts, _UNIT
        self._graph.vpush(frame)
        return self._ready()

    def finish(self) -> Iterator[tuple[VideoFrame, int]]:
        self._graph.vpush(None)
        return self._ready()

    def _ready(self) -> Iterator[tuple[VideoFrame, int]]:
        # A picture comes out for each that goes in, in order.
        while self._times:
            try:
                frame = self._graph.vpull()
            except (BlockingIOError, EOFError):
                return
            pts, frame.duration = self._times.popleft()
            yield frame, pts


def _kind(frame: VideoFrame) -> tuple[object, ...]:
    return frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range
