"""The renderer does to a picture what the captions say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toonstream.export.outline import OutlineExtractor
from toonstream.export.train.render import GRADES, Attributes, compose, flatten, grade, ink

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def scene() -> NDArray[np.float32]:
    """A soft ramp with a dark disc on it and a little noise: (64, 64, 3) in [0, 1]."""
    row, column = np.mgrid[:64, :64].astype(np.float32)
    image = np.stack([0.4 + 0.4 * column / 63, 0.5 + 0.2 * row / 63, np.full_like(row, 0.45)], axis=-1)
    image[np.hypot(row - 32, column - 32) < 14] = (0.2, 0.25, 0.5)
    noise = np.random.default_rng(0).normal(0.0, 0.01, image.shape)
    return np.clip(image + noise, 0.0, 1.0).astype(np.float32)


def outline_of(image: NDArray[np.float32]) -> NDArray[np.float32]:
    return OutlineExtractor()((image * 255).astype(np.uint8)).astype(np.float32) / 255


def test_thicker_lines_are_darker_and_no_lines_leave_the_base() -> None:
    base = scene()
    outline = outline_of(base)
    none, thin, thick = (
        compose(base, outline, attributes)
        for attributes in (Attributes(line=0.0), Attributes(line=0.38), Attributes(line=0.96, line_width=2))
    )
    np.testing.assert_allclose(none, base, atol=1e-6)
    assert thick.mean() < thin.mean() < none.mean()


def test_warm_is_redder_and_less_blue_than_cool() -> None:
    base = scene()
    outline = np.zeros(base.shape[:2], np.float32)
    warm, cool = (compose(base, outline, Attributes(warmth=warmth)) for warmth in (1.0, -1.0))
    assert warm[..., 0].mean() > cool[..., 0].mean()
    assert warm[..., 2].mean() < cool[..., 2].mean()


def test_night_is_dark_and_blue() -> None:
    base = scene()
    night = compose(base, np.zeros(base.shape[:2], np.float32), Attributes(night=True))
    assert (night @ LUMA).mean() < 0.6 * (base @ LUMA).mean()
    assert night[..., 2].mean() > night[..., 0].mean()


def test_few_colours_are_few() -> None:
    ramp = np.repeat(np.linspace(0, 1, 256, dtype=np.float32)[None, :, None], 3, axis=2)
    drawn = compose(ramp, np.zeros(ramp.shape[:2], np.float32), Attributes(colours=2))[0, :, 0]
    flat = np.abs(np.diff(drawn)) < 1e-4
    assert flat.mean() > 0.6
    assert set(drawn[1:][flat].round(2)) == {0.0, 0.5, 1.0}
    assert (np.diff(drawn) > -1e-4).all()


def test_monochrome_has_no_colour() -> None:
    drawn = compose(scene(), np.zeros((64, 64), np.float32), Attributes(saturation=0.0))
    assert np.ptp(drawn, axis=-1).max() < 1e-5


def test_ink_is_nearly_grey_and_has_black_and_paper() -> None:
    drawn = ink(flatten(scene()))
    assert np.ptp(drawn, axis=-1).max() < 0.06
    assert drawn.max() > 0.9


def test_flatten_takes_the_noise_out_of_flat_areas() -> None:
    noisy = scene()
    assert (
        flatten(noisy)[28:36, 28:36].std(axis=(0, 1)).max() < 0.5 * noisy[28:36, 28:36].std(axis=(0, 1)).max()
    )


@pytest.mark.parametrize("style", GRADES)
def test_grades_stay_in_range_and_tell_styles_apart(style: str) -> None:
    graded = grade(scene(), GRADES[style])
    assert graded.min() >= 0.0
    assert graded.max() <= 1.0
    assert all(
        np.abs(graded - grade(scene(), GRADES[other])).mean() > 0.01 for other in GRADES if other != style
    )


@settings(max_examples=25, deadline=None)
@given(
    line=st.floats(0, 1),
    colours=st.integers(0, 8),
    saturation=st.floats(0, 2),
    warmth=st.floats(-1, 1),
    night=st.booleans(),
)
def test_every_attribute_leaves_a_picture(
    line: float, colours: int, saturation: float, warmth: float, night: bool
) -> None:
    attributes = Attributes(line=line, colours=colours, saturation=saturation, warmth=warmth, night=night)
    drawn = compose(scene(), outline_of(scene()), attributes)
    assert drawn.dtype == np.float32
    assert np.isfinite(drawn).all()
    assert drawn.min() >= 0.0
    assert drawn.max() <= 1.0
