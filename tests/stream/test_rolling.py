"""The rolling window's bookkeeping against its definition: levels of single frames, and nothing cleverer."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.errors import SettingError
from toonstream.stream.rolling import Rolling, Task
from toonstream.stream.window import Span, Windows


def check_stream(windows: Windows, steps: int, cuts: Iterable[int], *, skewed: bool) -> None:
    """Stream frames in chunks of `cuts`, and hold every move against the definition."""
    cuts = list(cuts)
    frames = sum(cuts)
    rolling = Rolling(windows, steps=steps, skewed=skewed)
    levels: list[int] = []  # of each frame that is in
    ran: set[tuple[int, int]] = set()  # (window's start, step)
    covering = [
        [span.start for span in windows.over(frames) if frame in span.frames] for frame in range(frames)
    ]

    def climb(climbed: range, step: int) -> None:
        for frame in climbed:
            assert levels[frame] == step
            assert all((start, step) in ran for start in covering[frame])
            levels[frame] += 1

    def drain() -> None:
        while tasks := rolling.ready():
            assert skewed or len(tasks) == 1
            assert len({task.step for task in tasks}) == len(tasks)
            for task in tasks:
                assert task.span in list(windows.over(frames))
                assert [levels[frame] for frame in task.span.frames] == [task.step] * len(task.span.frames)
                assert (task.span.start, task.step) not in ran
            # All are checked before any climbs: those of a round are independent of one another.
            for task in tasks:
                ran.add((task.span.start, task.step))
                climb(rolling.complete(task), task.step)
            assert rolling.committed == sum(level == steps for level in levels)

    for cut in cuts:
        rolling.arrive(cut)
        levels.extend([0] * cut)
        drain()
        # Just what the look-ahead allows is committed: nothing late, nothing on a guess of the end.
        needed = [windows.last_needed(frame, steps=steps, skewed=skewed) for frame in range(len(levels))]
        assert rolling.committed == sum(last < len(levels) for last in needed)
        assert rolling.arrived - rolling.committed <= windows.lookahead(steps=steps, skewed=skewed)
    climb(rolling.end(), 0)
    drain()
    assert levels == [steps] * frames
    assert rolling.arrived == rolling.committed == frames
    assert len(ran) == steps * windows.count(frames)


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_every_small_stream(length, skewed):
    for stride in range(1, length + 1):
        windows = Windows(length=length, stride=stride)
        for steps in (1, 2, 3):
            for frames in range(1, 3 * length + 2):
                for chunk in {1, 2, stride, frames}:
                    cuts = [chunk] * (frames // chunk) + [frames % chunk]
                    check_stream(windows, steps, cuts, skewed=skewed)


@pytest.mark.parametrize("skewed", [False, True])
def test_every_end_of_every_stream(skewed):
    """All windows to 16 frames and all steps to 6, ending a frame before, at, and after a window does."""
    for length in range(1, 17):
        for stride in range(1, length + 1):
            windows = Windows(length=length, stride=stride)
            ends = {length + more + off for more in (0, stride) for off in (-1, 0, 1)}
            for steps in range(1, 7):
                for frames in sorted(end for end in ends if end > 0):
                    check_stream(windows, steps, [frames], skewed=skewed)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Windows, int, list[int]]:
    length = draw(st.integers(1, 16))
    windows = Windows(length=length, stride=draw(st.integers(1, length)))
    ends = draw(st.lists(st.integers(0, 3 * length + 1), min_size=1, max_size=12).filter(any))
    cuts = sorted(ends)
    return windows, draw(st.integers(1, 6)), [b - a for a, b in zip([0, *cuts], cuts, strict=False)]


@given(stream=streams(), skewed=st.booleans())
@settings(max_examples=200, deadline=None)
def test_streams_cut_in_any_way(stream, skewed):
    check_stream(*stream, skewed=skewed)


def test_a_stream_that_ends_with_a_window_has_no_truncated_one():
    rolling = Rolling(Windows(length=4, stride=2), steps=1)
    rolling.arrive(4)
    assert rolling.ready() == (Task(Span(0, 4), 0),)
    assert rolling.complete(Task(Span(0, 4), 0)) == range(2)
    assert rolling.ready() == ()
    assert rolling.end() == range(2, 4)
    assert rolling.ready() == ()
    assert rolling.committed == 4


def test_a_stream_that_ends_within_a_window_truncates_it():
    rolling = Rolling(Windows(length=4, stride=2), steps=1)
    rolling.arrive(5)
    rolling.complete(Task(Span(0, 4), 0))
    assert rolling.end() == range(0)
    assert rolling.ready() == (Task(Span(2, 5), 0),)
    assert rolling.complete(Task(Span(2, 5), 0)) == range(2, 5)
    assert rolling.ready() == ()


def after_arrivals(*, skewed: bool) -> list[list[tuple[int, int]]]:
    """What runs after each stride of new frames, as (window's number, step)."""
    rolling = Rolling(Windows(length=8, stride=4), steps=3, skewed=skewed)
    rolling.arrive(4)
    runs = []
    for _ in range(6):
        rolling.arrive(4)
        run = []
        while tasks := rolling.ready():
            for task in tasks:
                run.append((task.span.start // 4, task.step))
                rolling.complete(task)
        runs.append(run)
    return runs


def test_an_arrival_runs_as_many_windows_as_there_are_steps():
    assert after_arrivals(skewed=False)[-1] == [(5, 0), (4, 1), (3, 2)]
    assert after_arrivals(skewed=True)[-1] == [(5, 0), (3, 1), (1, 2)]


def test_the_state_does_not_grow():
    rolling = Rolling(Windows(length=7, stride=3), steps=4)
    sizes = set()
    for _ in range(1000):
        rolling.arrive()
        while tasks := rolling.ready():
            for task in tasks:
                rolling.complete(task)
        sizes.add(sum(len(value) for value in vars(rolling).values() if isinstance(value, list)))
    assert sizes == {9}


def test_an_empty_stream_has_nothing_to_do():
    rolling = Rolling(Windows(length=4, stride=2), steps=2)
    assert rolling.ready() == ()
    assert rolling.end() == range(0)
    assert rolling.ready() == ()


def test_refuses_what_makes_no_sense():
    windows = Windows(length=4, stride=2)
    with pytest.raises(SettingError, match="at least 1"):
        Rolling(windows, steps=0)
    rolling = Rolling(windows, steps=2)
    rolling.arrive(4)
    for task in (Task(Span(2, 6), 0), Task(Span(0, 4), 1)):
        with pytest.raises(ValueError, match="not ready"):
            rolling.complete(task)
    rolling.end()
    with pytest.raises(RuntimeError, match="ended"):
        rolling.arrive()
