"""Matchers bring what was drawn of one frame to where another is, and say where that is no use."""

from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal import matching
from toonstream.stream.temporal.matching import FlowMatcher, Matcher, PatchMatcher, blended
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


def test_flows_are_found_once_for_both_ways_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(
        matching,
        "flow",
        lambda one, other, effort: (
            found.append((one[0, 0, 0], other[0, 0, 0])) or np.zeros((4, 4, 2), np.float32)
        ),
    )
    frames = [
        Frame(index=index, pts=index, time_base=Fraction(1, 24), image=np.full((4, 4, 3), index, np.uint8))
        for index in range(5)
    ]
    matcher = FlowMatcher(remembered=4)
    for target, source in ((0, 1), (1, 0), (0, 1), (2, 3), (3, 4), (0, 1)):
        matcher.remap(frames[target], [drawn(frames[source])])
    assert found == [(0, 1), (1, 0), (2, 3), (3, 2), (3, 4), (4, 3), (0, 1), (1, 0)]
