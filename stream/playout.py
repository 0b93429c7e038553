"""When toons and sound go out: in step with the pictures' own times, not with the bursts they are made in.

Pure policy; whoever owns it gives it the time, and locks.
"""

import heapq
from dataclasses import dataclass, field, replace
from fractions import Fraction

from toonstream.stream.delay import Delay, longest_delay
from toonstream.stream.frame import Frame
from toonstream.stream.sources.sound import Sound

__all__ = ["Playout"]

_QUIET = 1.0  # seconds without a toon after which the last one is shown again
_AGAIN = 0.2  # seconds between such repetitions
_PATIENCE = 1.0  # seconds in which a source may catch up that all toons came too late
_FRAMES = 64  # that wait at most; more go out early
_SOUNDS = 1024  # packets that wait at most


@dataclass(order=True)
class _Entry:
    time: Fraction
    rank: int  # a picture before the sound of the same time, for outlets begin with a picture
    number: int
    item: Frame | Sound = field(compare=False)


class Playout:
    """Puts toons and sound in order, and says when each goes out.

    Everything is shown the same while after it was captured, see `Delay`. So sound, which is there at once,
    waits as long as the pictures do. Where no toon comes for a while, the last one is repeated, with times
    that go on, so that nobody at the other end hangs up. Toons from before these times come too late, if the
    source catches up; if it stays behind, its times are moved.

    Args:
        promise: seconds from capture that are promised, or None: what is much later delays nothing else.

    Attributes:
        late: toons that were not shown because a later time had been shown already.
        lost: packets of sound likewise, or that had no room.
        repeated: how often a toon was shown again.
        shift: seconds that times were moved by.
    """

    def __init__(self, *, promise: float | None = None) -> None:
        self._delay = Delay(initial=0.0, limit=longest_delay(promise))
        self.late = self.lost = self.repeated = 0
        self.shift = Fraction(0)
        self._late_since: float | None = None
        self._heap: list[_Entry] = []
        self._frames = self._number = 0
        self._offset: float | None = None  # from the stream's time to the clock's
        self._last: Frame | None = None
        self._last_time = Fraction(-1)
        self._last_at = 0.0

    def show(self, frame: Frame, captured_at: float, now: float) -> None:
        """Take a toon.

        Args:
            frame: with the stream's time.
            captured_at: when its picture was taken, by the clock of `now`.
            now: seconds.
        """
        time = frame.pts * frame.time_base
        self._offset = captured_at - float(time)
        if time + self.shift > self._last_time:  # what comes too late to be shown delays nothing
            self._delay.ready(captured_at, now)
        self._frames += 1
        self._push(time, 0, frame)

    def hear(self, sound: Sound) -> None:
        """Take a packet of sound."""
        if len(self._heap) - self._frames >= _SOUNDS:
            self.lost += 1
            return
        self._push(sound.begin, 1, sound)

    def due(self, now: float, *, everything: bool = False, keep_alive: bool = True) -> list[Frame | Sound]:
        """Give what goes out now, in order.

        Args:
            now: seconds.
            everything: whether it is the end, and nothing waits any longer.
            keep_alive: whether to show the last toon again where no other comes.
        """
        out: list[Frame | Sound] = []
        while self._heap and (everything or self._frames > _FRAMES or self._ripe(self._heap[0], now)):
            out += self._pop(now)
        if keep_alive and not everything and self._last is not None:
            quiet = _AGAIN if self._last.index < 0 else _QUIET
            if now - self._last_at >= quiet:
                out.append(self._again(now))
        return out

    def wake_at(self, now: float) -> float:
        """When to ask again, at the latest."""
        times = [now + _QUIET]
        if self._heap and self._offset is not None:
            times.append(float(self._heap[0].time) + self._offset + self.delay)
        if self._last is not None:
            times.append(self._last_at + (_AGAIN if self._last.index < 0 else _QUIET))
        return max(now, min(times))

    @property
    def delay(self) -> float:
        """Seconds behind capture."""
        return self._delay.seconds

    @property
    def waiting(self) -> int:
        """Toons and packets that wait."""
        return len(self._heap)

    def _push(self, time: Fraction, rank: int, item: Frame | Sound) -> None:
        self._number += 1
        heapq.heappush(self._heap, _Entry(time=time, rank=rank, number=self._number, item=item))

    def _pop(self, now: float) -> list[Frame | Sound]:
        item = heapq.heappop(self._heap).item
        if isinstance(item, Sound):
            return [replace(item, begin=item.begin + self.shift)]
        self._frames -= 1
        unit = item.time_base
        time = item.pts * unit + self.shift
        if time <= self._last_time:
            self._late_since = now if self._late_since is None else self._late_since
            if now - self._late_since < _PATIENCE:
                self.late += 1
                return []
            self.shift += -((time - self._last_time) // unit) * unit + unit
        self._late_since = None
        shown = replace(item, pts=item.pts + round(self.shift / unit))
        self._last, self._last_time, self._last_at = shown, shown.pts * unit, now
        return [shown]

    def _ripe(self, entry: _Entry, now: float) -> bool:
        return self._offset is not None and float(entry.time) + self._offset + self.delay <= now

    def _again(self, now: float) -> Frame:
        """The last toon, for a time that has gone on as the clock has. An index below 0 marks it."""
        assert self._last is not None
        unit = self._last.time_base
        ticks = max(1, round(Fraction(now - self._last_at) / unit))
        repeated = replace(self._last, index=-1, pts=self._last.pts + ticks, duration=None)
        self._last, self._last_time, self._last_at = repeated, repeated.pts * unit, now
        self.repeated += 1
        return repeated
