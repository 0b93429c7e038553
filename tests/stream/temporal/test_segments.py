"""The bookkeeping of segments against their definition."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.errors import SettingError
from toonstream.stream.rolling import Task
from toonstream.stream.temporal.segments import Segments
from toonstream.stream.window import Span, Windows


def plain_segments(frames: int, length: int, overlap: int) -> list[tuple[int, int, int]]:
    """Each segment of a clip: where it starts, where its new frames do, and where it ends."""
    found, committed = [], 0
    while committed < frames:
        start = max(0, committed - overlap)
        stop = min(start + length, frames)
        found.append((start, committed, stop))
        committed = stop
    return found


def check_stream(length: int, overlap: int, steps: int, cuts: Iterable[int]) -> None:
    """Stream frames in chunks of `cuts`, and hold every move against the definition."""
    cuts = list(cuts)
    frames = sum(cuts)
    segments = Segments(Windows(length=length, stride=length - overlap), steps=steps)
    expected = [
        (Task(Span(start, stop), step), range(new, stop))
        for start, new, stop in plain_segments(frames, length, overlap)
        for step in range(steps)
    ]
    done: list[tuple[Task, range]] = []

    def drain() -> None:
        while tasks := segments.ready():
            (task,) = tasks
            done.append((task, segments.complete(task)))
            assert segments.committed == (done[-1][1].stop if task.step + 1 == steps else done[-1][1].start)

    for cut in cuts:
        segments.arrive(cut)
        drain()
        # Nothing waits for more than the end of its segment, however many steps there are.
        waiting = segments.arrived - segments.committed
        assert waiting < (length - overlap if segments.committed else length)
    assert segments.end() == range(0)
    drain()
    assert done == expected
    assert segments.arrived == segments.committed == frames
    assert [index for task, new in done if task.step + 1 == steps for index in new] == list(range(frames))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_every_small_stream(length: int) -> None:
    for overlap in range(length):
        for steps in (1, 2, 3):
            for frames in range(3 * length + 2):
                for chunk in {1, 2, length, max(1, frames)}:
                    cuts = [chunk] * (frames // chunk) + [frames % chunk]
                    check_stream(length, overlap, steps, cuts)


@given(data=st.data(), length=st.integers(1, 16), steps=st.integers(1, 6))
@settings(max_examples=150, deadline=None)
def test_streams_cut_in_any_way(data: st.DataObject, length: int, steps: int) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    cuts = data.draw(st.lists(st.integers(0, 2 * length), max_size=12))
    check_stream(length, overlap, steps, cuts)


@given(data=st.data(), length=st.integers(1, 16), frames=st.integers(0, 60))
@settings(max_examples=100, deadline=None)
def test_segments_lie_where_windows_do(data: st.DataObject, length: int, frames: int) -> None:
    overlap = data.draw(st.integers(0, length - 1))
    windows = Windows(length=length, stride=length - overlap)
    spans = [(start, stop) for start, _, stop in plain_segments(frames, length, overlap)]
    assert spans == [tuple(span) for span in windows.over(frames)]


def test_a_segment_begins_with_what_is_committed_and_the_last_one_too() -> None:
    segments = Segments(Windows(length=4, stride=3), steps=1)
    segments.arrive(5)
    assert segments.overlapped == range(0)
    assert segments.complete(Task(Span(0, 4), 0)) == range(4)
    assert segments.overlapped == range(3, 4)
    assert segments.ready() == ()
    segments.end()
    assert segments.ready() == (Task(Span(3, 5), 0),)
    assert segments.complete(Task(Span(3, 5), 0)) == range(4, 5)
    assert segments.ready() == ()


def test_refuses_what_makes_no_sense() -> None:
    windows = Windows(length=4, stride=2)
    with pytest.raises(SettingError, match="at least 1"):
        Segments(windows, steps=0)
    segments = Segments(windows, steps=2)
    segments.arrive(4)
    for task in (Task(Span(0, 4), 1), Task(Span(2, 6), 0)):
        with pytest.raises(ValueError, match="not ready"):
            segments.complete(task)
    segments.end()
    with pytest.raises(RuntimeError, match="ended"):
        segments.arrive()
