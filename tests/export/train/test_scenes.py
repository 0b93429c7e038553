"""Drawn scenes: what is in them is known, and a teacher's drawing of them is evened out over it."""

import cv2
import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from toonstream.export.train.scenes import draw_scene, even_out

SIDE = 96


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_areas_fill_the_scene_and_follow_the_seed(seed: int) -> None:
    scene, again = (draw_scene(np.random.default_rng(seed), SIDE) for _ in range(2))
    assert scene.picture.shape == (SIDE, SIDE, 3)
    assert np.array_equal(scene.picture, again.picture)
    filled = scene.areas.astype(int).sum(0)
    assert np.abs(filled - 255).max() <= len(scene.areas)
    assert all(area.any() for area in scene.areas)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_rims_go_and_what_is_plain_stays(seed: int) -> None:
    scene = draw_scene(np.random.default_rng(seed), SIDE)
    plain = even_out(scene.picture, scene.areas)
    largest = scene.areas[np.argmax((scene.areas == 255).sum((1, 2)))]
    away = cv2.distanceTransform((largest == 255).astype(np.uint8), cv2.DIST_L2, 5)
    inside = away > 3
    assume((away > 6).sum() > 600)
    assert np.abs(plain[inside].astype(int) - scene.picture[inside]).max() <= 3

    rimmed = scene.picture.copy()
    rim = (away > 0) & (away < 5)
    rimmed[rim] = np.clip(rimmed[rim].astype(int) + 20, 0, 255)
    apart = np.abs(even_out(rimmed, scene.areas)[inside].astype(int) - plain[inside])
    assert apart.max() <= 1


def test_areas_stay_crisp() -> None:
    areas = np.zeros((2, SIDE, SIDE), np.uint8)
    areas[0, :, :48], areas[1, :, 48:] = 255, 255
    drawn = np.zeros((SIDE, SIDE, 3), np.uint8)
    drawn[:, 48:] = 200
    soft = np.asarray(cv2.GaussianBlur(drawn, (0, 0), 2.0), dtype=np.uint8)
    assert np.array_equal(even_out(soft, areas), drawn)


def test_slivers_take_their_mean() -> None:
    areas = np.zeros((2, SIDE, SIDE), np.uint8)
    areas[1, 40, 30:50] = 120
    areas[0] = 255 - areas[1]
    drawn = np.full((SIDE, SIDE, 3), 180, np.uint8)
    drawn[40, 30:50] = 80
    even = even_out(drawn, areas)
    assert np.abs(even[areas[1] == 0].astype(int) - 180).max() <= 1
    assert np.abs(even[40, 35] - (80 * 120 + 180 * 135) / 255).max() <= 2
