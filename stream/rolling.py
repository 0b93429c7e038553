"""The rolling window's bookkeeping: which windows may run, and which frames climb when they have.

Every frame stands at a level, the number of denoising steps it has behind it. A window may run at step k when
all its frames stand at level k; when all windows that cover a frame have run at step k, the frame climbs to
level k + 1; at the top level it is final. Windows run in order at each step, so frames climb in order too,
and the whole state is two numbers per level, whatever the length of the stream. Plain Python, no tensors.
"""

from dataclasses import dataclass

from toonstream.errors import SettingError
from toonstream.stream.window import Span, Windows

__all__ = ["Rolling", "Task"]


@dataclass(frozen=True, slots=True)
class Task:
    """One window to run at one step.

    Attributes:
        span: its frames, all standing at level `step`.
        step: index of the denoising step, 0 the noisiest.
    """

    span: Span
    step: int


class Rolling:
    """Decides what runs next.

    The wavefront takes one task at a time, the deepest that is possible, so that frames leave as early as
    they can. The skewed wavefront takes a round when a window of new frames is full: at most one task per
    step, all possible before the round and therefore independent of one another. Each level then lags one
    stride more.

    Args:
        windows: where the windows lie.
        steps: denoising steps (T), at least 1.
        skewed: take rounds of independent tasks instead of single ones.

    Raises:
        SettingError: `steps` is below 1.
    """

    def __init__(self, windows: Windows, *, steps: int, skewed: bool = False) -> None:
        if steps < 1:
            raise SettingError(f"{steps} denoising steps make no picture: use at least 1.")
        self._windows = windows
        self._skewed = skewed
        self._ran = [0] * steps  # windows that have run at step k
        self._reached = [0] * (steps + 1)  # frames that stand at level k or above
        self._ended = False

    @property
    def arrived(self) -> int:
        """Frames that have come in."""
        return self._reached[0]

    @property
    def committed(self) -> int:
        """Frames that are final: those with an index below this number."""
        return self._reached[-1]

    def arrive(self, frames: int = 1) -> None:
        """Take in the next `frames` frames.

        Raises:
            RuntimeError: the stream has ended.
        """
        if self._ended:
            raise RuntimeError("The stream has ended: start a new one for more frames.")
        self._reached[0] += frames

    def end(self) -> range:
        """Note that no more frames come, and give the frames that climb from level 0 by that alone.

        Where the last window that ran ends exactly with the stream, no truncated window follows it, and the
        frames that were waiting for one have all they need. That can only be so at step 0: a later step
        cannot have run the last window before its frames have climbed.
        """
        self._ended = True
        if self._ran[0] < self._windows.count(self.arrived):
            return range(0)
        return self._climb(0, self.arrived)

    def ready(self) -> tuple[Task, ...]:
        """The tasks to run now, together; none when frames must arrive first.

        Complete them all before asking again.
        """
        possible = [step for step in range(len(self._ran)) if self._possible(step)]
        if not self._skewed:
            possible = possible[-1:]
        elif not (self._ended or 0 in possible):
            possible = []
        return tuple(Task(self._next_span(step), step) for step in possible)

    def complete(self, task: Task) -> range:
        """Note that `task` has run, and give the frames that climb to level `task.step` + 1 by it.

        After the last step those frames are committed; whatever was held for them at `task.step` can go.

        Raises:
            ValueError: `task` is not one that `ready` gives.
        """
        step = task.step
        if not self._possible(step) or task.span != self._next_span(step):
            raise ValueError(f"{task} is not ready.")
        self._ran[step] += 1
        is_last = self._ended and self._ran[step] == self._windows.count(self.arrived)
        return self._climb(step, self.arrived if is_last else self._ran[step] * self._windows.stride)

    def _next_span(self, step: int) -> Span:
        return self._windows.span(self._ran[step], self.arrived if self._ended else None)

    def _possible(self, step: int) -> bool:
        if self._ended and self._ran[step] == self._windows.count(self.arrived):
            return False
        return self._next_span(step).stop <= self._reached[step]

    def _climb(self, step: int, below: int) -> range:
        climbed = range(self._reached[step + 1], below)
        self._reached[step + 1] = below
        return climbed
