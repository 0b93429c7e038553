"""Where captured frames wait for the worker: bounded, the oldest gives way, every drop counted."""

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

    Args:
        dropped: told the reason, on the offering thread, of every frame that does not come through.
    """

    def __init__(self, dropped: Callable[[str], object]) -> None:
        self._dropped = dropped
        self._changed = threading.Condition()
        self._waiting: deque[Captured] = deque()
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
        """Frames in it."""
        return len(self._waiting)

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
                if self._phase:
                    reasons.append("rate")
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
            gone = len(self._waiting) if drop else 0
            if drop:
                self._waiting.clear()
            self._changed.notify()
        for _ in range(gone):
            self._dropped("closed")

    def take(self, *, wait: bool = True) -> Captured | None:
        """The oldest frame; None once ended and empty, or, without `wait`, where there is none now."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._waiting or self._ended)
            return self._waiting.popleft() if self._waiting else None
