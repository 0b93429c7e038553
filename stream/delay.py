"""How far behind its capture a picture is shown: a small policy without a clock of its own."""

__all__ = ["Delay", "longest_delay"]

_LONGEST = 10.0  # seconds, where nothing is promised
_BEYOND, _GRACE = 1.5, 0.2  # of the promise, and seconds beyond it: what frames are held back for, at most


def longest_delay(promise: float | None) -> float:
    """Say how many seconds after its capture a frame may be held back, where that many are promised.

    What is later is shown at once. If everything waited for a single frame that was late, all would be as
    late as that one, for seconds.
    """
    return _LONGEST if promise is None else max(_BEYOND * promise, promise + _GRACE)


class Delay:
    """Says how long after its capture a frame is shown, so that an uneven producer looks even.

    The delay leaps to the latest frame and comes back slowly to the latest of the last two seconds.
    Sound and picture ask the same one, and so stay together.

    Args:
        initial: seconds of delay before anything is known.
        limit: seconds of delay never passed; frames that are later are shown at once, and delay no other.

    Attributes:
        limit: see above; the delay comes back to a lower one as to anything else.
    """

    _SPAN = 1.0  # seconds over which lateness is kept, twice
    _RETURN = 0.5  # of the way back per second

    def __init__(self, *, initial: float, limit: float = _LONGEST) -> None:
        self._seconds = min(initial, limit)
        self.limit = limit
        self._peaks = (initial, initial)  # of the last span and of this one
        self._began: float | None = None
        self._seen = 0.0

    @property
    def seconds(self) -> float:
        """Seconds from capture to show."""
        return self._seconds

    def ready(self, captured_at: float, now: float) -> None:
        """Take note that a frame captured then could be shown now."""
        lateness = min(max(0.0, now - captured_at), self.limit)
        if self._began is None:
            self._began, self._seen, self._peaks = now, now, (0.0, 0.0)
        if now - self._began >= self._SPAN:
            stale = now - self._began >= 2 * self._SPAN
            self._peaks = (0.0 if stale else self._peaks[1], 0.0)
            self._began = now
        self._peaks = (self._peaks[0], max(self._peaks[1], lateness))
        goal = min(max(self._peaks), self.limit)
        step = min(1.0, self._RETURN * max(0.0, now - self._seen))
        self._seen = now
        self._seconds = max(goal, self._seconds - (self._seconds - goal) * step)

    def due(self, captured_at: float) -> float:
        """Give the time to show a frame captured then."""
        return captured_at + self._seconds

    def latest(self, captured_at: float, *, grace: float) -> float:
        """Give the time from which on a frame captured then is to give way to the one behind it.

        That is `grace` seconds after it is due, and never beyond the limit.
        """
        return captured_at + min(self._seconds + grace, max(self._seconds, self.limit))
