"""How far behind capture pictures are shown."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.delay import Delay, longest_delay


def shown(latenesses: list[float], delay: Delay) -> list[float]:
    """How long after its capture each of these frames, 30 a second, is shown."""
    result = []
    for index, lateness in enumerate(latenesses):
        captured = index / 30
        delay.ready(captured, captured + lateness)
        result.append(max(delay.due(captured), captured + lateness) - captured)
    return result


def test_bursts_of_a_rolling_window_are_shown_evenly() -> None:
    latenesses = [0.1 + (2 - index % 3) / 30 for index in range(300)]
    delays = shown(latenesses, Delay(initial=0.4))[150:]
    assert all(abs(after - before) < 0.002 for before, after in pairwise(delays))
    assert 0.16 < delays[-1] < 0.18


def test_one_late_frame_is_soon_forgotten() -> None:
    latenesses = [0.1] * 30 + [1.0] + [0.1] * 300
    delays = shown(latenesses, Delay(initial=0.1))
    assert delays[30] >= 1.0
    assert delays[-1] < 0.13
    assert all(before - after < 0.05 for before, after in pairwise(delays[30:]))


@settings(deadline=None)
@given(st.lists(st.floats(0.0, 30.0), min_size=1, max_size=200))
def test_the_delay_stays_within_its_limit(latenesses: list[float]) -> None:
    delay = Delay(initial=0.4, limit=2.0)
    for index, lateness in enumerate(latenesses):
        delay.ready(index / 30, index / 30 + lateness)
        assert min(2.0, lateness) - 1e-9 <= delay.seconds <= 2.0


def test_where_a_latency_is_promised_one_late_frame_delays_no_other_for_long() -> None:
    latenesses = [0.1] * 30 + [6.0] + [0.1] * 300
    promised = shown(latenesses, Delay(initial=0.1, limit=longest_delay(0.4)))
    assert promised[30] == 6.0
    assert max(promised[:30] + promised[31:]) == pytest.approx(1.5 * 0.4)
    assert longest_delay(0.1) == 0.1 + 0.2  # what a busy machine takes for a turn is not to be told from late
    assert longest_delay(None) == 10.0


def test_a_delay_comes_back_to_a_limit_that_is_lowered() -> None:
    delay = Delay(initial=3.0)
    delay.limit = 0.6
    for index in range(300):
        delay.ready(index / 30, index / 30 + 2.0)
    assert delay.seconds < 0.7


def test_a_frame_gives_way_some_time_after_it_was_due_and_within_the_limit() -> None:
    delay = Delay(initial=0.4, limit=0.5)
    assert delay.due(1.0) == 1.4
    assert delay.latest(1.0, grace=0.05) == 1.0 + 0.45
    assert delay.latest(1.0, grace=0.2) == 1.5
