"""Figures of sequences that are made so that the figures are known."""

from collections.abc import Callable, Iterable, Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.temporal.measure import (
    Drift,
    Figures,
    Look,
    Meter,
    Survey,
    drift,
    outline_score,
    warped_error,
)

SIDE = 64
Image = np.ndarray


def texture(
    seed: int, width: int = SIDE, height: int = SIDE, *, sigma: float = 2.0, gain: float = 1.0
) -> Image:
    """Smooth noise around grey, three channels of their own."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    return np.clip(128 + gain * 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def flat(*colour: int) -> Image:
    return np.full((SIDE, SIDE, 3), colour, np.uint8)


def figures(sources: Sequence[Image], toons: Iterable[Image]) -> Figures:
    survey, meter = Survey(), Meter()
    for source, toon in zip(sources, toons, strict=True):
        meter.push(survey.push(source), toon)
    return meter.figures


def pan(frames: int, step: int, *, seed: int = 1) -> list[Image]:
    """A camera that moves over a texture by whole pixels."""
    wide = texture(seed, SIDE + frames * step)
    return [wide[:, index * step : index * step + SIDE] for index in range(frames)]


def test_a_still_source_and_a_still_toon_have_no_error() -> None:
    picture = texture(1)
    got = figures([picture] * 4, [255 - picture] * 4)
    assert got.frames == 4
    assert (got.motion, got.warped, got.source_warped) == pytest.approx((0.0, 0.0, 0.0), abs=1e-3)
    assert got.sharpness == pytest.approx(1.0, rel=1e-3)
    assert got.colour is not None
    assert got.colour > 5


def test_the_source_itself_is_as_good_as_the_source() -> None:
    sources = pan(6, 2)
    got = figures(sources, sources)
    assert got.ratio == pytest.approx(1.0)
    assert got.sharpness == pytest.approx(1.0)
    assert (got.outline, got.colour) == (1.0, 0.0)
    assert got.flicker == got.source_flicker
    assert got.motion == pytest.approx(2 / SIDE, rel=0.1)


def test_a_toon_that_moves_with_its_source_has_little_error_and_one_that_stands_still_much() -> None:
    sources = pan(6, 2)
    following = figures(sources, [255 - source for source in sources])
    standing = figures(sources, [255 - sources[0]] * 6)
    assert following.warped is not None
    assert standing.warped is not None
    assert following.ratio == pytest.approx(1.0, rel=0.05)
    assert standing.warped > 10 * following.warped


def test_the_error_is_the_mean_square_along_the_flow_where_it_can_be_trusted() -> None:
    before, after = flat(10, 10, 10), flat(13, 10, 14)
    seen = np.zeros((SIDE, SIDE), bool)
    still = np.zeros((SIDE, SIDE, 2), np.float32)
    assert warped_error(before, after, still, seen) is None
    seen[5, 5] = True
    assert warped_error(before, after, still, seen) == pytest.approx((9 + 16) / 3)
    after[6, 6] = 255  # not trusted, so not counted
    assert warped_error(before, after, still, seen) == pytest.approx((9 + 16) / 3)
    moved = np.roll(texture(2), 3, axis=1)
    back = np.full((SIDE, SIDE, 2), (-3, 0), np.float32)
    seen[:, 3:] = True
    assert warped_error(texture(2), moved, back, seen) == pytest.approx(0.0)


@given(st.floats(0.5, 8.0), st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_white_noise_is_measured_as_its_deviation(sigma: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    toons = [
        np.round(128 + sigma * random.standard_normal((SIDE, SIDE, 3))).astype(np.uint8) for _ in range(8)
    ]
    got = figures([flat(90, 120, 150)] * 8, toons)
    rounded = float(np.std(np.stack(toons)))
    assert got.flicker == pytest.approx(rounded, rel=0.05)
    assert got.warped == pytest.approx(2 * rounded**2, rel=0.05)
    assert got.source_flicker == 0.0
    assert got.ratio is None  # the source has no error of its own


@given(st.integers(1, 20))
@settings(max_examples=10, deadline=None)
def test_a_toon_that_flashes_flickers_and_one_that_fades_does_not(levels: int) -> None:
    sources = [flat(90, 120, 150)] * 6
    flashing = figures(sources, [flat(*[100 + levels * (index % 2)] * 3) for index in range(6)])
    fading = figures(sources, [flat(*[100 + levels * index] * 3) for index in range(6)])
    assert flashing.flicker == pytest.approx(2 * levels / np.sqrt(6))
    assert fading.flicker == 0.0
    assert flashing.warped == fading.warped == pytest.approx(levels**2)


def test_flicker_is_looked_for_where_the_source_is_flat_and_still() -> None:
    source = np.where(np.arange(SIDE)[None, :, None] < SIDE // 2, flat(90, 120, 150), texture(3))
    random = np.random.default_rng(1)
    busy = [source.copy() for _ in range(5)]
    for toon in busy:  # noise on the textured half alone
        toon[:, SIDE // 2 + 8 :] = random.integers(0, 255, (SIDE, SIDE // 2 - 8, 3))
    assert figures([source] * 5, busy).flicker == 0.0
    moving = figures(pan(5, 2), [texture(index) for index in range(5)])
    assert moving.flicker is None


def test_nothing_is_compared_across_a_cut() -> None:
    first, second = texture(4, sigma=8.0, gain=1.2), texture(9, sigma=8.0, gain=1.2)
    sources = [first] * 4 + [second] * 4
    got = figures(sources, [flat(20, 20, 20)] * 4 + [flat(200, 200, 200)] * 4)
    assert (got.warped, got.source_warped) == pytest.approx((0.0, 0.0), abs=1e-3)
    survey = Survey()
    sights = [survey.push(source) for source in sources]
    assert [sight.flow is None for sight in sights] == [True, False, False, False] * 2
    assert [sight.flat is None for sight in sights] == [True, True, False, False] * 2


def test_blur_costs_sharpness_and_lines_give_it() -> None:
    picture = texture(5, sigma=1.0)
    blurred = cv2.GaussianBlur(picture, (0, 0), 2.0)
    soft, sharp = figures([picture], [blurred]).sharpness, figures([blurred], [picture]).sharpness
    assert soft is not None
    assert sharp is not None
    assert soft < 0.2
    assert sharp == pytest.approx(1 / soft)


def test_colours_are_compared_without_their_lines() -> None:
    grey, lined = flat(119, 119, 119), flat(119, 119, 119)
    lined[::8] = 0
    assert figures([grey], [grey]).colour == 0.0
    known = figures([grey], [flat(0, 0, 0)]).colour
    assert known == pytest.approx(50.0, abs=0.3)  # 119 is the grey halfway between black and white
    drawn = figures([grey], [lined]).colour
    assert drawn is not None
    assert drawn < known / 4


def strokes(*columns: int) -> Image:
    mask = np.zeros((256, 256), bool)
    for column in columns:
        mask[:, column] = True
    return mask


@pytest.mark.parametrize(
    ("lines", "wanted", "score"),
    [
        (strokes(), strokes(), 1.0),
        (strokes(50), strokes(), 0.0),
        (strokes(), strokes(50), 0.0),
        (strokes(50), strokes(50), 1.0),
        (strokes(52), strokes(50), 1.0),  # near enough
        (strokes(60), strokes(50), 0.0),
        (strokes(50, 100), strokes(50), 2 / 3),  # P = 1/2, R = 1
        (strokes(50), strokes(50, 100, 150), 1 / 2),  # P = 1, R = 1/3
    ],
)
def test_the_outline_is_scored_by_precision_and_recall(lines: Image, wanted: Image, score: float) -> None:
    assert outline_score(lines, wanted) == pytest.approx(score)
    assert outline_score(wanted, lines) == pytest.approx(score)


def test_an_outline_that_is_kept_scores_above_one_that_is_lost() -> None:
    picture = flat(200, 200, 200)
    cv2.rectangle(picture, (16, 16), (48, 48), (20, 20, 20), 2)
    kept = figures([picture], [np.clip(picture, 60, 160)])
    assert kept.outline == pytest.approx(1.0, abs=0.05)
    assert figures([picture], [flat(200, 200, 200)]).outline == 0.0


def look(images: Iterable[Image]) -> Look:
    seen = Look()
    for image in images:
        seen.push(image)
    return seen


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_the_same_pictures_have_not_drifted_however_often_they_are_seen(
    once: int, again: int, seed: int
) -> None:
    pictures = [texture(seed), texture(seed + 1)]
    got = drift(look(pictures * once), look(pictures * again))
    assert (got.colour, got.sharpness) == pytest.approx((0.0, 1.0), abs=1e-4)


def test_drift_is_the_change_of_colour_and_of_sharpness() -> None:
    assert drift(look([flat(119, 119, 119)]), look([flat(0, 0, 0)])).colour == pytest.approx(50.0, abs=0.3)
    half = np.concatenate((flat(119, 119, 119)[: SIDE // 2], flat(0, 0, 0)[SIDE // 2 :]))
    assert drift(look([half]), look([half[::-1]])).colour == pytest.approx(50.0, abs=0.3)  # mean is the same
    picture = texture(6, gain=0.4)
    doubled = np.clip(128 + 2 * (picture.astype(int) - 128), 0, 255).astype(np.uint8)
    assert drift(look([picture]), look([doubled])).sharpness == pytest.approx(4.0, rel=0.02)


def test_a_slow_drift_has_no_flicker_and_shows_in_the_looks() -> None:
    sources = [texture(7)] * 40
    toons = [flat(100 + index // 4, 110, 120) for index in range(40)]
    got = figures(sources, toons)
    assert got.warped == pytest.approx(9 / 39 / 3)
    early, late = look(toons[:4]), look(toons[-4:])
    assert drift(early, late).colour > 1.0


def test_before_the_first_frame_nothing_is_known() -> None:
    assert Meter().figures == Figures(
        frames=0,
        motion=None,
        warped=None,
        source_warped=None,
        flicker=None,
        source_flicker=None,
        sharpness=None,
        outline=None,
        colour=None,
    )
    assert drift(Look(), Look()) == Drift(colour=0.0, sharpness=1.0)


@pytest.mark.parametrize("shape", [(16, 16), (17, 300), (33, 21)])
def test_any_size_can_be_measured(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(3)
    frames = [random.integers(0, 255, (*shape, 3), dtype=np.uint8) for _ in range(4)]
    assert figures(frames, frames).frames == 4


def test_memory_does_not_grow_with_the_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    survey, meter = Survey(flow=lambda one, _: np.zeros((*one.shape[:2], 2), np.float32)), Meter()
    picture: Callable[[int], Image] = lambda index: np.roll(texture(8), index, axis=0)  # noqa: E731
    for index in range(50):
        meter.push(survey.push(picture(index)), picture(index))
    assert len(survey._before) == len(survey._calm) == len(meter._before) == 2
