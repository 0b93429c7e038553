"""What was sent binds what comes next: less flicker at once, no ghosts, nothing across a cut."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.matching import FlowMatcher
from toonstream.stream.temporal.steadying import Steadied, Steadying

Film = Callable[..., list[Conditioned]]
Image = NDArray[np.uint8]
SIDE = 96


def texture(seed: int, height: int = SIDE, width: int = SIDE + 40) -> Image:
    random = np.random.default_rng(seed)
    noise = sum(
        scale * cv2.resize(random.standard_normal((height // scale, width // scale, 3)), (width, height))
        for scale in (4, 8)
    )
    return np.asarray((128 + 12 * noise).clip(0, 255), np.uint8)


def toon_of(index: int, source: Image, toon: Image, scene: int = 0) -> Toon:
    frame = Frame(index=index, pts=index, time_base=Fraction(1, 24), image=source)
    return Toon(source=frame, toon=replace(frame, image=toon), scene=scene)


def panned(count: int, *, jump: float = 0.0) -> list[Toon]:
    """A view that moves over a wide picture; what is drawn of it jumps in colour from frame to frame."""
    wide, random = texture(1), np.random.default_rng(2)
    toons = []
    for index in range(count):
        source = np.ascontiguousarray(wide[:, 2 * index : 2 * index + SIDE])
        drawn = 40 + 0.6 * source + random.uniform(-jump, jump, 3)
        toons.append(toon_of(index, source, drawn.astype(np.uint8)))
    return toons


def images(toons: list[Toon]) -> NDArray[np.float32]:
    return np.stack([toon.toon.image for toon in toons]).astype(np.float32)


def test_colours_that_jump_are_steadied_where_things_move_and_details_stay() -> None:
    wanted, flickering = panned(16), panned(16, jump=15.0)
    steadying = Steadying()
    out = [steadying(toon) for toon in flickering]
    assert [(toon.source, toon.toon.index, toon.toon.pts) for toon in out] == [
        (toon.source, toon.toon.index, toon.toon.pts) for toon in flickering
    ]
    middle = slice(4, None), slice(10, -10), slice(10, -10)
    before, after = (np.diff((images(toons) - images(wanted))[middle], axis=0) for toons in (flickering, out))
    assert np.abs(after).mean() < 0.5 * np.abs(before).mean()

    def sharpness(toons: list[Toon]) -> float:
        return float(np.mean([np.square(cv2.Laplacian(image, cv2.CV_32F)).mean() for image in images(toons)]))

    assert sharpness(out) > 0.9 * sharpness(flickering)


def test_nothing_leaves_a_trace_behind() -> None:
    """A bright block runs over a ground of its own: neither is seen where the other is."""
    ground = texture(3, SIDE, SIDE)
    steadying = Steadying()
    for index in range(12):
        left = 6 + 7 * index
        source = ground.copy()
        source[30:60, left : left + 16] = (250, 240, 60)
        sent = steadying(toon_of(index, source, 255 - source)).toon.image
        error = np.abs(sent.astype(np.int16) - (255 - source))
        assert error.mean() < 1.0
        if index:
            uncovered = error[30:60, max(0, left - 21) : left]
            assert uncovered.mean() < 6.0
            assert uncovered.max() < 60  # of 100 to 200 that lie between ground and block


@given(levels=st.lists(st.integers(0, 255), min_size=1, max_size=6), repeats=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_a_still_scene_stays_still(levels: list[int], repeats: int) -> None:
    source = texture(4, 48, 64)
    steadying, index = Steadying(), 0
    for level in levels:
        drawn = np.full_like(source, level)
        shown = [steadying(toon_of(index + number, source, drawn)) for number in range(repeats)]
        index += repeats
        assert all(np.array_equal(toon.toon.image, shown[0].toon.image) for toon in shown)


def test_what_is_sent_settles_on_what_is_drawn() -> None:
    """Within a level: what is off by less than rounding stays, or wanders off, one pixel here and there."""
    source, steadying = texture(4, 48, 64), Steadying()
    steadying(toon_of(0, source, 0 * source))
    sent = [steadying(toon_of(index, source, 255 - source)).toon.image.astype(int) for index in range(1, 20)]
    assert np.abs(sent[-1] - (255 - source)).max() <= 1
    assert np.abs(sent[-1] - sent[-2]).max() <= 1
    assert (sent[-1] != sent[-2]).mean() < 0.05


@given(
    cuts=st.sets(st.integers(1, 11)),
    told=st.booleans(),
    drawn=st.lists(st.booleans(), min_size=12, max_size=12),
)
@settings(max_examples=40, deadline=None)
def test_nothing_crosses_a_cut(cuts: set[int], told: bool, drawn: list[bool]) -> None:
    """The source is the same in all scenes, so that only the cut keeps them apart; some frames are not drawn.

    Scenes are drawn dark and bright in turns: what had anything of another scene would lie in between.
    """
    source, steadying, scene = texture(4, 48, 64), Steadying(), 0
    for index in range(12):
        if index in cuts:
            scene += 1
            if told:
                steadying.cut(index)
        if drawn[index]:
            level = 20 + 200 * (scene % 2) + index % 3
            sent = steadying(toon_of(index, source, np.full_like(source, level), 0 if told else scene))
            assert np.abs(sent.toon.image.astype(int) - level).max() <= 2


def test_a_stream_that_goes_on_in_another_size_begins_anew() -> None:
    source, steadying = texture(4, 48, 64), Steadying()
    steadying(toon_of(0, source, np.full((48, 64, 3), 255, np.uint8)))
    sent = steadying(toon_of(1, source, np.zeros((96, 128, 3), np.uint8)))
    assert sent.toon.image.shape == (96, 128, 3)
    assert not sent.toon.image.any()


@pytest.mark.parametrize("lookahead", [0, 2])
def test_as_a_stage_it_adds_no_lookahead(film: Film, late: Any, lookahead: int) -> None:
    frames = film([0] * 5 + [1] * 4, [texture(index, 48, 64) for index in range(9)])
    stage, alone = Steadied(late(lookahead), FlowMatcher()), late(lookahead)
    for frame in frames:
        given_out, wanted = list(stage.push(frame)), list(alone.push(frame))
        assert [(toon.source, toon.scene) for toon in given_out] == [
            (toon.source, toon.scene) for toon in wanted
        ]
    assert [toon.source for toon in stage.finish()] == [toon.source for toon in alone.finish()]
