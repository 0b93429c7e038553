import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.stream.queues import Cancelled, Channel

TIMEOUT = 20  # seconds; a deadlock fails the test instead of hanging it


@given(st.lists(st.integers()), st.integers(1, 5))
@settings(max_examples=30)
def test_everything_arrives_in_order_and_no_more_than_the_capacity_waits(
    items: list[int], capacity: int
) -> None:
    channel: Channel[int] = Channel(capacity)

    def produce() -> None:
        with channel.producing():
            for item in items:
                channel.put(item)

    with ThreadPoolExecutor(1) as thread:
        produced = thread.submit(produce)
        with channel.consuming():
            assert list(channel) == items
        produced.result(TIMEOUT)
    assert channel.statistics.passed == len(items)
    assert channel.statistics.peak <= capacity
    assert channel.statistics.waiting == 0


def test_a_full_channel_makes_the_producer_wait() -> None:
    channel: Channel[int] = Channel(2)
    third_is_in = threading.Event()

    def produce() -> None:
        for item in range(3):
            channel.put(item)
        third_is_in.set()

    with ThreadPoolExecutor(1) as thread:
        produced = thread.submit(produce)
        taken = iter(channel)
        assert next(taken) == 0
        assert third_is_in.wait(TIMEOUT)
        assert channel.statistics.peak == 2
        produced.result(TIMEOUT)


def test_a_producer_that_waits_is_told_when_the_consumer_leaves() -> None:
    channel: Channel[int] = Channel(1)
    channel.put(0)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(channel.put, 1)
        with channel.consuming():
            pass
        with pytest.raises(Cancelled):
            waiting.result(TIMEOUT)


def test_a_consumer_is_told_when_the_producer_fails() -> None:
    channel: Channel[int] = Channel(1)

    def produce() -> None:
        with channel.producing():
            raise OSError("the disk is gone")

    with ThreadPoolExecutor(1) as thread:
        produced = thread.submit(produce)
        with pytest.raises(Cancelled):
            list(channel)
        with pytest.raises(OSError, match="gone"):
            produced.result(TIMEOUT)


def test_a_channel_without_room_is_not_made() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Channel(0)
