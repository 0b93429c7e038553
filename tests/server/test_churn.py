"""Watchers and publishers that come and go: nothing of them stays."""

import asyncio
import gc
import threading
from collections import Counter

import aiohttp
import aioice.ice
import psutil
import pytest
from aiortc import RTCPeerConnection
from stand_in import SDP, Camera, Client, Microphone, connect, is_like, running, until

from toonstream.server.sessions import Session
from toonstream.server.settings import Limits, ServerSettings

RED, CYAN = (240, 30, 30), (15, 225, 225)
WHEP = "urn:toonstream:whep"
LIMITS = Limits(offers_per_minute=1e6, changes_per_second=1e6, connect_seconds=1.0)


def alive() -> Counter[str]:
    """What there may be no more of than before: open files, and objects of some kinds."""
    gc.collect()
    kinds = (RTCPeerConnection, Session)
    found = Counter(kind.__name__ for each in gc.get_objects() for kind in kinds if type(each) is kind)
    return found + Counter(files=psutil.Process().num_fds())


def busy() -> Counter[str]:
    """The tasks that run, by what they are."""
    return Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]


async def leave(http: aiohttp.ClientSession, watcher: Client, number: int) -> str:
    """Go in one of three ways; says which."""
    how = ("with a DELETE", "by hanging up", "without a word")[number % 3]
    if how == "with a DELETE":
        assert (await http.delete(watcher.location)).status == 200
    elif how == "without a word":
        await watcher.connection.getReceivers()[0].transport.transport.stop()
    await watcher.close()
    return how


async def test_a_hundred_watchers_connect_see_a_picture_and_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whoever goes without a word is asked six times whether it is still there.
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)
    async with running(ServerSettings(port=0, latency=0.1, max_watchers=200, limits=LIMITS)) as service:
        publisher = await connect(service.http, "/whip", Camera(RED), listen=False)
        link = publisher.links[WHEP]

        async def visit(number: int) -> str:
            watcher = await connect(http, link, codec="vp8")
            await watcher.picture(is_like(CYAN))
            return await leave(http, watcher, number)

        staying = await connect(service.http, link, codec="vp8")
        await staying.picture(is_like(CYAN))
        (session,) = service.server.registry.sessions
        tasks, things = busy(), alive()
        left: Counter[str] = Counter()
        async with aiohttp.ClientSession(service.url) as http:  # its connections are not kept
            for first in range(0, 100, 10):
                left += Counter(await asyncio.gather(*(visit(first + each) for each in range(10))))
        assert left == {"with a DELETE": 34, "by hanging up": 33, "without a word": 33}
        await until(lambda: len(session.watchers) == 1)
        await staying.picture(is_like(CYAN))
        await until(lambda: not busy() - tasks)
        assert session.lane("vp8").watchers == 1  # type: ignore[union-attr]
        assert not alive() - things
        for client in (staying, publisher):
            await client.close()


async def test_offers_that_nobody_follows_up_leave_nothing_behind() -> None:
    async with running(ServerSettings(port=0, latency=0.1, limits=LIMITS)) as service:
        publisher = await connect(service.http, "/whip", Camera(RED), listen=False)
        offers: list[str] = []
        staying = await connect(
            service.http, publisher.links[WHEP], offered=lambda offer: offers.append(offer) or offer
        )
        await staying.picture(is_like(CYAN))
        (session,) = service.server.registry.sessions
        tasks, things = busy(), alive()
        async with aiohttp.ClientSession(service.url) as http:
            for number in range(20):
                response = await http.post(publisher.links[WHEP], data=offers[0], headers=SDP)
                assert response.status == 201
                if number % 2:
                    await http.delete(response.headers["Location"])
        await until(lambda: len(session.watchers) == 1)
        await until(lambda: not busy() - tasks)
        assert not alive() - things
        for client in (staying, publisher):
            await client.close()


async def test_publishers_leave_nothing_behind() -> None:
    async with running(ServerSettings(port=0, latency=0.1, limits=LIMITS)) as service:

        async def publish(*, polite: bool) -> None:
            publisher = await connect(service.http, "/whip", Camera(RED), Microphone())
            await publisher.picture(is_like(CYAN))
            if polite:
                assert (await service.http.delete(publisher.location)).status == 200
            await publisher.close()
            await until(lambda: not service.server.registry.sessions)
            await until(lambda: service.cores[-1].closed and "Registry.end" not in busy())
            service.cores.clear()  # a core knows the session that it delivers to

        await publish(polite=True)  # threads of pools stay
        tasks, things, threads = busy(), alive(), threading.active_count()
        for number in range(5):
            await publish(polite=bool(number % 2))
        await until(lambda: not busy() - tasks)
        assert not alive() - things
        assert threading.active_count() <= threads + 2  # the pool may still grow, up to its size
