"""Keyframes: the networks draw every so-manieth frame, and both sides are brought to what lies between.

The first and the last frame of a scene are keyframes, whatever comes before and after: what lies between two
keyframes is of their scene. As a frame is the last of a scene only in hindsight, one that may be it waits for
the next one to come.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame
from toonstream.stream.pipeline import Stylizing
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.matching import Matcher, Remapped, as_levels, blended

__all__ = ["Keyframes"]

_LEAST = 0.05  # what a toon counts for where it cannot be relied on: enough where the other cannot, either


class Keyframes:
    """Has a stage draw keyframes only, and draws the frames between them itself.

    Args:
        stage: draws the keyframes; sees nothing else.
        matcher: brings the keyframes' toons to where a frame is.
        every: frames from one keyframe to the next; 1 makes all of them keyframes.
    """

    def __init__(self, stage: Stylizing, matcher: Matcher, *, every: int) -> None:
        self._stage = stage
        self._matcher = matcher
        self._every = every
        self._scene: int | None = None
        self._since: list[Conditioned] = []  # frames since the latest keyframe
        self._gaps: deque[list[Frame]] = deque()  # before each keyframe that the stage draws: what is between
        self._left: Toon | None = None  # the latest keyframe that is drawn

    @property
    def held(self) -> int:
        """Frames between keyframes that are not drawn yet."""
        return len(self._since) + sum(map(len, self._gaps))

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        """Take the next frame; give the ones that became final, in order."""
        if conditioned.scene != self._scene:
            yield from self._end()
            self._scene = conditioned.scene
            yield from self._draw(conditioned)
        elif len(self._since) + 1 == self._every:
            yield from self._draw(conditioned)
        else:
            self._since.append(conditioned)

    def finish(self) -> Iterator[Toon]:
        """The stream has ended: give the rest."""
        yield from self._end()
        yield from self._filled(self._stage.finish())

    def _end(self) -> Iterator[Toon]:
        """The scene has ended: its last frame is a keyframe."""
        if self._since:
            yield from self._draw(self._since.pop())

    def _draw(self, keyframe: Conditioned) -> Iterator[Toon]:
        self._gaps.append([conditioned.frame for conditioned in self._since])
        self._since.clear()
        return self._filled(self._stage.push(keyframe))

    def _filled(self, toons: Iterable[Toon]) -> Iterator[Toon]:
        for toon in toons:
            for frame in self._gaps.popleft():
                assert self._left is not None
                yield self._between(self._left, frame, toon)
            self._left = toon
            yield toon

    def _between(self, left: Toon, frame: Frame, right: Toon) -> Toon:
        """Blend what the two keyframes make of a frame; the nearer one counts for more."""
        remapped = self._matcher.remap(frame, [left, right], compare="others")
        part = (frame.pts - left.source.pts) / (right.source.pts - left.source.pts)
        near = np.array([1.0 - part, part], np.float32).reshape(-1, 1, 1)
        weights = near * np.maximum(remapped.weights, _LEAST)
        image = as_levels(blended(Remapped(styles=remapped.styles, weights=weights)))
        return Toon(source=frame, toon=replace(frame, image=image), scene=left.scene)
