"""One stream to many watchers."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import av
import pytest
from stand_in import until

from toonstream.server.encode import Encoded
from toonstream.server.fanout import RING, Lane, Subscription
from toonstream.stream.clock import monotonic
from toonstream.stream.delay import Delay


class Counting:
    """An encoder that numbers its packets, and makes a key frame when asked."""

    made = 0

    def encode(self, item: object, *, key: bool) -> list[Encoded]:
        type(self).made += 1
        packet = av.Packet(bytes(8))
        packet.pts = int(item)  # type: ignore[call-overload]
        return [Encoded(packet, 0.0, key)]


@pytest.fixture
async def lane() -> AsyncIterator[tuple[Lane[int], Counter[tuple[str, str]]]]:
    drops: Counter[tuple[str, str]] = Counter()
    Counting.made = 0
    with ThreadPoolExecutor(1) as threads:
        lane: Lane[int] = Lane(
            Counting,
            lambda item: 0.0,
            Delay(initial=0.0),
            threads=threads,
            dropped=lambda *place: drops.update([place]),
            leading=False,
            clock=iter(range(10**9)).__next__,  # every look at the clock is a second later
        )
        yield lane, drops
        await lane.close()


async def read(subscription: Subscription, count: int) -> list[int]:
    packets = [await subscription.next() for _ in range(count)]
    return [packet.packet.pts for packet in packets if packet is not None]


async def test_how_old_frames_are_when_they_could_go_out_is_told() -> None:
    ages: list[float] = []
    with ThreadPoolExecutor(1) as threads:
        lane: Lane[int] = Lane(
            Counting,
            lambda item: 10.0 * item,
            Delay(initial=0.0),
            threads=threads,
            dropped=lambda place, reason: None,
            leading=True,
            aged=ages.append,
            clock=lambda: 100.0,
        )
        watching = lane.subscribe()
        for index in range(3):
            lane.feed(index)
        await read(watching, 1)
        await lane.close()
    assert ages[:1] == [100.0]


async def test_nothing_is_encoded_while_nobody_watches(
    lane: tuple[Lane[int], Counter[tuple[str, str]]],
) -> None:
    for index in range(5):
        lane[0].feed(index)
    await asyncio.sleep(0)
    assert (Counting.made, lane[0].encoded) == (0, 0)


async def test_each_frame_is_encoded_once_for_all(lane: tuple[Lane[int], Counter[tuple[str, str]]]) -> None:
    several = [lane[0].subscribe() for _ in range(7)]
    seen: list[list[int]] = [[] for _ in several]
    for index in range(10):
        lane[0].feed(index)
        for subscription, pts in zip(several, seen, strict=True):
            pts += await read(subscription, 1)
    assert seen == [list(range(10))] * 7
    assert Counting.made == 10


async def test_whoever_joins_later_begins_with_a_key_frame(
    lane: tuple[Lane[int], Counter[tuple[str, str]]],
) -> None:
    first = lane[0].subscribe()
    for index in range(3):
        lane[0].feed(index)
        await read(first, 1)
    late = lane[0].subscribe()
    lane[0].feed(3)
    packet = await late.next()
    assert packet is not None
    assert (packet.key, packet.packet.pts) == (True, 3)


async def test_a_slow_watcher_loses_packets_and_nobody_else_does(
    lane: tuple[Lane[int], Counter[tuple[str, str]]],
) -> None:
    quick, slow = lane[0].subscribe(), lane[0].subscribe()
    seen = []
    for index in range(3 * RING):
        lane[0].feed(index)
        seen += await read(quick, 1)
        assert slow.waiting <= RING
    assert seen == list(range(3 * RING))
    assert lane[1]["watcher", "slow"] >= RING
    packet = await slow.next()
    assert packet is not None
    assert packet.key
    assert packet.packet.pts >= RING


async def test_the_end_reaches_everybody_after_what_waited(
    lane: tuple[Lane[int], Counter[tuple[str, str]]],
) -> None:
    subscription = lane[0].subscribe()
    lane[0].feed(1)
    lane[0].end()
    lane[0].feed(2)
    assert await read(subscription, 2) == [1]
    assert await lane[0].subscribe().next() is None


async def test_whoever_leaves_is_forgotten(lane: tuple[Lane[int], Counter[tuple[str, str]]]) -> None:
    subscription = lane[0].subscribe()
    lane[0].feed(1)
    await until(lambda: lane[0].encoded == 1)
    lane[0].unsubscribe(subscription)
    lane[0].feed(2)
    assert lane[0].watchers == 0
    assert await read(subscription, 2) == [1]


async def test_an_encoder_that_fails_says_why_and_ends_what_is_watched() -> None:
    class Broken:
        def encode(self, item: object, *, key: bool) -> list[Encoded]:
            raise ValueError("no such codec")

    reasons: list[str] = []
    with ThreadPoolExecutor(1) as threads:
        lane: Lane[int] = Lane(
            Broken,
            lambda item: 0.0,
            Delay(initial=0.0),
            threads=threads,
            dropped=lambda *place: None,
            leading=False,
            failed=reasons.append,
        )
        subscription = lane.subscribe()
        lane.feed(1)
        assert await subscription.next() is None
        assert reasons == ["encoding failed: ValueError: no such codec"]
        await lane.close()


async def test_a_burst_that_comes_late_is_shown_whole() -> None:
    drops: Counter[tuple[str, str]] = Counter()
    with ThreadPoolExecutor(1) as threads:
        lane: Lane[float] = Lane(
            Counting,
            lambda captured_at: captured_at,
            Delay(initial=0.1),
            threads=threads,
            dropped=lambda *place: drops.update([place]),
            leading=True,
        )
        Counting.made = 0
        subscription = lane.subscribe()
        now = monotonic()
        for _ in range(2):
            for captured_at in (now - 2.0, now - 1.7, now - 1.4):  # later than the one before it, by far
                lane.feed(captured_at)
        await until(lambda: Counting.made == 6)
        assert not drops
        lane.unsubscribe(subscription)
        await lane.close()
