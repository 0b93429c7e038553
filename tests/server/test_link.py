"""Over networks that lose packets, take their time, and are cut off."""

from collections.abc import AsyncIterator

import aioice.ice
import pytest
from link import link
from stand_in import Camera, Client, Running, connect, is_like, running, until

from toonstream.server.settings import Limits, ServerSettings

RED, CYAN, BLUE = (240, 30, 30), (15, 225, 225), (0, 0, 255)
WHEP = "urn:toonstream:whep"


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    # Peers ask each other whether they are still there; they give up after six questions without answer.
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)
    limits = Limits(silence_seconds=2.0)
    async with running(ServerSettings(port=0, latency=0.1, limits=limits)) as service:
        yield service


async def reason(service: Running, client: Client) -> str:
    await until(lambda: not service.server.registry.sessions)
    key = client.location.rpartition("/")[2]
    return service.server.registry.reason(key) or ""


@pytest.mark.parametrize("delay", [0.03, 0.1])
@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_pictures_come_through_a_network_that_loses_one_packet_in_twenty(
    codec: str, delay: float
) -> None:
    async with (
        running(ServerSettings(port=0, latency=0.1)) as service,  # connecting takes its time, too
        link(loss=0.05, delay=delay, jitter=0.02) as rough,
    ):
        publisher = await connect(
            service.http,
            "/whip",
            Camera(RED),
            codec=codec,
            offered=rough.offered,
            answered=rough.answered,
        )
        for _ in range(60):  # whole ones, and soon again after every loss
            await publisher.picture(is_like(CYAN))
        await service.http.patch(publisher.links["urn:toonstream:settings"], json={"style": "flat"})
        await publisher.picture(is_like(BLUE))
        assert rough.lost > 5
        await publisher.close()


async def test_a_watcher_that_is_cut_off_is_let_go_and_nobody_else_notices(service: Running) -> None:
    publisher = await connect(service.http, "/whip", Camera(RED), listen=False)
    whole = await connect(service.http, publisher.links[WHEP])
    async with link() as good:
        cut = await connect(service.http, publisher.links[WHEP], offered=good.offered, answered=good.answered)
        for client in (whole, cut):
            await client.picture(is_like(CYAN))
        (session,) = service.server.registry.sessions
        good.loss = 1.0
        await until(lambda: len(session.watchers) == 1)
        assert session.lane("vp8").watchers == 1  # type: ignore[union-attr]
        for _ in range(10):
            await whole.picture(is_like(CYAN))
        for client in (cut, whole, publisher):
            await client.close()


async def test_a_publisher_that_is_cut_off_for_a_moment_goes_on(service: Running) -> None:
    async with link() as good:
        publisher = await connect(
            service.http, "/whip", Camera(RED), offered=good.offered, answered=good.answered
        )
        await publisher.picture(is_like(CYAN))
        offered = service.cores[0].offered
        good.loss = 1.0
        lost = good.lost
        await until(lambda: good.lost > lost + 30)
        good.loss = 0.0
        await service.http.patch(publisher.links["urn:toonstream:settings"], json={"style": "flat"})
        await publisher.picture(is_like(BLUE))
        await until(lambda: service.cores[0].offered > offered + 10)
        await publisher.close()


async def test_packets_whose_loss_could_not_be_told_are_asked_for_again(service: Running) -> None:
    async with link() as good:
        publisher = await connect(
            service.http, "/whip", Camera(RED), offered=good.offered, answered=good.answered
        )
        await publisher.picture(is_like(CYAN))
        good.deaf = True
        good.loss, lost = 1.0, good.lost
        await until(lambda: good.lost > lost + 10)
        good.loss, passed = 0.0, good.passed
        await until(lambda: good.passed > passed + 10)  # the server has seen what is missing, and said so
        good.deaf, offered = False, service.cores[0].offered
        await until(lambda: service.cores[0].offered > offered + 5)
        await publisher.picture(is_like(CYAN))
        await publisher.close()


async def test_a_publisher_that_sends_nothing_a_second_time_is_seen_again(
    service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def retransmit(sequence_number: int) -> None:
        """As peers do it that keep nothing of what they have sent."""

    async with link() as good:
        publisher = await connect(
            service.http, "/whip", Camera(RED), offered=good.offered, answered=good.answered
        )
        await publisher.picture(is_like(CYAN))
        monkeypatch.setattr(publisher.connection.getSenders()[0], "_retransmit", retransmit)
        good.loss, lost = 1.0, good.lost
        await until(lambda: good.lost > lost + 3)
        good.loss, offered = 0.0, service.cores[0].offered
        await until(lambda: service.cores[0].offered > offered + 10)
        await publisher.picture(is_like(CYAN))
        assert service.server.registry.sessions
        await publisher.close()


async def test_a_publisher_that_is_cut_off_loses_its_place(service: Running) -> None:
    async with link() as good:
        publisher = await connect(
            service.http, "/whip", Camera(RED), offered=good.offered, answered=good.answered
        )
        await publisher.picture(is_like(CYAN))
        good.loss = 1.0
        reasons = ("no picture came for 2 s", "the publisher went away", "the peer went away")
        assert await reason(service, publisher) in reasons
        await until(lambda: service.cores[0].closed)
        await publisher.close()
