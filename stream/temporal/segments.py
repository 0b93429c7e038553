"""Overlapped blending's bookkeeping: which segment runs, and which of its frames are new.

Segments lie as the rolling window's windows do, one every stride, and each begins with the last
`length - stride` frames of the one before it. They run one after the other, all steps of one before the first
of the next: whatever the number of steps, a frame waits for the end of its segment and no longer. What a
segment begins with was committed with the one before, and does not climb again. Plain Python, no tensors.
"""

from toonstream.errors import SettingError
from toonstream.stream.rolling import Task
from toonstream.stream.window import Span, Windows

__all__ = ["Segments"]


class Segments:
    """Decides what runs next; takes the place of `Rolling`.

    A stream that ends within a segment truncates it behind; the frames that it begins with stay. One that
    ends with a segment has no other.

    Args:
        windows: where the segments lie.
        steps: denoising steps (T), at least 1.

    Raises:
        SettingError: `steps` is below 1.
    """

    def __init__(self, windows: Windows, *, steps: int) -> None:
        if steps < 1:
            raise SettingError(f"{steps} denoising steps make no picture: use at least 1.")
        self._windows = windows
        self._steps = steps
        self._step = 0  # that the segment is to run at next
        self._arrived = 0
        self._committed = 0
        self._ended = False

    @property
    def arrived(self) -> int:
        """Frames that have come in."""
        return self._arrived

    @property
    def committed(self) -> int:
        """Frames that are final: those with an index below this number."""
        return self._committed

    @property
    def overlapped(self) -> range:
        """Frames that are final, and that the next segment begins with."""
        overlap = self._windows.length - self._windows.stride
        return range(max(0, self._committed - overlap), self._committed)

    def arrive(self, frames: int = 1) -> None:
        """Take in the next `frames` frames.

        Raises:
            RuntimeError: the stream has ended.
        """
        if self._ended:
            raise RuntimeError("The stream has ended: start a new one for more frames.")
        self._arrived += frames

    def end(self) -> range:
        """Note that no more frames come; no frame climbs by that alone."""
        self._ended = True
        return range(0)

    def ready(self) -> tuple[Task, ...]:
        """The one task to run now; none when frames must arrive first."""
        span = self._span()
        return () if span is None else (Task(span, self._step),)

    def complete(self, task: Task) -> range:
        """Note that `task` has run, and give its new frames: they climb to level `task.step` + 1 by it.

        Raises:
            ValueError: `task` is not the one that `ready` gives.
        """
        if self.ready() != (task,):
            raise ValueError(f"{task} is not ready.")
        climbed = range(self._committed, task.span.stop)
        self._step += 1
        if self._step == self._steps:
            self._step = 0
            self._committed = task.span.stop
        return climbed

    def _span(self) -> Span | None:
        """Where the segment lies that is to run, or None where it is not full yet."""
        start = self.overlapped.start
        stop = start + self._windows.length
        if self._ended:
            stop = min(stop, self._arrived)
        return Span(start, stop) if self._committed < stop <= self._arrived else None
