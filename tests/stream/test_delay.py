"""How far behind capture pictures are shown."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.delay import Delay


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
        assert min(2.0, lateness) <= delay.seconds <= 2.0
