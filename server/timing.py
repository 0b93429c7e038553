"""When a frame was captured: a small policy without a clock of its own."""

from fractions import Fraction

__all__ = ["CaptureClock"]


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
