"""Which stages stand around the stylizer, and that none do where none are asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.config import RenderSettings
from toonstream.stream.conditions import Conditioned
from toonstream.stream.temporal import matching
from toonstream.stream.temporal.stages import in_stages

Film = Callable[..., list[Conditioned]]
PLAIN = {
    "prompt": "",
    "negative_prompt": "",
    "steps": 1,
    "window": 4,
    "stride": 2,
    "guidance": 1.0,
    "seed": 0,
    "mode": "wavefront",
}


def test_nothing_stands_around_it_where_nothing_is_asked_for(late: Any) -> None:
    stylizer = late()
    assert in_stages(stylizer, RenderSettings(**PLAIN)) is stylizer


@given(
    shown=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=24),
    keyframes=st.integers(1, 4),
    deflicker=st.sampled_from(["off", "balanced", "accurate", "causal"]),
    skip=st.sampled_from([None, 0.0, 2.0]),
    lookahead=st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_together_they_lose_no_frame_and_cross_no_cut(
    film: Film,
    late: Any,
    shown: list[tuple[int, bool]],
    keyframes: int,
    deflicker: str,
    skip: float | None,
    lookahead: int,
) -> None:
    """Scenes are bright or dark: a frame that had anything of another scene would be in between."""
    scenes = [sum(cut for _, cut in shown[: index + 1]) for index in range(len(shown))]
    images = [
        np.full((18, 20, 3), 20 + 180 * (scene % 2) + 10 * level, np.uint8)
        for scene, (level, _) in zip(scenes, shown, strict=True)
    ]
    frames = film(scenes, images)
    stage = in_stages(
        late(lookahead),
        RenderSettings(**PLAIN, keyframes=keyframes, deflicker=deflicker, deflicker_window=2, skip=skip),
    )
    out = [toon for frame in frames for toon in stage.push(frame)] + list(stage.finish())
    assert [toon.source for toon in out] == [frame.frame for frame in frames]
    assert [(toon.toon.index, toon.toon.pts, toon.scene) for toon in out] == [
        (frame.frame.index, frame.frame.pts, frame.scene) for frame in frames
    ]
    for toon in out:
        negative = 255 - toon.toon.image
        least = 20 + 180 * (toon.scene % 2)
        assert negative.min() >= least - 1
        assert negative.max() <= least + 21


@pytest.mark.parametrize("matcher", ["flow", "patchmatch"])
def test_frames_are_matched_as_asked(film: Film, late: Any, matcher: str) -> None:
    frames = film([0] * 3, [np.full((18, 20, 3), 10 * index, np.uint8) for index in range(3)])
    stage = in_stages(late(), RenderSettings(**PLAIN, keyframes=2, deflicker="accurate", matcher=matcher))
    out = [toon for frame in frames for toon in stage.push(frame)] + list(stage.finish())
    assert [toon.toon.index for toon in out] == [0, 1, 2]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_deflickering_finds_each_flow_once(
    film: Film, late: Any, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, int]] = []

    def flow(one: Any, other: Any, *, effort: str) -> Any:
        found.append((int(one[0, 0]), int(other[0, 0])))
        return np.zeros((4, 6, 2), np.float32)

    monkeypatch.setattr(matching, "flow", flow)
    frames = film([0] * 12)
    stage = in_stages(late(), RenderSettings(**PLAIN, deflicker="balanced", deflicker_window=window))
    assert len([toon for frame in frames for toon in stage.push(frame)] + list(stage.finish())) == 12
    assert len(found) == len(set(found)) == 2 * sum(min(window, 11 - index) for index in range(12))
