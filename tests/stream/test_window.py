"""Where the windows lie, how they weigh, what they wait for and what they cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.errors import SettingError
from toonstream.stream.window import OfflineCost, Span, Windows, frame_weights


@st.composite
def plans(draw: st.DrawFn) -> Windows:
    length = draw(st.integers(1, 16))
    return Windows(length=length, stride=draw(st.integers(1, length)))


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (0, []),
        (1, [(0, 1)]),
        (16, [(0, 16)]),
        (17, [(0, 16), (8, 17)]),
        (30, [(0, 16), (8, 24), (16, 30)]),
        (32, [(0, 16), (8, 24), (16, 32)]),
        (33, [(0, 16), (8, 24), (16, 32), (24, 33)]),
    ],
)
def test_the_papers_examples(frames, expected):
    assert list(Windows(length=16, stride=8).over(frames)) == expected


@given(plan=plans(), frames=st.integers(1, 60))
def test_windows_cover_the_clip_and_stop_with_the_first_that_ends_it(plan, frames):
    spans = list(plan.over(frames))
    assert len(spans) == plan.count(frames)
    assert {i for span in spans for i in span.frames} == set(range(frames))
    assert [span.start for span in spans] == [plan.stride * number for number in range(len(spans))]
    assert [span.stop == frames for span in spans] == [False] * (len(spans) - 1) + [True]
    assert all(len(span.frames) == plan.length for span in spans[:-1])


def test_a_window_of_an_endless_stream_is_not_truncated():
    assert Windows(length=4, stride=3).span(5) == Span(15, 19)
    assert Windows(length=4, stride=3).span(5, frames=17) == Span(15, 17)


@given(length=st.integers(2, 64))
def test_weights_are_eq_5(length):
    weights = frame_weights(length)
    right = length - 1
    assert weights == pytest.approx(
        [1 + 0.01 - abs(i - right / 2) / (right / 2) for i in range(length)], abs=1e-12
    )
    assert weights == pytest.approx(weights[::-1])
    assert weights[0] == pytest.approx(0.01)
    assert min(weights) > 0


def test_a_lone_frame_weighs_one():
    assert frame_weights(1) == (1.0,)
    assert frame_weights(3) == pytest.approx((0.01, 1.01, 0.01))


@pytest.mark.parametrize(
    ("length", "stride", "steps", "least", "most"),
    [(4, 2, 1, 2, 3), (8, 4, 1, 4, 7), (8, 4, 2, 8, 11), (16, 8, 4, 32, 39), (16, 8, 10, 80, 87)],
)
def test_the_look_ahead_of_the_design(length, stride, steps, least, most):
    plan = Windows(length=length, stride=stride)
    reach = [plan.last_needed(i, steps=steps) - i for i in range(5 * stride)]
    assert (min(reach), max(reach)) == (least, most)
    assert plan.lookahead(steps=steps) == most


def test_the_skewed_look_ahead_is_a_stride_more_for_each_step_after_the_first():
    plan = Windows(length=8, stride=4)
    assert plan.last_needed(9, steps=5) == plan.last_needed(9, steps=5, skewed=True) - 4 * 4
    assert plan.lookahead(steps=1, skewed=True) == plan.lookahead(steps=1)
    assert plan.lookahead(steps=5, skewed=True) + 1 == 2 * 5 * 4  # 2T·s frames of latency


@given(plan=plans(), steps=st.integers(1, 6), frame=st.integers(0, 40))
def test_look_ahead_is_what_the_windows_make_it(plan, steps, frame):
    """Follow the dependencies: a frame needs all windows that cover it, and they need their frames."""
    needed = frame
    for _ in range(steps):
        needed = max(span.stop - 1 for span in map(plan.span, range(needed + 1)) if needed in span.frames)
    assert plan.last_needed(frame, steps=steps) == needed


def test_cost_per_frame_is_the_designs():
    cost = Windows(length=16, stride=8).cost(16 + 8 * 999, steps=10, sides=2, controlnets=2)
    frames = 16 + 8 * 999
    assert cost.unet / frames == pytest.approx(40, rel=0.01)
    assert cost.controlnet_textbook / frames == pytest.approx(80, rel=0.01)
    assert cost.controlnet / frames == 40
    lone = Windows(length=4, stride=2).cost(1, steps=3, sides=1, controlnets=1)
    assert lone == OfflineCost(unet=3, controlnet=3, controlnet_textbook=3)


@pytest.mark.parametrize(("length", "stride"), [(0, 1), (4, 0), (4, 5), (-1, -1)])
def test_refuses_impossible_windows(length, stride):
    with pytest.raises(SettingError, match="use "):
        Windows(length=length, stride=stride)
