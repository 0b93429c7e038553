import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

from toonstream.stream.live.outbox import Outbox


async def test_items_come_in_order_and_the_end_after_them():
    outbox = Outbox(5)
    for item in range(3):
        outbox.put(item)
    outbox.close()
    assert [item async for item in outbox] == [0, 1, 2]


async def test_the_oldest_gives_way_and_is_told():
    lost = []
    outbox = Outbox(2, dropped=lost.append)
    for item in [None, 1, 2, 3]:
        outbox.put(item)
    assert len(outbox) == 2
    outbox.close()
    outbox.put(4)
    assert [item async for item in outbox] == [2, 3]
    assert lost == [None, 1, 4]


async def test_a_reader_that_waits_is_woken_from_another_thread():
    outbox = Outbox(1000)
    reader = asyncio.ensure_future(collect(outbox))
    with ThreadPoolExecutor(2) as threads:
        for begin in (0, 500):
            threads.submit(lambda begin=begin: [outbox.put(item) for item in range(begin, begin + 500)])
        await asyncio.sleep(0)
    outbox.close()
    got = await reader
    assert sorted(got) == list(range(1000))
    assert [item for item in got if item < 500] == list(range(500))


async def collect(outbox):
    return [item async for item in outbox]


def test_putting_after_the_loop_is_gone_does_no_harm():
    async def make():
        return Outbox(1)

    lost = []
    outbox = asyncio.run(make())
    outbox._dropped = lost.append
    outbox.put(1)
    outbox.put(2)
    outbox.close()
    assert lost == [1]


async def test_an_outbox_holds_something():
    with pytest.raises(ValueError, match="at least one"):
        Outbox(0)
