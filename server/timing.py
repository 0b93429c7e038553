"""When a frame was captured, and when it is shown: two small policies without a clock of their own."""

from fractions import Fraction

__all__ = ["CaptureClock", "Playout"]


class CaptureClock:
    """Finds out when frames were captured from their pts and their arrival.

    Of all arrivals the least delayed one tells best how pts and our clock lie to each other; the others
    were held up on the way. A leap of either re-anchors, so that a clock that jumps costs one leap of
    the picture and no more. Times given never go back.

    Args:
        leap: seconds of disagreement beyond which pts are taken to have jumped.
        drift: seconds per second by which the two clocks may run apart.
    """

    def __init__(self, *, leap: float = 1.0, drift: float = 0.001) -> None:
        self._leap = leap
        self._drift = drift
        self._offset: float | None = None
        self._arrival = 0.0
        self._last = float("-inf")

    def captured_at(self, pts: int, time_base: Fraction, arrival: float) -> float:
        """Give the capture time of the next frame on the clock of `arrival`, in seconds."""
        offset = arrival - float(pts * time_base)
        if self._offset is None or abs(offset - self._offset) > self._leap:
            self._offset = offset
        else:
            allowed = self._offset + self._drift * max(0.0, arrival - self._arrival)
            self._offset = min(offset, allowed)
        self._arrival = arrival
        self._last = max(self._last, min(arrival, float(pts * time_base) + self._offset))
        return self._last


class Playout:
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
        self._delay = min(initial, limit)
        self._limit = limit
        self._peaks = (initial, initial)  # of the last span and of this one
        self._began: float | None = None
        self._seen = 0.0

    @property
    def delay(self) -> float:
        """Seconds from capture to show."""
        return self._delay

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
        self._delay = max(goal, self._delay - (self._delay - goal) * step)

    def due(self, captured_at: float) -> float:
        """Give the time to show a frame captured then."""
        return captured_at + self._delay
