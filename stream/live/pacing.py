"""When to show what: pictures by their own time and not by when they were made, and sound to match.

Toons come in bursts, a stride at a time. Each is shown a fixed delay after its capture, which is as long as
most of them need to arrive. The delay is what the sound is delayed by too. Both are pure: told times, they
tell times.
"""

import math
from collections import deque
from dataclasses import dataclass

__all__ = ["AudioDelay", "Pacer", "Placed"]

_SHRINK = 0.03  # seconds of delay a second: haste that is not seen, and that sound can follow
_SPAN = 3.0  # seconds that the delay looks back
_MOST = 600  # frames that it looks back, however fast they come
_MARGIN = 0.01  # seconds more than what was needed
_JUMP = 1.0  # seconds that pts and the clock may part by before a new beginning is made

_APART = 0.02  # seconds that sound and picture may be apart before anything is done; lips: 0.04
_CLOSE = 0.005  # seconds apart at which it stops
_FOLLOW = (
    0.04  # seconds of delay a second that sound moves by where lips are in time: a fiftieth is heard by few
)
_HURRY = 0.1  # the same where they are not
_LIPS = 0.04  # seconds apart up to which lips are in time
_JUMP_SOUND = 0.25  # seconds apart that are made up for at once: the picture has stood still for as long


@dataclass(frozen=True, kw_only=True)
class Placed:
    """When to show a frame.

    Attributes:
        at: seconds by the clock. In the past for a frame that is late, and to be shown at once.
        late: seconds that it came after its time, or 0.
    """

    at: float
    late: float


class Pacer:
    """A jitter buffer's policy: says when to show each frame, so that they are shown as they were captured.

    The delay from pts to the clock follows the slowest frame of the last seconds: it grows at once, since
    what is not there cannot be shown, and shrinks slowly, since that is seen as haste. With `least` at what
    was promised, it stands still as long as the promise is kept.

    Args:
        least: seconds of delay behind capture, at least.
        most: seconds of delay at most; frames that need longer are late.
    """

    def __init__(self, *, least: float = 0.0, most: float = 10.0) -> None:
        self._least = least
        self._most = most
        self._needs: deque[tuple[float, float]] = deque(maxlen=_MOST)  # (when, clock - pts)
        self._offset: float | None = None  # clock - pts at which frames are shown
        self._base = 0.0  # clock - pts of capture
        self._latest = 0.0

    @property
    def delay(self) -> float:
        """Seconds from capture to showing, now; 0 before the first frame."""
        return 0.0 if self._offset is None else self._offset - self._base

    def place(self, pts: float, *, captured_at: float, now: float) -> Placed:
        """Say when to show a frame.

        Args:
            pts: its time in the source, in seconds.
            captured_at: when it was captured, in seconds by the clock.
            now: when it is there, in seconds by the clock.
        """
        base = captured_at - pts
        if self._offset is None or abs(base - self._base) > _JUMP:
            # A first frame, or the source's time has jumped: a new beginning.
            self._needs.clear()
            self._base = base
            self._offset = max(base + self._least, now - pts)
            self._latest = now
        # The source's clock runs a little differently from ours, and capture is noted unevenly.
        self._base += 0.02 * (base - self._base)
        self._needs.append((now, now - pts))
        while self._needs[0][0] < now - _SPAN:
            self._needs.popleft()
        wanted = max(need for _, need in self._needs) + _MARGIN
        wanted = min(max(wanted, self._base + self._least), self._base + self._most)
        if wanted > self._offset:
            self._offset = wanted
        else:
            self._offset = max(wanted, self._offset - _SHRINK * max(0.0, now - self._latest))
        self._latest = max(now, self._latest)
        at = pts + self._offset
        return Placed(at=at, late=max(0.0, now - at))


class AudioDelay:
    """Says by how much to delay sound so that it stays with the picture.

    A picture whose delay shrinks, as a `Pacer` lets it, is followed closer than lips need. Where it grows at
    once, sound hurries after it, and is with it again within two seconds; only after a long halt of the
    picture does it jump.
    """

    def __init__(self) -> None:
        self._delay: float | None = None
        self._moving = False
        self._latest = 0.0

    @property
    def seconds(self) -> float:
        """The delay now."""
        return self._delay or 0.0

    def update(self, video_delay: float, *, now: float) -> float:
        """Note how far the picture is behind its capture, and give the delay for the sound captured now."""
        if self._delay is None or abs(video_delay - self._delay) > _JUMP_SOUND:
            self._delay, self._latest, self._moving = video_delay, now, False
            return self._delay
        passed = max(0.0, now - self._latest)
        self._latest = max(now, self._latest)
        apart = video_delay - self._delay
        self._moving = abs(apart) > (_CLOSE if self._moving else _APART)
        if self._moving:
            speed = _HURRY if abs(apart) > _LIPS else _FOLLOW
            self._delay += math.copysign(min(speed * passed, abs(apart)), apart)
        return self._delay
