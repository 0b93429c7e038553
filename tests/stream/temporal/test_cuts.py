"""Cuts are found; flashes, fades of exposure and pans are not taken for them."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame
from toonstream.stream.temporal.cuts import CutDetector, Scenes

Image = NDArray[np.uint8]


def scene(seed: int, width: int = 320) -> Image:
    """A picture of blobs in the colours of its own scene."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (14, width // 13, 3)) * random.uniform(0.3, 1.0, 3)
    return np.asarray(cv2.resize(coarse, (width, 180), interpolation=cv2.INTER_CUBIC).clip(0, 255), np.uint8)


def cuts(*images: Image) -> list[int]:
    detector = CutDetector()
    return [number for number, image in enumerate(images) if detector.push(image)]


def brighter(image: Image, gain: float) -> Image:
    return np.asarray((image * gain).clip(0, 255), np.uint8)


def test_a_new_scene_is_a_cut_where_it_begins() -> None:
    """Random blobs may look alike by chance; nine pairs in ten do not."""
    pairs = [(scene(seed), scene(seed + 100)) for seed in range(100)]
    found = [cuts(one, one, other, other, one) for one, other in pairs]
    assert all(set(cut) <= {2, 4} for cut in found)
    assert sum(cut == [2, 4] for cut in found) >= 90


@given(seed=st.integers(0, 10_000), gain=st.floats(0.4, 1.6))
@settings(deadline=None)
def test_a_change_of_exposure_is_no_cut(seed: int, gain: float) -> None:
    picture = scene(seed)
    assert cuts(picture, brighter(picture, gain), picture) == []


@pytest.mark.parametrize("level", [0, 255], ids=["black", "white"])
def test_a_flash_is_no_cut_but_hides_none(level: int) -> None:
    blank = np.full_like(scene(1), level)
    assert cuts(scene(1), blank, blank, scene(1)) == []
    assert cuts(scene(1), blank, blank, scene(2), scene(2)) == [3]


@given(seed=st.integers(0, 10_000), step=st.integers(-50, 50))
@settings(deadline=None)
def test_a_whip_pan_is_no_cut(seed: int, step: int) -> None:
    wide = scene(seed, width=900)
    start = 290
    views = [wide[:, start + step * number :][:, :320] for number in range(6)]
    assert cuts(*views) == []


def test_noise_is_no_cut() -> None:
    random = np.random.default_rng(0)
    picture = scene(3)
    takes = [(picture + random.normal(0, 12, picture.shape)).clip(0, 255).astype(np.uint8) for _ in range(3)]
    assert cuts(*takes) == []


def test_scenes_are_numbered() -> None:
    scenes = Scenes(lambda frame: Conditioned(frame=frame, hints={}))
    pictures = [scene(1), scene(1), scene(2), scene(2), scene(1)]
    frames = [
        Frame(index=index, pts=index, time_base=Fraction(1, 24), image=picture)
        for index, picture in enumerate(pictures)
    ]
    numbered = [scenes(frame) for frame in frames]
    assert [each.scene for each in numbered] == [0, 0, 1, 1, 2]
    assert [each.frame for each in numbered] == frames
