"""Pauses grow up to a cap, chance shortens them, patience ends when it says so."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.errors import OutputError
from toonstream.stream.retry import FOREVER, Patience, Retry, persist

patiences = st.builds(
    Patience,
    first=st.floats(0.01, 5.0),
    factor=st.floats(1.0, 4.0),
    cap=st.floats(5.0, 60.0),
    jitter=st.floats(0.0, 1.0),
    steady=st.integers(0, 60).map(float),  # whole, so that sums of times are exact
    limit=st.none() | st.integers(0, 20),
    first_limit=st.none() | st.integers(0, 20),
)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@given(patiences, st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=40, max_size=40))
def test_a_pause_lies_between_its_base_and_what_chance_may_take_off(patience, chances):
    drawn = iter(chances)
    retry = Retry(patience, chance=lambda: next(drawn), clock=Clock())
    for number in range(30):
        pause = retry.failed()
        if pause is None:
            assert patience.first_limit is not None
            assert number == patience.first_limit
            return
        base = min(patience.cap, patience.first * patience.factor**number)
        assert base * (1 - patience.jitter) - 1e-9 <= pause <= base + 1e-9 <= patience.cap + 1e-9
    assert patience.first_limit is FOREVER or patience.first_limit >= 30


@given(patiences)
def test_without_chance_pauses_never_shrink(patience):
    retry = Retry(patience, chance=lambda: 0.0, clock=Clock())
    retry.worked()
    pauses = [pause for pause in (retry.failed() for _ in range(200)) if pause is not None]
    assert all(later >= earlier for earlier, later in pairwise(pauses))
    assert len(pauses) == (200 if patience.limit is FOREVER else patience.limit)


@given(patiences, st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=50))
def test_pauses_are_short_again_only_after_a_steady_time(patience, history):
    """Against a plain recount of what happened."""
    clock = Clock()
    retry = Retry(patience, chance=lambda: 0.0, clock=clock)
    row, ever = 0, False
    for works, seconds in history:
        if works:
            retry.worked()
            ever = True
        clock.now += seconds
        row = 1 if works and seconds >= patience.steady else row + 1
        limit = patience.limit if ever else patience.first_limit
        pause = retry.failed()
        if limit is not None and row > limit:
            assert pause is None
        else:
            assert pause == pytest.approx(min(patience.cap, patience.first * patience.factor ** (row - 1)))


def test_a_night_without_network_does_not_overflow():
    retry = Retry(Patience(first_limit=FOREVER), chance=lambda: 0.0, clock=Clock())
    assert [retry.failed() for _ in range(3000)][-1] == Patience().cap


@given(st.integers(0, 10), st.integers(0, 10))
def test_persisting_ends_with_the_work_or_with_patience(failures, limit):
    attempts, pauses, told = [], [], []

    def attempt(worked):
        attempts.append(len(attempts))
        if len(attempts) <= failures:
            raise OutputError(f"no {len(attempts)}")
        worked()

    def wait(pause):
        pauses.append(pause)
        return False

    retry = Retry(Patience(first_limit=limit), clock=Clock())
    go = lambda: persist(attempt, retry, wait=wait, failed=lambda error, pause: told.append((error, pause)))  # noqa: E731
    if failures > limit:
        with pytest.raises(OutputError, match=f"no {limit + 1}"):
            go()
        assert len(attempts) == limit + 1
    else:
        go()
        assert len(attempts) == failures + 1
        assert retry.ever_worked
    assert [pause for _, pause in told] == pauses


def test_a_stop_while_waiting_ends_it():
    def attempt(worked):
        worked()
        raise OutputError("gone")

    persist(attempt, Retry(Patience(), clock=Clock()), wait=lambda pause: True, failed=lambda *_: None)


def test_other_errors_are_not_tried_again():
    def attempt(worked):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        persist(
            attempt,
            Retry(Patience(first_limit=FOREVER), clock=Clock()),
            wait=lambda pause: False,
            failed=lambda *_: None,
        )
