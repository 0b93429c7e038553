"""Where aiortc's public interface does not reach."""

from typing import Any

import pytest
from aiortc import RTCCertificate, RTCPeerConnection
from aiortc.rtcdtlstransport import generate_certificate
from cryptography.hazmat.primitives.asymmetric import rsa
from stand_in import Camera, connect, is_like, running

from toonstream.server import seams
from toonstream.server.settings import ServerSettings

RED, CYAN = (240, 30, 30), (15, 225, 225)


def like_gstreamer(*words: Any) -> RTCPeerConnection:
    """A client whose certificate is of an RSA key."""
    connection = RTCPeerConnection(*words)
    key = rsa.generate_private_key(65537, 2048)
    certificate = seams._Certificate(key=key, cert=generate_certificate(key))  # type: ignore[arg-type]
    connection._RTCPeerConnection__certificates = [certificate]
    return connection


async def test_a_peer_with_an_rsa_key_publishes_and_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stand_in.RTCPeerConnection", like_gstreamer)
    async with running(ServerSettings(port=0, latency=0.1)) as service:
        publisher = await connect(service.http, "/whip", Camera(RED))
        await publisher.picture(is_like(CYAN))
        watcher = await connect(service.http, publisher.links["urn:toonstream:whep"])
        await watcher.picture(is_like(CYAN))
        for client in (watcher, publisher):
            await client.close()


async def test_without_the_seam_everything_is_as_aiortc_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seams, "_CERTIFICATES", "renamed")
    connection = RTCPeerConnection()
    seams.trust_any_key(connection)
    (certificate,) = connection._RTCPeerConnection__certificates  # type: ignore[attr-defined]
    assert type(certificate) is RTCCertificate
    await connection.close()
