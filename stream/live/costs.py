"""What the networks cost on this machine, now: learnt from every run, guessed for what has not run yet."""

import math
from collections import deque
from statistics import median
from typing import NamedTuple

__all__ = ["DELIVERED", "STEADYING", "Costs", "Shape"]

_RISE = 0.4  # of the way to a higher value, an observation
_FALL = 0.15  # of the way to a lower one: slower, so that what is uneven is taken for its slow side
_NEW = 6  # observations of a shape until it counts as known
_STEEPEST = 1.5  # the highest power of the number of pixels that a cost may grow with


class Shape(NamedTuple):
    """What a run is of: frames of (width, height) pixels."""

    width: int
    height: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        """All of them together."""
        return self.width * self.height * self.frames


STEADYING = "steadying"
"""The stage that deflickers toons: at the size that is delivered, whatever they are drawn at."""

DELIVERED = Shape(1, 1)
"""Stands for that size."""


class Costs:
    """Seconds that a run of each stage takes, for every shape.

    The middle of three observations is what counts, so that one hiccup is nothing; then an exponentially
    weighted mean. What makes a stage slower in the shape in use, another program say, makes it slower in all
    alike: a change there moves the others with it, and the ratios between them stay as they were measured.
    As far as they can be: what was measured in a bad moment, and never again, is not believed for ever.
    A shape that was never run is guessed from the nearest, in proportion to its pixels.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, dict[Shape, float]] = {}
        self._seen: dict[tuple[str, Shape], int] = {}
        self._latest: dict[tuple[str, Shape], deque[float]] = {}

    @property
    def stages(self) -> tuple[str, ...]:
        """Those that were observed."""
        return tuple(self._seconds)

    def observe(self, stage: str, shape: Shape, seconds: float) -> None:
        """Note what a run of a stage took."""
        known = self._seconds.setdefault(stage, {})
        latest = self._latest.setdefault((stage, shape), deque(maxlen=3))
        latest.append(seconds)
        seen = self._seen[stage, shape] = self._seen.get((stage, shape), 0) + 1
        if seen <= _NEW:
            # Whatever was guessed for this shape, the others keep what they have.
            known[shape] = median(latest)
            return
        before, value = known[shape], median(latest)
        after = before + (_RISE if value > before else _FALL) * (value - before)
        if before > 0.0:
            known[shape] = after
            self._scale(stage, after / before, by=shape)
        known[shape] = after

    def _scale(self, stage: str, factor: float, *, by: Shape) -> None:
        """Take it that the other shapes have changed likewise, what was observed of them included."""
        known = self._seconds[stage]
        for each in known:
            if each != by and known[each] > 0.0:
                ratio = each.pixels / by.pixels
                least, most = known[by] * min(1.0, ratio**_STEEPEST), known[by] * max(1.0, ratio**_STEEPEST)
                scale = min(max(known[each] * factor, least), most) / known[each]
                known[each] *= scale
                latest = self._latest[stage, each]
                latest.extend([seconds * scale for seconds in latest])  # its length is bounded

    def seconds(self, stage: str, shape: Shape) -> float:
        """What a run of a stage takes; 0 where it was never observed."""
        known = self._seconds.get(stage)
        if not known:
            return 0.0
        if shape in known:
            return known[shape]
        near = min(known, key=lambda each: (_distance(each, shape), each))
        return known[near] * shape.pixels / near.pixels


def _distance(one: Shape, other: Shape) -> float:
    """How unlike two shapes are: another size says less than another number of frames."""
    size = abs(math.log(one.width * one.height / (other.width * other.height)))
    return 2.0 * size + abs(math.log(one.frames / other.frames))
