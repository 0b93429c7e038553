"""Where captured frames wait for the worker: bounded, what is old gives way, every drop counted."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from toonstream.stream.frame import Frame

__all__ = ["Captured", "Inbox"]

_RATE_FRAMES = 31  # the frame rate is that of the last 30 intervals
_RATE_LEAST = 6  # frames until it is known
_CLOCK_JUMP = 1.0  # seconds backwards that are taken for another clock, and not for a frame out of order


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Captured:
    """A frame and when it was captured, in seconds by the session's clock."""

    frame: Frame
    at: float


class Inbox:
    """Takes frames from any thread; gives them to one worker.

    Where frames are left out for the sake of the rate, the latest of those is kept in reserve: it is taken
    where all others have become too old.

    Args:
        dropped: told the reason, on any thread, of every frame that does not come through.
        is_late: says, given when a frame was captured, whether it is too old to be worth taking; asked when
            it is its turn. The newest frame is taken all the same.
    """

    def __init__(
        self, dropped: Callable[[str], object], *, is_late: Callable[[float], bool] = lambda at: False
    ) -> None:
        self._dropped = dropped
        self._is_late = is_late
        self._changed = threading.Condition()
        self._waiting: deque[Captured] = deque()
        self._spare: Captured | None = None  # after all that wait
        self._capacity = 2
        self._every = 1
        self._phase = 0
        self._times: deque[float] = deque(maxlen=_RATE_FRAMES)
        self._ended = False

    @property
    def fps(self) -> float | None:
        """Frames captured a second, dropped ones too; None until a few have come."""
        with self._changed:
            if len(self._times) < _RATE_LEAST:
                return None
            return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    @property
    def ended(self) -> bool:
        """Whether no more frames are taken in."""
        return self._ended

    @property
    def waiting(self) -> int:
        """Frames in it; the one in reserve counts."""
        with self._changed:
            return len(self._waiting) + (self._spare is not None)

    def set(self, *, capacity: int, every: int) -> None:
        """Hold at most `capacity` frames, and keep one of `every` that come."""
        with self._changed:
            self._capacity, self._every = capacity, every

    def offer(self, captured: Captured) -> None:
        """Take a frame in; the oldest that waits gives way where there is no room. Never waits."""
        reasons = []
        with self._changed:
            previous = self._times[-1] if self._times else None
            if previous is not None and captured.at <= previous - _CLOCK_JUMP:
                self._times.clear()
                previous = None
            if self._ended:
                reasons.append("closed")
            elif previous is not None and captured.at <= previous:
                reasons.append("clock")
            else:
                self._times.append(captured.at)
                self._phase = (self._phase + 1) % self._every
                if self._spare is not None:
                    self._spare = None
                    reasons.append("rate")
                if self._phase:
                    self._spare = captured
                else:
                    self._waiting.append(captured)
                    while len(self._waiting) > self._capacity:
                        self._waiting.popleft()
                        reasons.append("late")
                    self._changed.notify()
        for reason in reasons:
            self._dropped(reason)

    def end(self, *, drop: bool = False) -> None:
        """Take no more in; with `drop`, what waits goes too."""
        with self._changed:
            self._ended = True
            reasons = ["closed"] * len(self._waiting) if drop else []
            if drop:
                self._waiting.clear()
            if self._spare is not None:
                self._spare = None
                reasons.append("rate")
            self._changed.notify()
        for reason in reasons:
            self._dropped(reason)

    def take(self, *, wait: bool = True) -> Captured | None:
        """The oldest frame that is not late, or else the newest.

        None once ended and empty, or, without `wait`, where there is none now.
        """
        late = 0
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._waiting or self._ended)
            taken = self._waiting.popleft() if self._waiting else None
            while taken is not None and self._is_late(taken.at) and (newer := self._newer()) is not None:
                taken = newer
                late += 1
        for _ in range(late):
            self._dropped("late")
        return taken

    def _newer(self) -> Captured | None:
        """What comes after those that were taken."""
        if self._waiting:
            return self._waiting.popleft()
        spare, self._spare = self._spare, None
        if spare is not None:
            self._phase = 0  # the next one is kept as long after it as after any other
        return spare
