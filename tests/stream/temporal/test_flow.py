"""Flow leads where the picture went, and is not trusted where it cannot be."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toonstream.stream.temporal.flow import Flow, flow, trusted, warp


def texture(seed: int, height: int = 96, width: int = 128) -> NDArray[np.uint8]:
    """A picture with something to hold on to everywhere."""
    random = np.random.default_rng(seed)
    noise = sum(
        scale * cv2.resize(random.standard_normal((height // scale, width // scale, 3)), (width, height))
        for scale in (4, 8, 16)
    )
    return np.asarray((128 + 12 * noise).clip(0, 255), np.uint8)


def constant(shape: tuple[int, int], x: float, y: float) -> Flow:
    return np.broadcast_to(np.array([x, y], np.float32), (*shape, 2)).copy()


@given(seed=st.integers(0, 1000), x=st.integers(-6, 6), y=st.integers(-6, 6))
@settings(max_examples=20, deadline=None)
def test_flow_leads_from_the_source_to_where_the_target_shows_it(seed: int, x: int, y: int) -> None:
    wide = texture(seed, 128, 160)
    source, target = wide[16:112, 16:144], wide[16 - y : 112 - y, 16 - x : 144 - x]
    found = flow(source, target)
    assert found.shape == (96, 128, 2)
    assert found.dtype == np.float32
    middle = (slice(16, -16), slice(16, -16))
    assert np.abs(found[middle] - (x, y)).mean() < 0.2
    fetched = warp(target, found)
    assert fetched.dtype == np.uint8
    assert np.abs(fetched[middle].astype(float) - source[middle]).mean() < 2.0


@pytest.mark.parametrize("shape", [(4, 4), (16, 16), (640, 16), (16, 640), (33, 47)])
def test_small_and_long_pictures_have_flow(shape: tuple[int, int]) -> None:
    picture = texture(1)
    grey = cv2.resize(picture[..., 0], shape[::-1])
    found = flow(grey, np.roll(grey, 1, 1), effort="fast")
    assert found.shape == (*shape, 2)
    assert np.isfinite(found).all()


def test_the_preset_is_a_choice_between_time_and_care() -> None:
    source, target = texture(3), np.roll(texture(3), 2, axis=1)
    for effort in ("ultrafast", "fast", "light", "medium"):
        found = flow(source, target, effort=effort)
        assert np.median(found[..., 0]) == pytest.approx(2.0, abs=0.2)


@given(x=st.integers(-9, 9), y=st.integers(-9, 9), channels=st.sampled_from([None, 1, 3, 7]))
@settings(deadline=None)
def test_a_warp_by_whole_pixels_moves_the_picture(x: int, y: int, channels: int | None) -> None:
    random = np.random.default_rng(5)
    image = random.random((20, 30) if channels is None else (20, 30, channels), dtype=np.float32)
    moved = warp(image, constant((20, 30), x, y))
    row = (np.arange(20) + y).clip(0, 19)
    column = (np.arange(30) + x).clip(0, 29)
    assert np.array_equal(moved, image[row][:, column])


def test_the_bound_of_the_forward_backward_check() -> None:
    shape = (24, 40)
    forward = constant(shape, 10.0, 0.0)
    for backward, expected in ((-10.69, True), (-10.72, False), (-9.31, True), (-9.28, False)):
        inside = trusted(forward, constant(shape, backward, 0.0))
        assert inside[:, :29].all() == expected
        assert inside[:, :29].any() == expected
        assert not inside[:, 30:].any()  # leads out of the picture


def test_what_a_moving_block_uncovers_is_not_trusted() -> None:
    ground, block = texture(1), texture(2)[:32, :32]
    frames = []
    for left in (40, 52):
        frame = ground.copy()
        frame[32:64, left : left + 32] = block
        frames.append(frame)
    before, after = frames
    seen = trusted(flow(after, before), flow(before, after))
    assert seen[:24].mean() > 0.95  # the ground, away from the block
    assert seen[36:60, 58:80].mean() > 0.85  # the block
    assert seen[36:60, 40:50].mean() < 0.3  # the ground that the block stood on
