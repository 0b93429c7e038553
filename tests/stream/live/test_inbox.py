from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.stream.frame import Frame
from toonstream.stream.live.inbox import Captured, Inbox


def captured(at: float) -> Captured:
    return Captured(frame=Frame(index=0, pts=0, time_base=Fraction(1, 30), image=None), at=at)


def times(inbox: Inbox) -> list[float]:
    found = []
    while (each := inbox.take(wait=False)) is not None:
        found.append(each.at)
    return found


@given(
    st.lists(st.one_of(st.just("take"), st.floats(0, 100)), max_size=60), st.integers(1, 5), st.integers(1, 4)
)
def test_every_frame_is_taken_or_dropped_with_a_reason_and_in_order(acts, capacity, every):
    dropped, taken, offered = [], [], 0
    inbox = Inbox(dropped.append)
    inbox.set(capacity=capacity, every=every)
    for act in acts:
        if act == "take":
            found = inbox.take(wait=False)
            taken += [] if found is None else [found.at]
        else:
            inbox.offer(captured(act))
            offered += 1
        assert inbox.waiting <= capacity + 1  # and one in reserve
    left = inbox.waiting
    assert len(taken) + len(dropped) + left == offered
    inbox.end(drop=True)
    assert len(taken) + len(dropped) == offered
    assert dropped.count("closed") in (left, left - 1)
    came = iter(act for act in acts if act != "take")
    assert all(at in came for at in taken)  # in the order in which they came


def test_the_oldest_gives_way():
    dropped = []
    inbox = Inbox(dropped.append)
    inbox.set(capacity=2, every=1)
    for at in range(5):
        inbox.offer(captured(at))
    assert times(inbox) == [3, 4]
    assert dropped == ["late"] * 3


def test_one_in_so_many_is_kept_evenly_and_the_rate_is_the_sources():
    dropped = []
    inbox = Inbox(dropped.append)
    inbox.set(capacity=100, every=3)
    assert inbox.fps is None
    for frame in range(30):
        inbox.offer(captured(frame / 30))
    kept = [round(at * 30) for at in times(inbox)]
    assert len(kept) == 10
    assert {after - before for before, after in pairwise(kept)} == {3}
    assert dropped == ["rate"] * 20
    assert inbox.fps == pytest.approx(30)


def test_what_is_too_old_gives_way_to_what_is_not_and_the_newest_is_taken_all_the_same():
    dropped, late = [], 0.0
    inbox = Inbox(dropped.append, is_late=lambda at: at < late)
    inbox.set(capacity=10, every=1)
    for at in range(6):
        inbox.offer(captured(at))
    assert inbox.take(wait=False).at == 0
    late = 3.5
    assert inbox.take(wait=False).at == 4
    assert dropped == ["late"] * 3
    late = 100.0
    assert inbox.take(wait=False).at == 5
    assert inbox.take(wait=False) is None
    assert dropped == ["late"] * 3


def test_a_frame_that_the_rate_left_out_is_taken_where_those_before_it_are_too_old():
    dropped, late = [], 0.0
    inbox = Inbox(dropped.append, is_late=lambda at: at < late)
    inbox.set(capacity=2, every=3)
    for at in range(1, 6):
        inbox.offer(captured(at))  # the third is kept, and the fifth in reserve
    late = 4.0
    assert inbox.waiting == 2
    assert inbox.take(wait=False).at == 5
    assert sorted(dropped) == ["late", "rate", "rate", "rate"]
    for at in range(6, 9):
        inbox.offer(captured(at))
    assert inbox.take(wait=False).at == 8  # three after it
    inbox.offer(captured(9))
    assert inbox.waiting == 1
    assert inbox.take(wait=False) is None  # nothing is taken of the reserve but for that
    inbox.end()
    assert sorted(dropped) == ["late"] + ["rate"] * 6


def test_a_frame_out_of_order_is_dropped_and_a_clock_that_jumps_back_is_followed():
    dropped = []
    inbox = Inbox(dropped.append)
    inbox.set(capacity=100, every=1)
    for at in [10.0, 10.1, 10.05, 10.1, 10.2, 3.0, 3.1, 3.2]:
        inbox.offer(captured(at))
    assert times(inbox) == [10.0, 10.1, 10.2, 3.0, 3.1, 3.2]
    assert dropped == ["clock", "clock"]


def test_after_the_end_what_waits_can_be_taken_and_nothing_more_comes_in():
    dropped = []
    inbox = Inbox(dropped.append)
    inbox.offer(captured(1.0))
    inbox.end()
    inbox.offer(captured(2.0))
    assert inbox.ended
    assert inbox.take().at == 1.0
    assert inbox.take() is None
    assert dropped == ["closed"]
