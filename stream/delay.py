"""How far behind its capture a picture is shown: a small policy without a clock of its own."""

__all__ = ["Delay"]


class Delay:
    """Says how long after its capture a frame is shown, so that an uneven producer looks even.

    The delay leaps to the latest frame and comes back slowly to the latest of the last two seconds.
    Sound and picture ask the same one, and so stay together.

    Args:
        initial: seconds of delay before anything is known.
        limit: seconds of delay never passed; frames that are later are shown at once.
    """

    _SPAN = 1.0  # seconds over which lateness is kept, twice
    _RETURN = 0.5  # of the way back per second

    def __init__(self, *, initial: float, limit: float = 10.0) -> None:
        self._seconds = min(initial, limit)
        self._limit = limit
        self._peaks = (initial, initial)  # of the last span and of this one
        self._began: float | None = None
        self._seen = 0.0

    @property
    def seconds(self) -> float:
        """Seconds from capture to show."""
        return self._seconds

    def ready(self, captured_at: float, now: float) -> None:
        """Take note that a frame captured then could be shown now."""
        lateness = min(max(0.0, now - captured_at), self._limit)
        if self._began is None:
            self._began, self._seen, self._peaks = now, now, (0.0, 0.0)
        if now - self._began >= self._SPAN:
            stale = now - self._began >= 2 * self._SPAN
            self._peaks = (0.0 if stale else self._peaks[1], 0.0)
            self._began = now
        self._peaks = (self._peaks[0], max(self._peaks[1], lateness))
        goal = max(self._peaks)
        step = min(1.0, self._RETURN * max(0.0, now - self._seen))
        self._seen = now
        self._seconds = max(goal, self._seconds - (self._seconds - goal) * step)

    def due(self, captured_at: float) -> float:
        """Give the time to show a frame captured then."""
        return captured_at + self._seconds
