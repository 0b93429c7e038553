"""Watchers and publishers that come and go: nothing of them stays."""

import asyncio
import gc
import threading
from collections import Counter

import aiohttp
import psutil
from aiortc import RTCPeerConnection
from stand_in import SDP, Camera, Microphone, connect, is_like, running, until

from toonstream.server.sessions import Session
from toonstream.server.settings import Limits, ServerSettings

RED, CYAN = (240, 30, 30), (15, 225, 225)
WHEP = "urn:toonstream:whep"
LIMITS = Limits(offers_per_minute=1e6, changes_per_second=1e6, connect_seconds=1.0)


def alive() -> Counter[str]:
    """What has to be as it was: open files, and of each kind of object how many there are."""
    gc.collect()
    kinds = (RTCPeerConnection, Session)
    found = Counter(kind.__name__ for each in gc.get_objects() for kind in kinds if type(each) is kind)
    return found + Counter(files=psutil.Process().num_fds())


def busy() -> Counter[str]:
    """The tasks that run, by what they are."""
    return Counter(task.get_coro().__qualname__ for task in asyncio.all_tasks())  # type: ignore[union-attr]


async def test_a_hundred_watchers_leave_nothing_behind() -> None:
    async with running(ServerSettings(port=0, latency=0.1, max_watchers=200, limits=LIMITS)) as service:
        publisher = await connect(service.http, "/whip", Camera(RED), listen=False)
        link = publisher.links[WHEP]
        an_offer = ""

        def offered(offer: str) -> str:
            nonlocal an_offer
            an_offer = offer
            return offer

        staying = await connect(service.http, link, codec="vp8", offered=offered)
        await staying.picture(is_like(CYAN))
        (session,) = service.server.registry.sessions
        tasks, things = busy(), alive()
        async with aiohttp.ClientSession(service.url) as http:  # its connections are not kept
            for group in range(4):  # some say goodbye, and some just go
                await asyncio.gather(*(watch(http, link, polite=bool(group % 2)) for _ in range(5)))
            for number in range(80):  # these never connect, and every other one does not say that it goes
                response = await http.post(link, data=an_offer, headers=SDP)
                assert response.status == 201
                if number % 2:
                    await http.delete(response.headers["Location"])
        await until(lambda: len(session.watchers) == 1)
        await staying.picture(is_like(CYAN))
        await until(lambda: not busy() - tasks)
        assert session.lane("vp8").watchers == 1  # type: ignore[union-attr]
        assert alive() == things
        for client in (staying, publisher):
            await client.close()


async def watch(http: aiohttp.ClientSession, link: str, *, polite: bool) -> None:
    watcher = await connect(http, link, codec="vp8")
    await watcher.picture(is_like(CYAN))
    if polite:
        assert (await http.delete(watcher.location)).status == 200
    await watcher.close()


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
        assert alive() == things
        assert threading.active_count() <= threads + 2  # the pool may still grow, up to its size
