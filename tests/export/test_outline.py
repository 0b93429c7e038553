"""The outline extractor finds edges, and only those."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.export.outline import OutlineExtractor


def disc(side: int, dark: int, light: int) -> np.ndarray:
    row, column = np.mgrid[:side, :side]
    inside = np.hypot(row - side / 2, column - side / 2) < side / 4
    return np.where(inside[..., None], dark, light).astype(np.uint8).repeat(3, axis=-1)


def test_a_flat_picture_has_no_outline() -> None:
    assert OutlineExtractor()(np.full((48, 64, 3), 127, np.uint8)).max() == 0


def test_the_outline_of_a_disc_lies_on_its_edge() -> None:
    outline = OutlineExtractor()(disc(128, 60, 190))
    row, column = np.nonzero(outline > 128)
    radius = np.hypot(row - 64, column - 64)
    assert len(radius) > 100
    assert abs(np.median(radius) - 32) < 3
    assert (np.abs(radius - 32) < 5).mean() > 0.99


def test_lines_grow_with_the_frame() -> None:
    small, large = (OutlineExtractor()(disc(side, 60, 190)) for side in (256, 768))
    assert (large > 128).sum() / (small > 128).sum() > 5  # 3 times as long and about 3 times as wide


def test_faint_noise_is_not_drawn() -> None:
    noisy = (
        np.random.default_rng(0).normal(128, 2, (96, 96, 1)).clip(0, 255).astype(np.uint8).repeat(3, axis=-1)
    )
    assert (OutlineExtractor()(noisy) > 128).mean() < 0.01


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 9))
def test_any_size_gives_an_outline_of_that_size(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    outline = OutlineExtractor()(image)
    assert outline.shape == (height, width)
    assert outline.dtype == np.uint8
