"""Deflickering as a stage: the same as over the whole clip at once, scene by scene, in bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toonstream.stream.conditions import Conditioned
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.fastblend import Deflicker
from toonstream.stream.temporal.matching import FlowMatcher, Remapped

Film = Callable[..., list[Conditioned]]
SCENES = st.lists(st.integers(1, 7), max_size=4).map(
    lambda lengths: [scene for scene, length in enumerate(lengths) for _ in range(length)]
)


@given(scenes=SCENES, window=st.integers(1, 4), lookahead=st.integers(0, 3), accurate=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_toon_is_the_mean_of_its_neighbours_in_its_own_scene(
    film: Film, late: Any, recorder: Any, scenes: list[int], window: int, lookahead: int, accurate: bool
) -> None:
    frames = film(scenes)
    matcher = recorder()
    stage = Deflicker(late(lookahead), matcher, window=window, accurate=accurate)
    out: list[Toon] = []
    for number, frame in enumerate(frames):
        out += stage.push(frame)
        assert stage.held <= 2 * window + 1
        assert len(out) >= number + 1 - lookahead - window
    out += stage.finish()
    assert [toon.source for toon in out] == [frame.frame for frame in frames]
    assert [(toon.toon.index, toon.toon.pts, toon.scene) for toon in out] == [
        (frame.frame.index, frame.frame.pts, frame.scene) for frame in frames
    ]
    asked = {target: (sources, compare) for target, sources, compare in matcher.asked}
    for index, toon in enumerate(out):
        around = [
            other
            for other in range(max(0, index - window), min(len(frames), index + window + 1))
            if scenes[other] == scenes[index]
        ]
        mean = np.mean([255.0 - frames[other].frame.image for other in around], axis=0)
        assert np.abs(toon.toon.image - mean).max() <= 0.5
        if len(around) > 1:
            assert asked[index] == (
                [other for other in around if other != index],
                "mean" if accurate else "own",
            )


@pytest.mark.parametrize("whole", [False, True])
def test_whole_toons_are_averaged_as_they_are_and_warped_ones_without_their_finest_details(
    film: Film, late: Any, recorder: Any, whole: bool
) -> None:
    random = np.random.default_rng(3)
    images = [random.integers(0, 256, (24, 24, 3), dtype=np.uint8) for _ in range(3)]

    class Textured(recorder):  # type: ignore[misc]
        def remap(self, *words: Any, **more: Any) -> Remapped:
            return replace(super().remap(*words, **more), whole=whole)

    stage = Deflicker(late(0), Textured(), window=1)
    toons = [toon for frame in film([0] * 3, images) for toon in stage.push(frame)] + list(stage.finish())
    apart = np.abs(toons[1].toon.image - np.mean([255.0 - image for image in images], axis=0))
    assert (apart.max() <= 0.5) == whole


class Flickering:
    """Draws frames with colours that jump about."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        frame = conditioned.frame
        image = 0.5 * frame.image + 60 + self._random.uniform(-20, 20, 3)
        yield Toon(source=frame, toon=replace(frame, image=image.astype(np.uint8)))

    def finish(self) -> Iterator[Toon]:
        yield from ()


@pytest.mark.parametrize("accurate", [False, True])
def test_colours_that_jump_are_smoothed_where_things_move(film: Film, accurate: bool) -> None:
    frames = film([0] * 8, moving(8))
    stage = Deflicker(Flickering(), FlowMatcher(effort="fast"), window=2, accurate=accurate)
    out = [toon for frame in frames for toon in stage.push(frame)] + list(stage.finish())
    flickering = Flickering()
    plain = [toon for frame in frames for toon in flickering.push(frame)]
    wanted = [0.5 * frame.frame.image + 60 for frame in frames]

    def error(toons: list[Toon]) -> float:
        return float(
            np.mean(
                [
                    np.abs(toon.toon.image - want)[8:-8, 8:-8].mean()
                    for toon, want in zip(toons, wanted, strict=True)
                ]
            )
        )

    assert error(out) < 0.75 * error(plain)


def moving(number: int) -> list[NDArray[np.uint8]]:
    """A picture with something to hold on to everywhere, that moves by two pixels a frame."""
    random = np.random.default_rng(3)
    noise = sum(
        scale * cv2.resize(random.standard_normal((64 // scale, 128 // scale, 3)), (128, 64))
        for scale in (4, 8)
    )
    wide = (128 + 14 * noise).clip(0, 255).astype(np.uint8)
    return [np.ascontiguousarray(wide[:, 2 * index : 2 * index + 96]) for index in range(number)]
