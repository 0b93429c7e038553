"""Frames and stages that draw nothing, for what wraps the stylizer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.matching import Remapped
from toonstream.stream.temporal.patchmatch import Compare


class Late:
    """Draws the negative of every frame, some frames late; a scene is out before the next one begins."""

    def __init__(self, lookahead: int = 0) -> None:
        self.lookahead = lookahead
        self.drawn: list[int] = []
        self._held: list[Conditioned] = []

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        self.drawn.append(conditioned.frame.index)
        ended = [held for held in self._held if held.scene != conditioned.scene]
        self._held = [*self._held[len(ended) :], conditioned]
        ready = len(self._held) - self.lookahead
        final, self._held = [*ended, *self._held[: max(0, ready)]], self._held[max(0, ready) :]
        yield from map(self._toon, final)

    def finish(self) -> Iterator[Toon]:
        yield from map(self._toon, self._held)
        self._held = []

    def _toon(self, conditioned: Conditioned) -> Toon:
        frame = conditioned.frame
        return Toon(source=frame, toon=replace(frame, image=255 - frame.image), scene=conditioned.scene)


class Recorder:
    """Takes everything for being in place already, and notes who was brought where."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int], Compare]] = []

    def remap(
        self,
        target: Frame,
        sources: Sequence[Toon],
        *,
        compare: Compare = "own",
        own: NDArray[np.uint8] | None = None,
    ) -> Remapped:
        self.asked.append((target.index, [toon.source.index for toon in sources], compare))
        styles = np.stack([toon.toon.image for toon in sources]).astype(np.float32)
        return Remapped(styles=styles, weights=np.ones(styles.shape[:3], np.float32))


def film(scenes: Iterable[int], images: Sequence[NDArray[np.uint8]] | None = None) -> list[Conditioned]:
    """Frames with these numbers of scenes, at uneven times, each of a grey of its own."""
    return [
        Conditioned(
            frame=Frame(
                index=index,
                pts=10 * index + index % 3,
                time_base=Fraction(1, 240),
                image=np.full((4, 6, 3), 5 * index % 251, np.uint8) if images is None else images[index],
                duration=10,
            ),
            hints={},
            scene=scene,
        )
        for index, scene in enumerate(scenes)
    ]


@pytest.fixture(scope="session", name="film")
def film_fixture() -> Callable[..., list[Conditioned]]:
    return film


@pytest.fixture(scope="session", name="late")
def late_fixture() -> type[Late]:
    return Late


@pytest.fixture(scope="session", name="recorder")
def recorder_fixture() -> type[Recorder]:
    return Recorder
