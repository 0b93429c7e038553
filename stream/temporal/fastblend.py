"""FastBlend: toons that flicker become the mean of their neighbours' toons, each brought to where they are.

By PatchMatch, that is FastBlend's own mean. By optical flow, which warps, a toon keeps its own finest details
and takes the mean of the rest, and neighbours count as far as their flow can be trusted.

A stage behind whatever draws. It looks `window` frames ahead and as many back, never into another scene, and
holds no more frames than that.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace

from toonstream.stream.conditions import Conditioned
from toonstream.stream.pipeline import Stylizing
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.matching import Matcher, as_levels, blended

__all__ = ["Deflicker"]


class Deflicker:
    """Takes the toons of another stage and gives them with less flicker, `window` frames later.

    Args:
        stage: what draws them.
        matcher: brings the neighbours' toons to where a frame is.
        window: neighbours on each side.
        accurate: neighbours are matched by what they agree on (FastBlend's accurate mode), and not each by
            itself (its balanced mode).
    """

    def __init__(self, stage: Stylizing, matcher: Matcher, *, window: int, accurate: bool = False) -> None:
        self._stage = stage
        self._matcher = matcher
        self._window = window
        self._accurate = accurate
        self._held: deque[Toon] = (
            deque()
        )  # of one scene: those that are out and still neighbours, and the rest
        self._out = 0  # how many of them are out

    @property
    def held(self) -> int:
        """Frames kept."""
        return len(self._held)

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        """Take the next frame; give the ones that became final, in order."""
        return self._smoothed(self._stage.push(conditioned))

    def finish(self) -> Iterator[Toon]:
        """The stream has ended: give the rest."""
        yield from self._smoothed(self._stage.finish())
        yield from self._end()

    def _smoothed(self, toons: Iterable[Toon]) -> Iterator[Toon]:
        for toon in toons:
            if self._held and self._held[-1].scene != toon.scene:
                yield from self._end()
            self._held.append(toon)
            if len(self._held) - self._out > self._window:
                yield self._next()

    def _end(self) -> Iterator[Toon]:
        while self._out < len(self._held):
            yield self._next()
        self._held.clear()
        self._out = 0

    def _next(self) -> Toon:
        place = self._out
        toon = self._held[place]
        neighbours = [
            other
            for number, other in enumerate(self._held)
            if number != place and abs(number - place) <= self._window
        ]
        self._out += 1
        while self._out > self._window:
            self._held.popleft()
            self._out -= 1
        if not neighbours:
            return toon
        own = toon.toon.image
        remapped = self._matcher.remap(
            toon.source, neighbours, compare="mean" if self._accurate else "own", own=own
        )
        return replace(toon, toon=replace(toon.toon, image=as_levels(blended(remapped, own))))
