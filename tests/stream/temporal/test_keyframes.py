"""Keyframes: who is drawn, who is brought where, and that nothing is brought into another scene."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.conditions import Conditioned
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.keyframes import Keyframes

Film = Callable[..., list[Conditioned]]
SCENES = st.lists(st.integers(1, 9), max_size=4).map(
    lambda lengths: [scene for scene, length in enumerate(lengths) for _ in range(length)]
)


def keyframes(scenes: list[int], every: int) -> list[int]:
    """The first and the last of each scene, and every so-manieth from the first on."""
    return [
        index
        for index, scene in enumerate(scenes)
        if (index - scenes.index(scene)) % every == 0
        or index + 1 == len(scenes)
        or scenes[index + 1] != scene
    ]


@given(scenes=SCENES, every=st.integers(1, 5), lookahead=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_keyframes_alone_are_drawn_and_all_frames_come_out(
    film: Film, late: Any, recorder: Any, scenes: list[int], every: int, lookahead: int
) -> None:
    frames = film(scenes)
    inner, matcher = late(lookahead), recorder()
    stage = Keyframes(inner, matcher, every=every)
    out: list[Toon] = []
    for frame in frames:
        out += stage.push(frame)
        assert stage.held <= (lookahead + 1) * (every - 1)
    out += stage.finish()
    assert stage.held == 0
    drawn = keyframes(scenes, every)
    assert inner.drawn == drawn
    assert [toon.source for toon in out] == [frame.frame for frame in frames]
    assert [(toon.toon.index, toon.toon.pts, toon.toon.duration, toon.scene) for toon in out] == [
        (frame.frame.index, frame.frame.pts, 10, frame.scene) for frame in frames
    ]
    assert [target for target, _, _ in matcher.asked] == sorted(set(range(len(frames))) - set(drawn))
    for target, (left, right), compare in matcher.asked:
        assert left == max(index for index in drawn if index < target)
        assert right == min(index for index in drawn if index > target)
        assert scenes[left] == scenes[target] == scenes[right]
        assert compare == "others"


def test_the_nearer_keyframe_counts_for_more(film: Film, late: Any, recorder: Any) -> None:
    frames = film([0] * 5)
    stage = Keyframes(late(), recorder(), every=4)
    out = [toon for frame in frames for toon in stage.push(frame)]
    first, last = (255.0 - frames[index].frame.image for index in (0, 4))
    for toon in out[1:4]:
        part = toon.toon.pts / frames[4].frame.pts
        assert np.abs(toon.toon.image - ((1 - part) * first + part * last)).max() <= 0.5
