"""Time goes on whatever a source's clock does."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.sources.timeline import TICK, ArrivalClock, Timeline

STEP = Fraction(1, 25)


def test_it_begins_at_nought_and_keeps_the_sources_own_times():
    line = Timeline()
    stamps = [Fraction(7) + index * STEP for index in range(50)]
    assert [line.place(stamp, float(stamp)) for stamp in stamps] == [index * STEP for index in range(50)]
    assert line.jumps == 0


@settings(max_examples=50)
@given(st.lists(st.integers(-5_000_000, 5_000_000), max_size=6), st.integers(1, 40))
def test_jumps_of_the_clock_are_counted_and_passed_over(jumps, frames):
    """Frames arrive evenly; now and then the clock jumps by some seconds. Times go on evenly, to a tick."""
    line, stamp, now, placed = Timeline(), Fraction(0), 0.0, []
    for jump in [0, *jumps]:
        stamp += jump * Fraction(1, 1000)
        for _ in range(frames):
            placed.append(line.place(stamp, now))
            stamp += STEP
            now += float(STEP)
    assert line.jumps <= len(jumps)  # a jump back to where time was before is none
    assert line.jumps >= any(abs(jump) > 1040 for jump in jumps[:1])
    steps = [later - earlier for earlier, later in pairwise(placed)]
    assert all(abs(step) <= Fraction(9, 4) for step in steps)  # a second is believed, either way


def test_sound_from_before_a_jump_is_not_another_jump():
    line = Timeline()
    for index in range(50):
        line.place(index * STEP, index * 0.04)
    after = line.place(Fraction(1000), 2.0)
    assert after == 2
    assert line.place(Fraction(199, 100), 2.01) == Fraction(199, 100)  # the last sound before it
    assert line.place(Fraction(1000) + STEP, 2.04) == 2 + STEP
    assert line.jumps == 1


def test_a_gap_that_the_wall_clock_shares_is_no_jump():
    line = Timeline()
    line.place(Fraction(0), 0.0)
    assert line.place(Fraction(30), 30.1) == 30
    assert line.jumps == 0


def test_a_burst_after_a_stall_is_no_jump():
    line = Timeline()
    line.place(Fraction(0), 0.0)
    assert [line.place(index * STEP, 8.0) for index in range(1, 100)] == [
        index * STEP for index in range(1, 100)
    ]
    assert line.jumps == 0


def test_after_a_restart_time_has_gone_on_as_the_wall_clock_has():
    line = Timeline()
    line.place(Fraction(500), 0.0)
    line.place(Fraction(501), 1.0)
    line.restart()
    assert line.place(Fraction(3), 11.0) == 11
    assert line.place(Fraction(3) + STEP, 11.04) == 11 + STEP
    assert line.jumps == 0


def test_a_restart_before_the_beginning_is_nothing():
    line = Timeline()
    line.restart()
    assert line.place(Fraction(9), 4.0) == 0


def test_a_file_may_show_one_picture_for_long():
    line = Timeline()
    line.place(Fraction(0), 0.0)
    assert line.place(Fraction(60), 0.1, ahead=100.0) == 60
    assert line.jumps == 0
    assert line.place(Fraction(1), 0.2, ahead=100.0) == 60 + round(Fraction(0.1) / TICK) * TICK
    assert line.jumps == 1


@given(
    st.lists(st.floats(0.0, 2.0), min_size=1, max_size=100),
    st.floats(-1e6, 1e6),
)
def test_capture_is_told_from_the_sources_times_and_never_after_arrival(delays, zero):
    clock = ArrivalClock()
    least, previous = float("inf"), 0.0
    for index, delay in enumerate(delays):
        time = index * STEP
        now = max(zero + float(time) + delay, zero + previous)  # what arrives cannot overtake
        previous = now - zero
        captured = clock.captured(time, now)
        assert captured <= now + 1e-6
        least = min(least, now - float(time))
        assert captured == pytest.approx(least + float(time), abs=0.01)
