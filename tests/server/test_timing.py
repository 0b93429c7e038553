"""When frames were captured."""

from fractions import Fraction
from itertools import accumulate

from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.server.timing import CaptureClock

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
