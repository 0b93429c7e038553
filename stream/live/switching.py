"""From one plan to another in the middle of a stream: the old one runs out, the new one fades in.

The old stream ends at a window boundary, where its end costs no truncated window, and the new one starts on
the last of its frames; pictures of the frames that both have are cross-faded. The new stream's first frame
waits no longer than any first frame of a window, so no hole is seen.

    old  ────────────────────┤
    new              ├───────────────────
    out  old·········fading··new·········
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from toonstream.stream.frame import Frame
from toonstream.stream.live.settings import Plan
from toonstream.stream.live.words import Words
from toonstream.stream.stylizer import Toon

__all__ = ["Pushed", "Segment", "Switching", "cross_fade"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pushed:
    """A frame as it goes into a stream.

    Attributes:
        frame: the frame; its index counts the kept frames of the session, and its noise belongs to it.
        words: what it is to look like.
    """

    frame: Frame
    words: Words


class Segment(Protocol):
    """A stream under one plan. Every frame that goes in comes out, in order."""

    def push(self, pushed: Pushed) -> Iterable[Toon]:
        """Take the next frame; give the ones that became final."""
        ...

    def finish(self) -> Iterable[Toon]:
        """No more come: give the rest."""
        ...


class Switching:
    """Takes frames and gives toons, each exactly once and in order, under plans that change.

    Those that are in flight when it is told to `abandon` them are the exception.

    Args:
        start: starts a stream under a plan.
        plan: the first.
    """

    def __init__(self, start: Callable[[Plan], Segment], plan: Plan) -> None:
        self._start = start
        self._plan = plan
        self._segment = start(plan)
        self._pushed = 0  # frames in the segment
        self._next = 0  # index of the next frame that is given out, over all segments
        self._came = 0  # frames over all segments
        self._recent: deque[Pushed] = deque(maxlen=plan.window)
        self._wanted: Plan | None = None
        self._last = 0  # where the segment ends, while it is running out
        self._overlap = 0  # frames that the next segment begins before that
        self._held: deque[Toon] = deque()  # the old segment's toons of those frames
        self._faded = 0

    @property
    def plan(self) -> Plan:
        """What new frames go into."""
        return self._plan

    @property
    def in_flight(self) -> int:
        """Frames that are in and not out."""
        return self._came - self._next

    @property
    def settled(self) -> bool:
        """Whether no switch is asked for or under way."""
        return self._wanted is None and not self._held

    @property
    def at_boundary(self) -> bool:
        """Whether the last frame filled a window."""
        return _is_boundary(self._plan, self._pushed)

    def ask(self, plan: Plan) -> None:
        """Go to another plan as soon as a window is full; the latest asked for counts."""
        if self._last:
            self._wanted = plan  # the old segment is running out already: only where it leads to changes
        elif plan == self._plan:
            self._wanted = None
        else:
            self._wanted = plan

    def push(self, pushed: Pushed) -> Iterator[Toon]:
        """Take the next frame; give the ones that are ready. Run it to its end before the next call."""
        if self._pushed == 0 and self._wanted is not None:
            self._begin(self._wanted)
        self._came += 1
        self._recent.append(pushed)
        yield from self._into_segment(pushed)
        if self._wanted is not None and not self._held and not self._last:
            self._run_out(self._wanted)
        if self._last and self._pushed == self._last:
            yield from self._change()

    def finish(self) -> Iterator[Toon]:
        """No more frames come: give the rest."""
        if self._last:  # still running out: what was held for the next segment is final now
            self._last = 0
            while self._held:
                yield self._out(self._held.popleft())
        for toon in self._segment.finish():
            yield self._faded_out(toon)

    def cut(self, plan: Plan) -> Iterator[Toon]:
        """End what is in flight here and start anew: the source is another picture."""
        yield from self.finish()
        self._recent.clear()
        self._begin(plan)

    def abandon(self, plan: Plan) -> None:
        """Forget what is in flight, and start anew."""
        self._held.clear()
        self._recent.clear()
        self._next = self._came
        self._begin(plan)

    def _begin(self, plan: Plan) -> None:
        self._plan, self._wanted, self._last = plan, None, 0
        self._recent = deque(self._recent, maxlen=plan.window)
        self._segment = self._start(plan)
        self._pushed = self._faded = 0

    def _into_segment(self, pushed: Pushed) -> Iterator[Toon]:
        self._pushed += 1
        for toon in self._segment.push(pushed):
            if self._last and toon.toon.index >= self._came_at(self._last) - self._overlap:
                self._held.append(toon)
            else:
                yield self._faded_out(toon)

    def _came_at(self, pushed: int) -> int:
        """How many frames have come over all segments when `pushed` are in this one."""
        return self._came - self._pushed + pushed

    def _run_out(self, plan: Plan) -> None:
        """Settle where the segment ends: at the first boundary whose overlap is not out yet."""
        last = _boundary_from(self._plan, self._pushed)
        overlap = min(self._plan.window, plan.window)
        while self._came_at(last) - overlap < self._next:
            last += self._plan.stride
        self._last, self._overlap = last, overlap

    def _change(self) -> Iterator[Toon]:
        """The old segment is at its end: take its toons, and start the new one on the overlapping frames."""
        assert self._wanted is not None
        overlap = self._overlap
        for toon in self._segment.finish():
            if toon.toon.index >= self._came - overlap:
                self._held.append(toon)
            else:
                yield self._out(toon)
        again = list(self._recent)[len(self._recent) - overlap :]
        self._begin(self._wanted)
        self._recent.clear()
        self._recent.extend(again)
        for pushed in again:
            yield from self._into_segment(pushed)

    def _faded_out(self, toon: Toon) -> Toon:
        if not self._held:
            return self._out(toon)
        old = self._held.popleft()
        self._faded += 1
        picture = cross_fade(old.toon.image, toon.toon.image, self._faded / (self._overlap + 1))
        return self._out(replace(toon, toon=replace(toon.toon, image=picture)))

    def _out(self, toon: Toon) -> Toon:
        self._next = toon.toon.index + 1
        return toon


def cross_fade(old: NDArray[np.uint8], new: NDArray[np.uint8], part: float) -> NDArray[np.uint8]:
    """Between two (H, W, 3) pictures, 0 the old and 1 the new; in the new one's size."""
    height, width = new.shape[:2]
    if old.shape != new.shape:
        old = np.asarray(cv2.resize(old, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
    return np.asarray(cv2.addWeighted(old, 1.0 - part, new, part, 0.0), dtype=np.uint8)


def _is_boundary(plan: Plan, pushed: int) -> bool:
    return pushed >= plan.window and (pushed - plan.window) % plan.stride == 0


def _boundary_from(plan: Plan, pushed: int) -> int:
    """The first boundary that is not passed yet."""
    strides = max(0, -(-(pushed - plan.window) // plan.stride))
    return plan.window + strides * plan.stride
