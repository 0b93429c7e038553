from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.compare import Lockstep, ModeFigures
from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.measure import Figures


class Mode:
    """Gives toons of one level, some frames late."""

    def __init__(self, level: int, lookahead: int) -> None:
        self.level = level
        self.lookahead = lookahead
        self.held: deque[Frame] = deque()

    def push(self, conditioned: Conditioned) -> Iterator[Toon]:
        self.held.append(conditioned.frame)
        while len(self.held) > self.lookahead:
            yield self._toon()

    def finish(self) -> Iterator[Toon]:
        while self.held:
            yield self._toon()

    def _toon(self) -> Toon:
        frame = self.held.popleft()
        image = np.full((1, 1, 3), self.level, np.uint8)
        return Toon(
            source=frame, toon=Frame(index=frame.index, pts=0, time_base=Fraction(1, 24), image=image)
        )


def conditioned(index: int) -> Conditioned:
    image = np.zeros((1, 1, 3), np.uint8)
    return Conditioned(frame=Frame(index=index, pts=index, time_base=Fraction(1, 24), image=image), hints={})


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 30))
def test_toons_of_one_frame_come_together_as_soon_as_the_slowest_mode_has_drawn_it(
    lookaheads: list[int], frames: int
) -> None:
    modes = {str(level): Mode(level, lookahead) for level, lookahead in enumerate(lookaheads)}
    lockstep = Lockstep(modes)
    sets: list[tuple[Toon, ...]] = []
    for index in range(frames):
        sets += lockstep.push(conditioned(index))
        assert len(sets) == max(0, index + 1 - max(lookaheads))
        assert all(len(waiting) <= max(lookaheads) for waiting in lockstep._waiting.values())
    sets += lockstep.finish()
    assert len(sets) == frames
    for index, toons in enumerate(sets):
        assert [toon.source.index for toon in toons] == [index] * len(modes)
        assert [int(toon.toon.image[0, 0, 0]) for toon in toons] == list(range(len(modes)))


@settings(deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 20))
def test_modes_take_turns_and_do_nothing_in_the_others(turn: int, lookaheads: list[int], frames: int) -> None:
    log: list[tuple[str, str]] = []

    class Logged(Mode):
        def push(self, conditioned: Conditioned) -> Iterator[Toon]:
            log.append((str(self.level), "push"))
            yield from super().push(conditioned)

    modes = {str(level): Logged(level, lookahead) for level, lookahead in enumerate(lookaheads)}
    settle = {name: partial(log.append, (name, "settle")) for name in modes}
    lockstep = Lockstep(modes, turn=turn, settle=settle)
    sets: list[tuple[Toon, ...]] = []
    for index in range(frames):
        sets += lockstep.push(conditioned(index))
        assert len(lockstep._coming) < turn
        assert len(sets) == max(0, (index + 1) // turn * turn - max(lookaheads))
    sets += lockstep.finish()
    assert [[toon.source.index for toon in toons] for toons in sets] == [
        [index] * len(modes) for index in range(frames)
    ]
    drawing = ""
    for name, what in log:
        assert drawing in ("", name)
        drawing = name if what == "push" else ""


def test_each_mode_is_timed_by_itself() -> None:
    moment = 0.0

    def clock() -> float:
        return moment

    class Slow(Mode):
        def push(self, conditioned: Conditioned) -> Iterator[Toon]:
            nonlocal moment
            moment += self.level
            yield from super().push(conditioned)

    lockstep = Lockstep({"one": Slow(1, 0), "five": Slow(5, 3), "none": Slow(1, 99)}, clock)
    assert lockstep.fps("one") == 0.0
    for index in range(5):
        list(lockstep.push(conditioned(index)))
    assert lockstep.fps("one") == 1.0
    assert lockstep.fps("five") == 1 / 5  # what led to the first toon does not count
    assert lockstep.fps("none") == 0.0


def test_what_takes_long_at_first_does_not_count() -> None:
    moment = 0.0

    class Compiling(Mode):
        def push(self, conditioned: Conditioned) -> Iterator[Toon]:
            nonlocal moment
            moment += 100.0 if conditioned.frame.index == 0 else 2.0
            yield from super().push(conditioned)

    lockstep = Lockstep({"mode": Compiling(0, 0)}, lambda: moment)
    list(lockstep.push(conditioned(0)))
    assert lockstep.fps("mode") == 1 / 100  # unless that is all
    for index in range(1, 4):
        list(lockstep.push(conditioned(index)))
    assert lockstep.fps("mode") == 1 / 2


UNKNOWN = Figures(
    frames=1,
    motion=None,
    warped=None,
    source_warped=None,
    flicker=None,
    source_flicker=None,
    sharpness=None,
    outline=1.0,
    colour=0.0,
)


@pytest.mark.parametrize(
    ("figures", "fps", "words"),
    [
        (UNKNOWN, 0.0, "..."),
        (UNKNOWN, 12.34, "12.3 fps"),
        (
            Figures(
                frames=9,
                motion=0.01,
                warped=30.0,
                source_warped=20.0,
                flicker=0.5,
                source_flicker=0.2,
                sharpness=0.8,
                outline=0.9,
                colour=4.0,
            ),
            7.0,
            "warped 1.50x  flicker 0.50  7.0 fps",
        ),
    ],
)
def test_words_on_the_picture_are_what_is_known(figures: Figures, fps: float, words: str) -> None:
    mode = ModeFigures(figures=figures, fps=fps, network_seconds=1.0)
    assert mode.words() == words
    assert words.isascii()
    assert mode.facts()["ratio"] == figures.ratio
