"""A publisher who is cut off, and those who watch meanwhile."""

from collections.abc import AsyncIterator

import aioice.ice
import pytest
from link import link
from stand_in import Camera, Client, Running, connect, is_like, running, until

from toonstream.server.settings import Limits, ServerSettings

RED, CYAN, GREEN, MAGENTA = (240, 30, 30), (15, 225, 225), (30, 200, 30), (225, 55, 225)


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with running(ServerSettings(port=0, latency=0.1)) as service:
        yield service


async def publish(service: Running, endpoint: str) -> Client:
    publisher = await connect(service.http, endpoint, Camera(RED))
    await publisher.picture(is_like(CYAN))
    return publisher


async def cut(service: Running) -> None:
    """As where the network fails."""
    (session,) = service.server.registry.sessions
    session.over("the connection failed", cut_off=True)
    await until(lambda: not service.server.registry.sessions)


@pytest.mark.parametrize("said", [True, False], ids=["noticed by ICE", "noticed by silence"])
async def test_a_network_that_fails_is_no_goodbye(monkeypatch: pytest.MonkeyPatch, said: bool) -> None:
    # Six questions without an answer are the end.
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2 if said else 60.0)
    limits = Limits(silence_seconds=60.0 if said else 2.0)
    async with running(ServerSettings(port=0, latency=0.1, limits=limits)) as service, link() as network:
        publisher = await connect(
            service.http, "/whip?watch=stage", Camera(RED), offered=network.offered, answered=network.answered
        )
        watcher = await connect(service.http, "/whep/stage")
        await watcher.picture(is_like(CYAN))
        network.loss = 1.0
        await until(lambda: not service.server.registry.sessions)
        stage = service.server.registry.watched("stage")
        assert stage is not None
        assert stage.held
        response = await service.http.get(publisher.links["urn:toonstream:statistics"])
        assert (response.status, response.headers["Retry-After"]) == (410, "1")
        for client in (publisher, watcher):
            await client.close()


async def test_a_server_that_ends_says_that_one_may_come_back(service: Running) -> None:
    publisher = await publish(service, "/whip?watch=stage")
    await service.server.registry.close(1.0)
    response = await service.http.get(publisher.links["urn:toonstream:statistics"])
    assert (response.status, response.headers["Retry-After"]) == (410, "1")
    await publisher.close()


async def test_who_watches_keeps_the_last_picture_and_sees_it_go_on(service: Running) -> None:
    publisher = await publish(service, "/whip?watch=stage")
    watcher = await connect(service.http, "/whep/stage")
    await watcher.picture(is_like(CYAN))
    await cut(service)
    stage = service.server.registry.watched("stage")
    assert stage is not None
    assert stage.held
    for _ in range(3):  # shown again and again, so that no player hangs up
        assert is_like(CYAN)(await watcher.picture())
    late = await connect(service.http, "/whep/stage")  # who comes now sees it, too
    await late.picture(is_like(CYAN))
    metrics = await (await service.http.get("/metrics")).text()
    assert "toonstream_stages_held 1.0" in metrics
    again = await connect(service.http, "/whip?watch=stage", Camera(GREEN))
    for client in (watcher, late):
        await client.picture(is_like(MAGENTA))
    assert service.server.registry.watched("stage") is stage
    assert not stage.held
    for client in (publisher, watcher, late, again):
        await client.close()


async def test_whoever_comes_back_with_its_key_keeps_its_link(service: Running) -> None:
    publisher = await publish(service, "/whip")
    watch = publisher.links["urn:toonstream:whep"]
    watcher = await connect(service.http, watch)
    await watcher.picture(is_like(CYAN))
    await cut(service)
    key = publisher.location.rpartition("/")[2]
    stranger = await connect(service.http, "/whip?resume=guessed", Camera(GREEN))
    assert stranger.links["urn:toonstream:whep"] != watch
    again = await connect(service.http, f"/whip?resume={key}", Camera(GREEN))
    assert again.links["urn:toonstream:whep"] == watch
    await watcher.picture(is_like(MAGENTA))
    for client in (publisher, watcher, stranger, again):
        await client.close()


async def test_nobody_else_takes_over_a_link_that_cannot_be_guessed(service: Running) -> None:
    publisher = await publish(service, "/whip")
    watch = publisher.links["urn:toonstream:whep"]
    watcher = await connect(service.http, watch)
    await watcher.picture(is_like(CYAN))
    await cut(service)
    who_watches = watch.rpartition("/")[2]  # knows it, too
    refused = await connect(service.http, f"/whip?watch={who_watches}", Camera(GREEN), expect=400)
    assert "watch: take a name of" in refused.answer
    for client in (publisher, watcher):
        await client.close()


async def test_who_comes_back_before_it_is_missed_takes_its_own_place() -> None:
    async with running(ServerSettings(port=0, latency=0.1, max_sessions=1)) as service:
        first = await connect(service.http, "/whip", Camera(RED))
        watcher = await connect(service.http, first.links["urn:toonstream:whep"])
        await watcher.picture(is_like(CYAN))
        await connect(service.http, "/whip", Camera(GREEN), expect=503)
        key = first.location.rpartition("/")[2]
        second = await connect(service.http, f"/whip?resume={key}", Camera(GREEN))
        await watcher.picture(is_like(MAGENTA))
        for _ in range(5):  # nothing of the first is seen any more
            assert is_like(MAGENTA)(await watcher.picture())
        assert service.cores[0].closed
        assert len(service.server.registry.sessions) == 1
        for client in (first, second, watcher):
            await client.close()


async def test_a_goodbye_is_the_end(service: Running) -> None:
    publisher = await connect(service.http, "/whip?watch=stage", Camera(RED))
    watcher = await connect(service.http, "/whep/stage")
    await watcher.picture(is_like(CYAN))
    await service.http.delete(publisher.location)
    await until(lambda: watcher.connection.connectionState in ("closed", "failed"))
    assert service.server.registry.watched("stage") is None
    for client in (publisher, watcher):
        await client.close()


async def test_nobody_comes_back() -> None:
    limits = Limits(return_seconds=0.3)
    async with running(ServerSettings(port=0, latency=0.1, limits=limits)) as service:
        publisher = await publish(service, "/whip?watch=stage")
        watcher = await connect(service.http, "/whep/stage")
        await watcher.picture(is_like(CYAN))
        await cut(service)
        await until(lambda: watcher.connection.connectionState in ("closed", "failed"))
        assert service.server.registry.watched("stage") is None
        for client in (publisher, watcher):
            await client.close()


async def test_nobody_waits_where_nobody_watches(service: Running) -> None:
    publisher = await publish(service, "/whip?watch=stage")
    await cut(service)
    await until(lambda: service.server.registry.watched("stage") is None)
    await publisher.close()


async def test_when_the_last_one_leaves_nobody_waits_any_longer(service: Running) -> None:
    publisher = await publish(service, "/whip?watch=stage")
    watcher = await connect(service.http, "/whep/stage")
    await watcher.picture(is_like(CYAN))
    await cut(service)
    await service.http.delete(watcher.location)
    await until(lambda: service.server.registry.watched("stage") is None)
    for client in (publisher, watcher):
        await client.close()


async def test_who_cannot_come_back_leaves_the_others_waiting(service: Running) -> None:
    publisher = await publish(service, "/whip?watch=stage")
    watcher = await connect(service.http, "/whep/stage")
    await watcher.picture(is_like(CYAN))
    await cut(service)
    body = "v=0\r\nm=video 9 UDP/TLS/RTP/SAVPF 96\r\na=ice-ufrag:x\r\na=sendonly\r\n"
    headers = {"Content-Type": "application/sdp"}
    response = await service.http.post("/whip?watch=stage", data=body, headers=headers)
    assert response.status == 400
    stage = service.server.registry.watched("stage")
    assert stage is not None
    assert stage.held
    again = await connect(service.http, "/whip?watch=stage", Camera(GREEN))
    await watcher.picture(is_like(MAGENTA))
    for client in (publisher, watcher, again):
        await client.close()
