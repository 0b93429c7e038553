import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame
from toonstream.stream.pipeline import Progress, run
from toonstream.stream.stylizer import Toon


class Fault(Exception):
    pass


def frames(number: int, *, fails_at: int | None = None) -> Iterator[Frame]:
    for index in range(number):
        if index == fails_at:
            raise Fault("read")
        yield Frame(index=index, pts=index, time_base=Fraction(1, 24), image=np.zeros((1, 1, 3), np.uint8))


def conditions(frame: Frame) -> Conditioned:
    return Conditioned(frame=frame, hints={})


class Delay:
    """Holds frames back like the rolling window does."""

    def __init__(self, lookahead: int, *, fails_at: int | None = None) -> None:
        self.lookahead = lookahead
        self.fails_at = fails_at
        self.held: list[Frame] = []

    def push(self, conditioned: Conditioned) -> Iterable[Toon]:
        if conditioned.frame.index == self.fails_at:
            raise Fault("stylize")
        self.held.append(conditioned.frame)
        while len(self.held) > self.lookahead:
            yield self._toon()

    def finish(self) -> Iterable[Toon]:
        while self.held:
            yield self._toon()

    def _toon(self) -> Toon:
        frame = self.held.pop(0)
        return Toon(source=frame, toon=frame)


@given(st.integers(0, 40), st.integers(0, 12))
@settings(max_examples=25, deadline=None)
def test_every_frame_is_written_in_order(number: int, lookahead: int) -> None:
    written: list[int] = []
    seen: list[Progress] = []
    progress = run(
        frames(number),
        conditions,
        Delay(lookahead),
        lambda toon: written.append(toon.toon.index),
        stopwatch=Stopwatch(count().__next__),
        observe=seen.append,
    )
    assert written == list(range(number))
    assert (progress.frames_in, progress.frames_committed, progress.lookahead) == (number, number, 0)
    assert (progress.first_seconds is None) == (number == 0)
    assert max((step.lookahead for step in seen), default=0) == min(number, lookahead + 1)
    assert [step.frames_committed for step in seen] == sorted(step.frames_committed for step in seen)


@pytest.mark.parametrize("number", [1, 3, 50])
@pytest.mark.parametrize("where", ["read", "conditions", "stylize", "write"])
@pytest.mark.parametrize("at", [0, 2, 30])
def test_a_failure_anywhere_ends_all_stages_and_comes_through(number: int, where: str, at: int) -> None:
    if at >= number:
        at = number - 1

    def prepare(frame: Frame) -> Conditioned:
        if where == "conditions" and frame.index == at:
            raise Fault(where)
        return conditions(frame)

    def write(toon: Toon) -> None:
        if where == "write" and toon.toon.index == at:
            raise Fault(where)

    before = threading.active_count()
    with pytest.raises(Fault, match=where):
        run(
            frames(number, fails_at=at if where == "read" else None),
            prepare,
            Delay(3, fails_at=at if where == "stylize" else None),
            write,
            stopwatch=Stopwatch(),
        )
    assert threading.active_count() == before


def test_a_stop_writes_what_is_committed_and_drops_the_rest() -> None:
    written: list[int] = []
    seen: list[Progress] = []
    progress = run(
        frames(1000),
        conditions,
        Delay(4),
        lambda toon: written.append(toon.toon.index),
        stopwatch=Stopwatch(),
        stopped=lambda: bool(seen) and seen[-1].frames_committed >= 10,
        observe=seen.append,
    )
    assert written == list(range(10))
    assert progress.frames_committed == 10
    assert progress.frames_in < 30


def test_an_interrupt_in_the_calling_thread_ends_the_others() -> None:
    def observe(progress: Progress) -> None:
        if progress.frames_committed == 5:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(frames(1000), conditions, Delay(4), lambda toon: None, stopwatch=Stopwatch(), observe=observe)
    assert threading.active_count() == before


def test_a_slow_writer_slows_the_reader() -> None:
    read: list[int] = []
    gap: list[int] = []

    def reading() -> Iterator[Frame]:
        for frame in frames(200):
            read.append(frame.index)
            yield frame

    def write(toon: Toon) -> None:
        gap.append(len(read) - toon.toon.index)

    run(reading(), conditions, Delay(2), write, stopwatch=Stopwatch())
    assert max(gap) <= 2 + 2 * 4 + 5  # look-ahead, both queues, and one in each stage's hands


def test_the_stopwatch_is_told_of_the_stages_outside_the_networks() -> None:
    stopwatch = Stopwatch(count().__next__)
    run(frames(3), conditions, Delay(0), lambda toon: None, stopwatch=stopwatch)
    assert set(stopwatch.seconds) == {"conditions", "write"}
