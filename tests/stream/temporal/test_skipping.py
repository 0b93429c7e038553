"""Skipping: still frames cost nothing, wait for nobody for long, and hide nothing that changes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toonstream.stream.conditions import Conditioned
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.skipping import Skipping, difference, thumbnail

Film = Callable[..., list[Conditioned]]


def of_one_scene(one: Conditioned, other: Conditioned) -> bool:
    return one.scene == other.scene


def pictures(levels: list[int]) -> list[NDArray[np.uint8]]:
    return [np.full((6, 8, 3), level, np.uint8) for level in levels]


@given(
    shown=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=30),
    threshold=st.sampled_from([0.0, 3.0]),
    lookahead=st.integers(0, 4),
    patience=st.integers(0, 4),
)
@settings(max_examples=80, deadline=None)
def test_every_frame_comes_out_with_the_toon_of_one_that_looks_like_it(
    film: Film,
    late: Any,
    shown: list[tuple[int, int]],
    threshold: float,
    lookahead: int,
    patience: int,
) -> None:
    scenes = [sum(cut for _, cut in shown[: index + 1]) for index in range(len(shown))]
    frames = film(scenes, pictures([40 * level for level, _ in shown]))
    inner = late(lookahead)
    stage = Skipping(inner, threshold=threshold, patience=patience, alike=of_one_scene)
    out: list[Toon] = []
    for frame in frames:
        out += stage.push(frame)
        assert stage.held <= lookahead * (patience + 1)
    out += stage.finish()
    assert stage.held == 0
    assert [toon.source for toon in out] == [frame.frame for frame in frames]
    for toon, frame in zip(out, frames, strict=True):
        assert (toon.toon.index, toon.toon.pts, toon.toon.duration) == (
            frame.frame.index,
            frame.frame.pts,
            frame.frame.duration,
        )
        assert toon.scene == frame.scene
        assert np.array_equal(toon.toon.image, 255 - frame.frame.image)
    changes = {
        index
        for index in range(len(frames))
        if index == 0 or shown[index][0] != shown[index - 1][0] or scenes[index] != scenes[index - 1]
    }
    assert changes <= set(inner.drawn)
    assert len(inner.drawn) <= len(changes) * (1 + lookahead)
    if lookahead == 0:
        assert set(inner.drawn) == changes


def test_a_still_picture_costs_a_look_ahead_and_then_nothing(film: Film, late: Any) -> None:
    inner = late(3)
    stage = Skipping(inner, threshold=2.0, patience=2)
    frames = film([0] * 50, pictures([90] * 50))
    came = [len(list(stage.push(frame))) for frame in frames]
    assert came == [0, 0, 0, 0, 0, 6, *[1] * 44]  # two wait, three are drawn for the first one's toon
    assert len(inner.drawn) == 4


def test_film_in_sixty_frames_a_second_costs_what_film_costs(film: Film, late: Any) -> None:
    """3:2 pulldown: each frame of film is there three times or twice."""
    levels = [level for pair in range(12) for level in [20 * pair] * 3 + [20 * pair + 10] * 2]
    inner = late(3)
    stage = Skipping(inner, threshold=2.0, patience=2)
    out = [toon for frame in film([0] * 60, pictures(levels)) for toon in stage.push(frame)]
    assert len(inner.drawn) == 24
    assert len(out) >= 60 - 3 * 3


def test_what_changes_slowly_is_drawn_as_soon_as_it_has_changed_enough(film: Film, late: Any) -> None:
    inner = late()
    stage = Skipping(inner, threshold=2.5, patience=2)
    out = [toon for frame in film([0] * 100, pictures(list(range(100)))) for toon in stage.push(frame)]
    assert inner.drawn == list(range(0, 100, 3))
    assert all(np.abs(toon.toon.image - (255.0 - toon.source.image)).max() <= 2 for toon in out)


def test_frames_that_are_not_to_be_alike_are_not(film: Film, late: Any) -> None:
    inner = late()
    stage = Skipping(inner, threshold=255.0, patience=2, alike=lambda one, other: False)
    assert len([toon for frame in film([0] * 4) for toon in stage.push(frame)]) == 4
    assert inner.drawn == [0, 1, 2, 3]


def test_a_picture_of_another_size_is_another_picture(film: Film, late: Any) -> None:
    inner = late()
    stage = Skipping(inner, threshold=255.0, patience=2)
    for frame in film([0, 0], [np.zeros((6, 8, 3), np.uint8), np.zeros((8, 6, 3), np.uint8)]):
        list(stage.push(frame))
    assert inner.drawn == [0, 1]


def test_with_nothing_allowed_only_the_same_pixels_are_the_same(film: Film, late: Any) -> None:
    one = np.full((480, 640, 3), 100, np.uint8)
    other = one.copy()
    other[7, 7, 1] = 101
    inner = late()
    stage = Skipping(inner, threshold=0.0, patience=2)
    for frame in film([0] * 4, [one, one.copy(), other, other]):
        list(stage.push(frame))
    assert inner.drawn == [0, 2]


def test_a_mouth_counts_as_much_in_a_large_picture() -> None:
    """One part in a thousand of a picture changes by 20 levels; noise of 4 levels is everywhere."""
    random = np.random.default_rng(1)
    face = random.uniform(60, 200, (480, 640, 3))
    noisy = [(face + random.normal(0, 4, face.shape)).clip(0, 255).astype(np.uint8) for _ in range(2)]
    talking = noisy[1].copy()
    talking[300:312, 300:326] = np.clip(talking[300:312, 300:326].astype(int) - 40, 0, 255)
    small = [thumbnail(image) for image in (*noisy, talking)]
    assert difference(small[0], small[1]) < 1.0
    assert difference(small[0], small[2]) > 2.0


@pytest.mark.parametrize("size", [(1, 1, 3), (3, 500, 3), (480, 640, 3)])
def test_pictures_of_any_size_have_a_thumbnail(size: tuple[int, int, int]) -> None:
    dark, light = np.zeros(size, np.uint8), np.full(size, 10, np.uint8)
    assert max(thumbnail(dark).shape) <= 160
    assert difference(thumbnail(dark), thumbnail(light)) == pytest.approx(10.0)
