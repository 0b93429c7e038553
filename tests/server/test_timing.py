"""When frames were captured, and when they are shown."""

from fractions import Fraction
from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.server.timing import CaptureClock, Playout

MILLI = Fraction(1, 1000)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.002, 0.01, 0.05, 0.2]), min_size=30, max_size=100))
def test_capture_times_are_even_where_arrivals_are_not(held_up: list[float]) -> None:
    clock = CaptureClock()
    arrivals = list(accumulate((5.0 + 0.033 * index + held for index, held in enumerate(held_up)), max))
    times = [clock.captured_at(33 * index, MILLI, arrival) for index, arrival in enumerate(arrivals)]
    assert times == sorted(times)
    assert all(time <= arrival for time, arrival in zip(times, arrivals, strict=True))
    delays = [arrival - 5.0 - 0.033 * index for index, arrival in enumerate(arrivals)]
    least = delays.index(min(delays))
    for index in range(least + 5, len(times)):  # from the least delayed one on, they are what they should be
        assert abs(times[index] - 5.0 - 0.033 * index - delays[least]) < 0.02


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-(10**6), 10**6), st.floats(0.0, 5.0)), min_size=1, max_size=60))
def test_a_clock_that_jumps_never_turns_time_back_nor_ahead(frames: list[tuple[int, float]]) -> None:
    clock = CaptureClock()
    arrival, last = 0.0, float("-inf")
    for pts, pause in frames:
        arrival += pause
        time = clock.captured_at(pts, MILLI, arrival)
        assert last <= time <= arrival
        last = time


def test_after_a_leap_capture_is_near_arrival_again() -> None:
    clock = CaptureClock()
    for index in range(30):
        clock.captured_at(33 * index, MILLI, 0.033 * index)
    assert clock.captured_at(10**7, MILLI, 1.2) == 1.2
    assert abs(clock.captured_at(10**7 + 33, MILLI, 1.25) - 1.233) < 1e-3


def shown(latenesses: list[float], playout: Playout) -> list[float]:
    """How long after its capture each of these frames, 30 a second, is shown."""
    result = []
    for index, lateness in enumerate(latenesses):
        captured = index / 30
        playout.ready(captured, captured + lateness)
        result.append(max(playout.due(captured), captured + lateness) - captured)
    return result


def test_bursts_of_a_rolling_window_are_shown_evenly() -> None:
    latenesses = [0.1 + (2 - index % 3) / 30 for index in range(300)]
    delays = shown(latenesses, Playout(initial=0.4))[150:]
    assert all(abs(after - before) < 0.002 for before, after in pairwise(delays))
    assert 0.16 < delays[-1] < 0.18


def test_one_late_frame_is_soon_forgotten() -> None:
    latenesses = [0.1] * 30 + [1.0] + [0.1] * 300
    delays = shown(latenesses, Playout(initial=0.1))
    assert delays[30] >= 1.0
    assert delays[-1] < 0.13
    assert all(before - after < 0.05 for before, after in pairwise(delays[30:]))


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=200))
def test_the_delay_stays_within_its_limit(latenesses: list[float]) -> None:
    playout = Playout(initial=0.4, limit=2.0)
    for index, lateness in enumerate(latenesses):
        playout.ready(index / 30, index / 30 + lateness)
        assert min(2.0, lateness) <= playout.delay <= 2.0
