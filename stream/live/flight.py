"""Frames that are in the networks, and which of them come too late to be shown."""

from collections import deque
from dataclasses import dataclass

__all__ = ["LATEST", "Flight", "Landed"]

LATEST = 1.25  # of the promise: frames that are older when they are final are not shown
_SILENCE = 1.0  # seconds in which all frames were too late; then one is shown all the same


@dataclass(slots=True)
class _Flying:
    index: int
    captured_at: float
    entered_at: float
    given_up: bool = False


@dataclass(frozen=True, kw_only=True)
class Landed:
    """What became of the oldest frame.

    Attributes:
        captured_at: when it was captured. entered_at: when it went into the networks.
        given_up: whether it was too late before it was decoded. late: whether it is not to be shown.
    """

    captured_at: float
    entered_at: float
    given_up: bool
    late: bool


class Flight:
    """Notes when frames were captured, in order, and says what is late.

    Frames come out older than promised when the process is not given the cores for a while. What is drawn of
    them would be shown late, and what is captured meanwhile would wait behind it. So they are left out; but
    where all are late for a second, because the machine cannot do it, one is shown all the same.
    """

    def __init__(self) -> None:
        self._frames: deque[_Flying] = deque()
        self._late_since: float | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def enter(self, index: int, *, captured_at: float, now: float) -> None:
        """A frame goes in; indices rise by one."""
        self._frames.append(_Flying(index, captured_at, now))

    def gives_up(self, index: int, *, now: float, limit: float | None) -> bool:
        """Say whether a frame in flight is so late already that it need not be decoded.

        Args:
            index: of the frame.
            now: seconds.
            limit: seconds that a frame may be old when it is final; None is without end.
        """
        frame = self._frames[index - self._frames[0].index]
        frame.given_up = frame.given_up or self._is_late(frame, now, limit)
        return frame.given_up

    def leave(self, *, now: float, limit: float | None) -> Landed:
        """The oldest frame is final."""
        frame = self._frames.popleft()
        late = frame.given_up or self._is_late(frame, now, limit)
        if not late:
            self._late_since = None
        elif self._late_since is None:
            self._late_since = now
        return Landed(
            captured_at=frame.captured_at, entered_at=frame.entered_at, given_up=frame.given_up, late=late
        )

    def is_lost(self, *, now: float, limit: float | None) -> bool:
        """Whether there are frames, and all of them are late already."""
        return bool(self._frames) and self._is_late(self._frames[-1], now, limit)

    def lose(self, *, now: float) -> tuple[float, int]:
        """Forget all frames; gives the age of the newest, and how many there were."""
        if self._late_since is None:
            self._late_since = now
        return now - self._frames[-1].captured_at, self.clear()

    def clear(self) -> int:
        """Forget all frames; gives how many there were."""
        count = len(self._frames)
        self._frames.clear()
        return count

    def _is_late(self, frame: _Flying, now: float, limit: float | None) -> bool:
        if limit is None or now - frame.captured_at <= limit:
            return False
        return self._late_since is None or now - self._late_since < _SILENCE
