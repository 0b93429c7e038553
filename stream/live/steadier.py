"""Deflickers what one viewer is sent, for as long as there is time for it, and says what that takes."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np

from toonstream.stream.clock import Clock
from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.steadying import Steadying

__all__ = ["Steadier"]

_TRIALS = 4  # toons by which it is found out what one takes, but for the first
_TIME_BASE = Fraction(1, 30)


class Steadier:
    """A `Steadying` that can be turned off and on.

    Args:
        clock: gives the time.
        took: told how many seconds each toon took.
    """

    def __init__(self, clock: Clock, took: Callable[[float], None]) -> None:
        self._clock = clock
        self._took = took
        self._steadying: Steadying | None = None

    @property
    def on(self) -> bool:
        """Whether it does anything."""
        return self._steadying is not None

    def turn(self, on: bool) -> None:
        """Turn it on or off. What was sent before it was off is forgotten: it is no neighbour any more."""
        if on != self.on:
            self._steadying = Steadying() if on else None

    def cut(self, index: int) -> None:
        """Say that a scene begins with the frame of this index, before its toon comes."""
        if self._steadying is not None:
            self._steadying.cut(index)

    def __call__(self, toon: Toon) -> Toon:
        """Steady the next toon that is sent."""
        return toon if self._steadying is None else self._timed(self._steadying, toon)

    def try_out(self, source: tuple[int, int], size: tuple[int, int]) -> None:
        """Find out what a toon takes before there is one; of a frame of `source`, both (width, height).

        Noise takes as long as anything: flow looks everywhere for it.
        """
        noise, trial = np.random.default_rng(0), Steadying()
        seen, drawn = (noise.integers(0, 256, (*wh[::-1], 3), np.uint8) for wh in (source, size))
        for index in range(_TRIALS):
            frame = Frame(index=index, pts=index, time_base=_TIME_BASE, image=np.roll(seen, index, axis=1))
            toon = Toon(source=frame, toon=replace(frame, image=np.roll(drawn, index, axis=1)))
            if index:
                self._timed(trial, toon)
            else:
                trial(toon)

    def _timed(self, steadying: Steadying, toon: Toon) -> Toon:
        began = self._clock()
        steadied = steadying(toon)
        self._took(self._clock() - began)
        return steadied
