"""Matchers bring what was drawn of one frame to where another is, and say where that is no use."""

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal import matching
from toonstream.stream.temporal.matching import FlowMatcher, Matcher, PatchMatcher, Remapped, blended
from toonstream.stream.temporal.patchmatch import PatchMatchSettings


def texture(seed: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    noise = sum(
        scale * cv2.resize(random.standard_normal((64 // scale, 96 // scale, 3)), (96, 64))
        for scale in (4, 8, 16)
    )
    return np.asarray((128 + 12 * noise).clip(0, 255), np.uint8)


def seen_from(seed: int, index: int, right: int) -> Frame:
    """A window onto a wide picture, (48, 64)."""
    image = np.ascontiguousarray(texture(seed)[8:56, 16 + right : 80 + right])
    return Frame(index=index, pts=index, time_base=Fraction(1, 24), image=image)


def drawn(frame: Frame) -> Toon:
    return Toon(source=frame, toon=replace(frame, image=255 - frame.image))


MATCHERS = [
    FlowMatcher(),
    PatchMatcher(device=torch.device("cpu"), settings=PatchMatchSettings(iterations=3)),
]


@pytest.mark.parametrize("matcher", MATCHERS, ids=["flow", "patchmatch"])
@pytest.mark.parametrize("compare", ["own", "mean", "others"])
def test_toons_are_brought_to_where_the_frame_is(matcher: Matcher, compare: matching.Compare) -> None:
    target = seen_from(1, 0, 0)
    sources = [drawn(seen_from(1, 1, 4)), drawn(seen_from(1, 2, -3))]
    remapped = matcher.remap(target, sources, compare=compare, own=255 - target.image)
    assert remapped.styles.shape == (2, 48, 64, 3)
    assert remapped.weights.shape == (2, 48, 64)
    assert remapped.styles.dtype == remapped.weights.dtype == np.float32
    middle = slice(8, -8), slice(8, -8)
    for style, weight in zip(remapped.styles, remapped.weights, strict=True):
        assert np.abs(style - (255.0 - target.image))[middle].mean() < 4.0
        assert weight[middle].mean() > 0.9
    together = blended(remapped, 255 - target.image)
    assert np.abs(together - (255.0 - target.image))[middle].mean() < 3.0


def test_flow_does_not_rely_on_a_frame_of_something_else() -> None:
    target, other = seen_from(1, 0, 0), drawn(seen_from(5, 1, 0))
    remapped = FlowMatcher().remap(target, [other])
    assert remapped.weights.mean() < 0.2
    own = 255 - target.image
    assert np.abs(blended(remapped, own) - own).mean() < 15
    assert np.abs(other.toon.image.astype(float) - own).mean() > 45


def test_toons_that_nobody_agrees_with_count_for_less() -> None:
    frames = [seen_from(1, index, 0) for index in range(4)]
    toons = [drawn(frame) for frame in frames]
    toons[3] = replace(toons[3], toon=replace(frames[3], image=np.zeros_like(frames[3].image)))
    own = toons[0].toon.image
    alone = FlowMatcher().remap(frames[0], toons[1:], own=own)
    compared = FlowMatcher().remap(frames[0], toons[1:], compare="mean", own=own)
    assert alone.weights.mean(axis=(1, 2)) == pytest.approx([1, 1, 1], abs=0.01)
    assert compared.weights[2].mean() < 0.5 * compared.weights[0].mean()
    assert np.abs(blended(compared, own) - own).mean() < np.abs(blended(alone, own) - own).mean()


@pytest.mark.parametrize("size", [(64, 48), (640, 480), (30, 22)])
def test_toons_of_another_size_than_their_sources_are_brought_there_too(size: tuple[int, int]) -> None:
    """As live streams have them; flow is found at half of the toon's size, whatever the source's."""
    frames = [seen_from(1, index, 4 * index) for index in range(2)]
    target, other = (
        replace(drawn(frame), toon=replace(frame, image=cv2.resize(255 - frame.image, size)))
        for frame in frames
    )
    remapped = FlowMatcher().remap(target.source, [other])
    assert remapped.styles.shape == (1, size[1], size[0], 3)
    assert remapped.weights.shape == (1, size[1], size[0])
    middle = slice(size[1] // 6, -size[1] // 6), slice(size[0] // 6, -size[0] // 6)
    assert np.abs(remapped.styles[0] - target.toon.image)[middle].mean() < 5.0
    assert remapped.weights[0][middle].mean() > 0.85


def test_colours_of_the_same_brightness_are_told_apart() -> None:
    """Flow is found on grey, and what has another colour there is not what it takes it for."""
    red, green = (np.full((48, 64, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 102, 0)))
    assert cv2.cvtColor(red, cv2.COLOR_RGB2GRAY)[0, 0] == cv2.cvtColor(green, cv2.COLOR_RGB2GRAY)[0, 0]
    frames = [
        Frame(index=index, pts=index, time_base=Fraction(1, 24), image=image)
        for index, image in enumerate((red, green))
    ]
    assert FlowMatcher().remap(frames[0], [drawn(frames[1])]).weights.max() < 0.1


@given(seed=st.integers(0, 99), count=st.integers(1, 3), weight=st.floats(0.0, 4.0))
@settings(max_examples=30, deadline=None)
def test_toons_are_blended_by_weight_in_all_but_their_finest_details(
    seed: int, count: int, weight: float
) -> None:
    random = np.random.default_rng(seed)
    own = random.integers(0, 256, (12, 20, 3), np.uint8)
    same = np.stack([own] * count).astype(np.float32)
    weights = np.full((count, 12, 20), weight, np.float32)
    assert np.abs(blended(Remapped(styles=same, weights=weights), own) - own).max() < 1e-3
    brighter = blended(Remapped(styles=same + 40, weights=weights), own)  # not a detail
    assert np.allclose(brighter, own + 40 * count * weight / (1 + count * weight), atol=1e-3)
    others = Remapped(styles=random.uniform(0, 255, same.shape).astype(np.float32), weights=weights)
    assert np.array_equal(blended(replace(others, weights=0 * weights), own), own)
    result = blended(others, own)

    def detail(picture: NDArray[np.float32]) -> float:
        return float(np.square(cv2.Laplacian(picture, cv2.CV_32F)).mean())

    mean = own + (weights[..., None] * (others.styles - own)).sum(axis=0) / (1 + count * weight)
    assert detail(result) >= detail(mean.astype(np.float32)) - 1e-3


def test_flows_are_found_once_for_both_ways_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(
        matching,
        "flow",
        lambda one, other, effort: found.append((one[0, 0], other[0, 0])) or np.zeros((4, 4, 2), np.float32),
    )
    frames = [
        Frame(index=index, pts=index, time_base=Fraction(1, 24), image=np.full((4, 4, 3), index, np.uint8))
        for index in range(9)
    ]
    matcher = FlowMatcher(reach=1)
    pairs = ((0, 1), (1, 0), (0, 1), (2, 3), (3, 4), (4, 5), (5, 6), (0, 1))
    for target, source in pairs:
        matcher.remap(frames[target], [drawn(frames[source])])
    assert found == [
        flow for pair in ((0, 1), (2, 3), (3, 4), (4, 5), (5, 6), (0, 1)) for flow in (pair, pair[::-1])
    ]
    shrunk = matcher._small._values
    assert len(shrunk) <= 5
