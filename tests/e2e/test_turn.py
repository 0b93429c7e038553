"""A real TURN server, Debian's coturn, between peers that may not talk to each other but through it."""

import asyncio
import re
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from aiortc import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy
from stand_in import Camera, Running, connect, is_like, running, until

from toonstream.server.settings import IceServer, ServerSettings

TURNSERVER = shutil.which("turnserver")
RED, CYAN = (240, 30, 30), (15, 225, 225)

pytestmark = pytest.mark.skipif(TURNSERVER is None, reason="no turnserver: apt-get install coturn")


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest_asyncio.fixture
async def relay(tmp_path: Path) -> AsyncIterator[IceServer]:
    """Coturn on the loopback; gives how to reach it."""
    assert TURNSERVER is not None
    port, log = free_port(), tmp_path / "turn.log"
    words = f"""-n --no-cli --no-tls --no-dtls --no-stdout-log --log-file {log} --simple-log
        --pidfile {tmp_path}/turn.pid --userdb {tmp_path}/turn.db --realm localhost --lt-cred-mech
        --user toon:sesame --listening-ip 127.0.0.1 --relay-ip 127.0.0.1 --listening-port {port}
        --allow-loopback-peers --fingerprint --relay-threads 1""".split()
    process = await asyncio.create_subprocess_exec(TURNSERVER, *words)
    await until(lambda: log.exists() and "Total General servers" in log.read_text(), 30.0)
    yield IceServer(url=f"turn:127.0.0.1:{port}?transport=udp", username="toon", credential="sesame")
    process.kill()
    await process.wait()


async def ice_servers(service: Running) -> list[RTCIceServer]:
    """What the server tells its clients to go through, read from its Link headers."""
    response = await service.http.options("/whip")
    found = []
    for link in response.headers.getall("Link"):
        match = re.fullmatch(
            r'<(turn:[^>]+)>; rel="ice-server"; username="(.*)"; credential="(.*)"; credential-type=.*', link
        )
        assert match, link
        found.append(RTCIceServer(urls=match[1], username=match[2], credential=match[3]))
    return found


def relayed_only(answer: str) -> str:
    """Leave no way to the server but its own relayed address."""
    return re.sub(r"^a=candidate:(?!.* typ relay).*\r?\n", "", answer, flags=re.MULTILINE)


@pytest.mark.parametrize(("transport", "both"), [("udp", False), ("udp", True), ("tcp", True)])
async def test_through_a_relay(relay: IceServer, transport: str, both: bool) -> None:
    """The client has nothing but its relayed address, and where `both` do, the server has nothing else."""
    relay = replace(relay, url=relay.url.replace("udp", transport))
    async with running(ServerSettings(port=0, latency=0.1, ice_servers=(relay,))) as service:
        configuration = RTCConfiguration(
            iceServers=await ice_servers(service), iceTransportPolicy=RTCIceTransportPolicy.RELAY
        )
        offers: list[str] = []
        publisher = await connect(
            service.http,
            "/whip",
            Camera(RED),
            configuration=configuration,
            offered=lambda offer: offers.append(offer) or offer,  # type: ignore[func-returns-value]
            answered=relayed_only if both else lambda answer: answer,
        )
        assert set(re.findall(r"^a=candidate:.* typ (\w+)", offers[0], re.MULTILINE)) == {"relay"}
        await publisher.picture(is_like(CYAN))
        watcher = await connect(
            service.http,
            publisher.links["urn:toonstream:whep"],
            configuration=configuration,
            answered=relayed_only if both else lambda answer: answer,
        )
        await watcher.picture(is_like(CYAN))
        for client in (watcher, publisher):
            await client.close()


@pytest.mark.parametrize("what", ["password", "port"])
async def test_a_relay_that_is_of_no_use_does_not_keep_others_out(relay: IceServer, what: str) -> None:
    """The server goes on without: who can reach it directly does."""
    url = f"turn:127.0.0.1:{free_port()}" if what == "port" else relay.url
    useless = IceServer(url=url, username="toon", credential="wrong")
    async with running(ServerSettings(port=0, latency=0.1, ice_servers=(useless,))) as service:
        publisher = await connect(service.http, "/whip", Camera(RED))
        await publisher.picture(is_like(CYAN))
        await publisher.close()
