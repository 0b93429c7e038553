"""One time that never jumps, from the stamps of sources whose clocks do, and that come and go."""

from fractions import Fraction

__all__ = ["TICK", "ArrivalClock", "Timeline"]

TICK = Fraction(1, 90_000)  # seconds; what video is stamped in, exact for all usual rates

_TOLERANCE = 1  # seconds that a stamp may be off and still be taken for a continuation
_FIRST_TOLERANCE = 10  # the same for a track's first stamp: tracks need not begin together
_GRACE = 2.0  # seconds after a jump in which the other stream of the source may still be before it
_LEAK = 0.0005  # how fast two clocks may drift apart: seconds a second


class Timeline:
    """Maps stamps of a source to seconds of one time that begins at 0 and goes on through everything.

    A stamp is believed when it follows the ones before it, or has moved as far as the clock on the wall has.
    Any other is a jump: time goes on as the wall's clock says. Pictures and sound share the mapping, so lips
    stay in sync.

    Attributes:
        jumps: how often a source's clock jumped.
    """

    def __init__(self) -> None:
        self.jumps = 0
        self._shift: Fraction | None = None
        self._before: Fraction | None = None  # the shift before the last jump
        self._jumped_at = 0.0
        self._latest: dict[str, tuple[Fraction, float]] = {}  # of each track: its time, and when it came
        self._furthest = Fraction(0), 0.0  # of all
        self._restarted = False

    def restart(self) -> None:
        """The source is another one from here on, or the same one anew: its stamps begin anywhere."""
        self._restarted = self._shift is not None
        self._latest.clear()

    def place(self, stamp: Fraction, now: float, *, track: str = "", ahead: float = 0.0) -> Fraction:
        """Give the time of a stamp.

        Args:
            stamp: in seconds, by the source's clock.
            now: seconds, when it arrived, by a clock that never goes back.
            track: whose stamp it is: some containers store the sound long before its pictures.
            ahead: seconds that it may jump ahead all the same: a file may show one picture for long.
        """
        placed = self._place(stamp, now, track, ahead)
        if track not in self._latest or placed >= self._latest[track][0]:
            self._latest[track] = placed, now
        if placed >= self._furthest[0]:
            self._furthest = placed, now
        return placed

    def _place(self, stamp: Fraction, now: float, track: str, ahead: float) -> Fraction:
        if self._shift is None:
            self._shift = -stamp
            return Fraction(0)
        latest, at = self._latest.get(track, self._furthest)
        expected = latest + _ticks(now - at)
        tolerance = _TOLERANCE if track in self._latest else _FIRST_TOLERANCE
        if not self._restarted:
            candidates = [self._shift]
            if self._before is not None and now - self._jumped_at <= _GRACE:
                candidates.append(self._before)
            for shift in candidates:
                placed = stamp + shift
                if min(abs(placed - latest), abs(placed - expected)) <= tolerance:
                    return placed
            if latest < stamp + self._shift <= latest + Fraction(ahead):
                return stamp + self._shift
            self.jumps += 1
        self._before = None if self._restarted else self._shift
        self._jumped_at = now
        self._restarted = False
        self._shift = expected - stamp
        return expected


class ArrivalClock:
    """Says when a picture was captured, by the clock of the machine that it arrived at.

    The fastest way that any picture took here counts as no way at all: what others took longer is jitter, and
    is told from the source's own times. Clocks may drift apart a little.
    """

    def __init__(self) -> None:
        self._offset: float | None = None
        self._at = 0.0

    def captured(self, time: Fraction, now: float) -> float:
        """Seconds by the clock of `now` at which a picture of this time was captured; never after `now`."""
        arrived = now - float(time)
        if self._offset is None:
            self._offset, self._at = arrived, now
        self._offset = min(self._offset + _LEAK * (now - self._at), arrived)
        self._at = now
        return float(time) + self._offset


def _ticks(seconds: float) -> Fraction:
    return round(Fraction(seconds) / TICK) * TICK
