"""Steadying: every toon is blended with the one before it, as it was sent, brought to where things are now.

The causal form of `fastblend`, for streams that cannot wait: it looks at nothing that comes later, and since
what was sent holds something of all that was sent before, one neighbour does for many. What the source's flow
does not lead to for certain, and where the source's colours are others than they were, is drawn as it is: so
nothing leaves a trace behind.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import replace

from toonstream.stream.conditions import Conditioned
from toonstream.stream.pipeline import Stylizing
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.matching import FlowMatcher, Matcher, Remapped, as_levels, blended

__all__ = ["Steadied", "Steadying"]

_PAST = 1.5  # what was sent counts for so many times what is drawn, where it can be relied on


class Steadying:
    """Steadies toons, one by one, in order. What comes as the same picture again stays the same.

    Args:
        matcher: brings what was sent to where a frame is.
    """

    def __init__(self, matcher: Matcher | None = None) -> None:
        self._matcher = matcher or FlowMatcher()
        self._drawn: Toon | None = None  # the latest toon, as it came
        self._sent: Toon | None = None  # and as it was given
        self._cuts: deque[int] = deque()

    def cut(self, index: int) -> None:
        """Say that a scene begins with the frame of this index, before its toon comes; in order."""
        self._cuts.append(index)

    def __call__(self, toon: Toon) -> Toon:
        """Steady the next toon."""
        sent = toon if self._begins(toon) else self._steadied(toon)
        self._drawn, self._sent = toon, sent
        return sent

    def _begins(self, toon: Toon) -> bool:
        """Whether a scene begins with a toon, or a stream of another size."""
        before, is_cut = self._drawn, False
        while self._cuts and self._cuts[0] <= toon.source.index:
            self._cuts.popleft()
            is_cut = True
        return (
            is_cut
            or before is None
            or before.scene != toon.scene
            or before.toon.image.shape != toon.toon.image.shape
        )

    def _steadied(self, toon: Toon) -> Toon:
        assert self._drawn is not None
        assert self._sent is not None
        own, image = toon.toon.image, self._sent.toon.image
        if own is not self._drawn.toon.image:
            found = self._matcher.remap(toon.source, [self._sent], own=own)
            image = as_levels(blended(Remapped(styles=found.styles, weights=_PAST * found.weights), own))
        return replace(toon, toon=replace(toon.toon, image=image))


class Steadied:
    """Takes the toons of another stage and gives them steadied, at once.

    Args:
        stage: what draws them.
        matcher: see `Steadying`.
    """

    def __init__(self, stage: Stylizing, matcher: Matcher) -> None:
        self._stage = stage
        self._steadying = Steadying(matcher)

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        """Take the next frame; give the ones that became final."""
        return map(self._steadying, self._stage.push(conditioned))

    def finish(self) -> Iterator[Toon]:
        """The stream has ended: give the rest."""
        return map(self._steadying, self._stage.finish())
