"""Where aiortc's public interface does not reach."""

from queue import Queue
from typing import Any

import pytest
from aiortc import RTCCertificate, RTCPeerConnection
from aiortc.rtcdtlstransport import generate_certificate
from cryptography.hazmat.primitives.asymmetric import rsa
from stand_in import Camera, connect, is_like, running, until

from toonstream.server import seams
from toonstream.server.settings import Limits, ServerSettings

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
    monkeypatch.setattr(seams, "_DECODER_QUEUE", "renamed")
    connection = RTCPeerConnection()
    seams.trust_any_key(connection)
    (certificate,) = connection._RTCPeerConnection__certificates  # type: ignore[attr-defined]
    assert type(certificate) is RTCCertificate
    receiver = connection.addTransceiver("video").receiver
    seams.before_decoding(receiver, lambda codec, data: False)
    assert type(receiver._RTCRtpReceiver__decoder_queue) is Queue  # type: ignore[attr-defined]
    await connection.close()


async def test_what_is_missing_is_given_up_as_often_as_one_likes() -> None:
    async with running(ServerSettings(port=0, latency=0.1)) as service:
        client = await connect(service.http, "/whip", Camera(RED))
        await client.picture(is_like(CYAN))
        (session,) = service.server.registry.sessions
        receiver = session.peer.receiver("video")
        assert receiver is not None
        await seams.go_on_without_missing(receiver)
        receiver._RTCRtpReceiver__jitter_buffer._origin = None  # type: ignore[attr-defined] nothing came
        await seams.go_on_without_missing(receiver)
        await client.picture(is_like(CYAN))
        await client.close()


async def test_pictures_that_are_decoded_all_the_same_are_refused_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seams, "_DECODER_QUEUE", "renamed")
    settings = ServerSettings(port=0, latency=0.1, limits=Limits(frame_side=100))
    async with running(settings) as service:
        client = await connect(service.http, "/whip", Camera(RED))
        (session,) = service.server.registry.sessions
        await until(lambda: session.over_because is not None)
        assert session.over_because == "pictures of 128x96 are too large: send at most 100 pixels a side"
        await client.close()
