"""Pictures and sound through the server, over real peer connections on this machine."""

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator
from statistics import median
from typing import Any

import av
import numpy as np
import pytest
from aiortc.codecs.h264 import H264Decoder
from aiortc.codecs.vpx import Vp8Decoder
from av import AudioFrame, VideoFrame
from stand_in import Camera, Client, Microphone, Running, connect, is_like, running, until, watchdog

from toonstream.server.encode import Picture, VideoEncoder
from toonstream.server.settings import Limits, ServerSettings
from toonstream.stream.sources.coded import claimed_size

RED, CYAN = (240, 30, 30), (15, 225, 225)
GREEN, MAGENTA = (30, 200, 30), (225, 55, 225)
BLUE = (0, 0, 255)
WHEP = "urn:toonstream:whep"


@pytest.fixture
async def service() -> AsyncIterator[Running]:
    async with running(ServerSettings(port=0, latency=0.1, max_sessions=3)) as service:
        yield service


async def statistics(service: Running, client: Client) -> dict[str, object]:
    response = await service.http.get(client.links["urn:toonstream:statistics"])
    figures: dict[str, object] = await response.json()
    return figures


@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_the_toon_comes_back_and_others_watch_it(codec: str) -> None:
    async with running(ServerSettings(port=0, latency=0.1, codec=codec)) as service:  # type: ignore[arg-type]
        publisher = await connect(service.http, "/whip", Camera(RED), Microphone())
        await publisher.picture(is_like(CYAN))
        assert (await statistics(service, publisher))["codec"] == codec
        watcher = await connect(service.http, publisher.links[WHEP])
        await watcher.picture(is_like(CYAN))
        heard = [await watcher.tracks["audio"].recv() for _ in range(20)]
        assert max(np.abs(frame.to_ndarray()).max() for frame in heard) > 2_000
        for client in (watcher, publisher):
            await client.close()


@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_a_client_with_one_codec_gets_that_one(service: Running, codec: str) -> None:
    publisher = await connect(service.http, "/whip", Camera(RED), listen=False, codec="vp8")
    watcher = await connect(service.http, publisher.links[WHEP], codec=codec)
    assert set(re.findall(r"(vp8|h264)/90000", watcher.answer.lower())) == {codec}
    await watcher.picture(is_like(CYAN))
    for client in (watcher, publisher):
        await client.close()


async def test_sessions_never_mix(service: Running) -> None:
    colours = {RED: CYAN, GREEN: MAGENTA}
    clients = {colour: await connect(service.http, "/whip", Camera(colour)) for colour in colours}
    watchers = {colour: await connect(service.http, client.links[WHEP]) for colour, client in clients.items()}
    for colour, inverse in colours.items():
        for client in (clients[colour], watchers[colour]):
            await client.picture()
            for _ in range(10):
                assert is_like(inverse)(await client.picture())
    await service.http.patch(clients[RED].links["urn:toonstream:settings"], json={"style": "flat"})
    await watchers[RED].picture(is_like(BLUE))
    assert is_like(MAGENTA)(await watchers[GREEN].picture())
    for client in (*clients.values(), *watchers.values()):
        await client.close()


async def test_a_source_that_changes_size_goes_on(service: Running) -> None:
    camera = Camera(RED, (128, 96))
    publisher = await connect(service.http, "/whip", camera)
    assert (await publisher.picture()).shape == (96, 128, 3)
    camera.size = (96, 160)
    image = await publisher.picture(lambda image: image.shape == (160, 96, 3))
    assert is_like(CYAN)(image)
    await publisher.close()


class Jumping(Camera):
    """A camera that encodes its pictures, and whose clock leaps an hour ahead, and half an hour back."""

    def __init__(self) -> None:
        super().__init__(RED)
        self._encoder = VideoEncoder("vp8", bitrate=500_000)

    async def recv(self):  # type: ignore[no-untyped-def]
        frame = await super().recv()
        picture = Picture(frame.to_ndarray(format="rgb24"), frame.pts, 0.0)
        (encoded,) = self._encoder.encode(picture, key=self.index % 30 == 1)
        encoded.packet.time_base = frame.time_base
        encoded.packet.pts += 90_000 * 3600 * (0 if self.index < 15 else 2 if self.index < 30 else 1) // 2
        return encoded.packet


async def test_a_camera_whose_clock_jumps_goes_on(service: Running) -> None:
    camera = Jumping()
    publisher = await connect(service.http, "/whip", camera, codec="vp8")
    while camera.index < 50:
        assert is_like(CYAN)(await publisher.picture())
    offered = service.cores[0].offered
    await until(lambda: service.cores[0].offered > offered + 10)
    await publisher.picture(is_like(CYAN))
    latency = (await statistics(service, publisher))["latency_ms"]
    assert isinstance(latency, dict)
    assert latency["p99"] < 60_000  # not an hour
    await publisher.close()


async def test_the_age_of_each_picture_can_be_told_where_it_is_shown(service: Running) -> None:
    publisher = await connect(service.http, "/whip", Camera(RED))
    await publisher.picture(is_like(CYAN))
    receiver = publisher.connection.getReceivers()[0]
    first = receiver._RTCRtpReceiver__timestamp_mapper._origin  # type: ignore[attr-defined]
    ages = []
    for _ in range(10):
        frame = await publisher.tracks["video"].recv()
        assert isinstance(frame, VideoFrame)
        assert frame.pts is not None
        clock = (await statistics(service, publisher))["clock"]
        assert isinstance(clock, dict)
        assert clock["after_ms"] >= 0.0
        ahead = (clock["rtp"] - first - frame.pts) % 2**32
        ages.append(ahead / 90_000)
    assert 0.05 < median(ages) < 10.0  # the server holds pictures for a tenth of a second
    await publisher.close()


class Uneven(Camera):
    """A camera that shows 5, then 60 pictures a second, again and again."""

    async def recv(self) -> VideoFrame:
        frame = await super().recv()
        if self.index // 10 % 2:
            await asyncio.sleep(0.2 - 1 / 30)
            self._began += 0.2 - 1 / 30  # type: ignore[operator]
        else:
            self._began -= 1 / 60  # type: ignore[operator]
        frame.pts = round((self._began + self.index / 30) * 90_000)  # type: ignore[operator]
        return frame


async def test_a_camera_whose_rate_changes_goes_on(service: Running) -> None:
    camera = Uneven(RED)
    publisher = await connect(service.http, "/whip", camera)
    while camera.index < 45:
        assert is_like(CYAN)(await publisher.picture())
    await publisher.close()


async def ended(service: Running, client: Client) -> str:
    await until(lambda: not service.server.registry.sessions)
    response = await service.http.get(client.links["urn:toonstream:statistics"])
    assert response.status == 410
    detail: str = (await response.json(content_type=None))["detail"]
    return detail


async def test_pictures_that_are_too_large_end_their_session_only() -> None:
    limits = Limits(frame_side=200)
    async with running(ServerSettings(port=0, latency=0.1, limits=limits)) as service:
        camera = Camera(RED)
        client = await connect(service.http, "/whip", camera)
        await client.picture()
        camera.size = (256, 96)
        assert (
            await ended(service, client) == "pictures of 256x96 are too large: send at most 200 pixels a side"
        )
        await client.close()


class Huge(Camera):
    """A camera that encodes its pictures, and from the tenth on claims that they are far larger."""

    def __init__(self, codec: str) -> None:
        super().__init__(RED)
        self._codec = codec
        self._encoder = VideoEncoder(codec, bitrate=500_000)

    async def recv(self):  # type: ignore[no-untyped-def]
        frame = await super().recv()
        picture = Picture(frame.to_ndarray(format="rgb24"), frame.pts, 0.0)
        (encoded,) = self._encoder.encode(picture, key=self.index % 10 == 1)
        packet = encoded.packet
        if self.index > 10 and encoded.key:
            packet = av.Packet(self._large() if self._codec == "h264" else self._lying(bytes(packet)))
            packet.pts = encoded.packet.pts
        packet.time_base = frame.time_base
        return packet

    @staticmethod
    def _lying(key_frame: bytes) -> bytes:
        return key_frame[:6] + (16_383).to_bytes(2, "little") * 2 + key_frame[10:]

    @staticmethod
    def _large() -> bytes:
        image = np.zeros((1088, 4096, 3), np.uint8)
        (encoded,) = VideoEncoder("h264", bitrate=500_000).encode(Picture(image, 0, 0.0), key=True)
        return bytes(encoded.packet)


@pytest.mark.parametrize(("codec", "size"), [("vp8", "16383x16383"), ("h264", "4096x1088")])
async def test_no_decoder_gets_to_see_pictures_that_are_too_large(
    service: Running, monkeypatch: pytest.MonkeyPatch, codec: str, size: str
) -> None:
    decoded: list[tuple[int, int] | None] = []
    for name, kind in (("vp8", Vp8Decoder), ("h264", H264Decoder)):

        def decode(self: Any, frame: Any, name: str = name, decode: Any = kind.decode) -> Any:
            decoded.append(claimed_size(name, frame.data))
            return decode(self, frame)

        monkeypatch.setattr(kind, "decode", decode)
    good = await connect(service.http, "/whip", Camera(GREEN))
    await good.picture(is_like(MAGENTA))
    client = await connect(service.http, "/whip", Huge(codec), codec=codec, listen=False)
    (_, session) = service.server.registry.sessions
    await until(lambda: session.over_because is not None)
    assert session.over_because == f"pictures of {size} are too large: send at most 2048 pixels a side"
    await good.picture(is_like(MAGENTA))
    assert {(128, 96)} <= {*decoded} <= {(128, 96), None}
    for each in (client, good):
        await each.close()


class Black(Camera):
    """A camera that never has a picture."""

    async def recv(self):  # type: ignore[no-untyped-def]
        await asyncio.Event().wait()


async def test_a_camera_without_a_picture_ends_its_session() -> None:
    async with running(ServerSettings(port=0, limits=Limits(silence_seconds=0.7))) as service:
        client = await connect(service.http, "/whip", Black())
        assert await ended(service, client) == "no picture came for 0.7 s"
        await client.close()


async def test_whoever_never_connects_loses_the_place() -> None:
    async with running(ServerSettings(port=0, limits=Limits(connect_seconds=0.2))) as service:
        client = await connect(service.http, "/whip", Camera())
        await client.close()
        assert await ended(service, client)


async def test_a_publisher_that_leaves_ends_the_session_for_its_watchers(service: Running) -> None:
    publisher = await connect(service.http, "/whip", Camera(RED))
    await publisher.picture()
    watcher = await connect(service.http, publisher.links[WHEP])
    await watcher.picture()
    await publisher.close()
    assert await ended(service, publisher) in ("the publisher went away", "the peer went away")
    await until(lambda: watcher.connection.connectionState in ("closed", "failed"))
    assert service.cores[0].closed
    await watcher.close()


async def test_a_core_that_fails_ends_its_session_with_the_reason(service: Running) -> None:
    publisher = await connect(service.http, "/whip", Camera(RED))
    await publisher.picture()
    await asyncio.to_thread(service.cores[0].ended, "the network has melted")
    assert await ended(service, publisher) == "the network has melted"
    await publisher.close()


async def test_a_core_that_raises_ends_its_session_with_the_reason(service: Running) -> None:
    publisher = await connect(service.http, "/whip", Camera(RED))
    await publisher.picture()
    service.cores[0].changes.clear()  # the stand-in stumbles over that
    assert await ended(service, publisher) == "reading failed: IndexError: list index out of range"
    await publisher.close()


PERIOD = 0.5  # seconds from one flash and click to the next


class Flashes(Camera):
    """White for a tenth of each period."""

    async def recv(self) -> VideoFrame:
        self.colour = (255, 255, 255) if self.index / 30 % PERIOD < 0.1 else (0, 0, 0)
        return await super().recv()


class Clicks(Microphone):
    """A tone while the camera shows white."""

    async def recv(self) -> AudioFrame:
        loud = self.index / 50 % PERIOD < 0.1
        frame = await super().recv()
        if not loud:
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        return frame


async def test_lips_are_in_time() -> None:
    """What is seen and what is heard at once is sent with the same time, and with the same delay."""
    async with running(ServerSettings(port=0, latency=0.1)) as service:
        flashes, clicks = Flashes((0, 0, 0)), Clicks()
        publisher = await connect(service.http, "/whip", flashes, clicks)
        (session,) = service.server.registry.sessions

        async def rises(codec: str, count: int) -> list[float]:
            """When, in the stream's time, it gets dark (what is inverted) or loud."""
            subscription = session.lane(codec).subscribe()
            decoder = av.CodecContext.create({"vp8": "libvpx", "opus": "libopus"}[codec], "r")
            times, on = [], True
            while len(times) < count:
                encoded = await subscription.next()
                assert encoded is not None
                for frame in decoder.decode(encoded.packet):
                    level = float(np.abs(frame.to_ndarray()).mean())
                    now_on = level < 100 if codec == "vp8" else level > 0.01
                    if now_on and not on:
                        times.append(encoded.captured_at)
                    on = now_on
            return times

        seen, heard = await asyncio.gather(rises("vp8", 7), rises("opus", 7))
        apart = [min(((s - h) for h in heard), key=abs) for s in seen[2:]]
        assert abs(median(apart)) < 0.04
        await publisher.close()


async def test_fifteen_watchers_come_and_go_and_one_encoder_serves_them() -> None:
    async with running(ServerSettings(port=0, latency=0.1, limits=Limits(offers_per_minute=1e4))) as service:
        publisher = await connect(service.http, "/whip", Camera(RED), listen=False)
        link = publisher.links[WHEP]

        async def visit() -> None:
            watcher = await connect(service.http, link, codec="vp8")
            await watcher.picture(is_like(CYAN))
            response = await service.http.delete(watcher.location)
            assert response.status == 200
            await watcher.close()

        staying = await connect(service.http, link, codec="vp8")
        await staying.picture()
        (session,) = service.server.registry.sessions
        lane = session.lane("vp8")
        before, offered = lane.encoded, service.cores[0].offered
        for _ in range(3):
            await asyncio.gather(*(visit() for _ in range(5)))
        assert lane.encoded - before <= service.cores[0].offered - offered + 5
        await staying.picture()
        assert lane.watchers == 1
        assert len(session.watchers) == 1
        for client in (staying, publisher):
            await client.close()


async def test_the_watchdog_finds_whoever_holds_the_loop() -> None:
    def hold() -> None:
        begin = time.thread_time()
        while time.thread_time() - begin < 0.012:
            pass

    async def hold_later() -> None:
        await asyncio.sleep(0)
        hold()

    with watchdog() as found:
        asyncio.get_running_loop().call_soon(hold)
        await asyncio.create_task(hold_later())
    assert len(found.slow) == 2
    assert "hold" in found.slow[0][1]
    assert "test_media.py" in found.slow[1][1]


async def a_visit() -> set[str]:
    """A publisher and a watcher come and go; gives what took the loop more than 10 ms."""
    with watchdog() as found:
        async with running(ServerSettings(port=0, latency=0.1)) as service:
            publisher = await connect(service.http, "/whip", Camera(RED, (640, 480)), Microphone())
            watcher = await connect(service.http, publisher.links[WHEP])
            for _ in range(45):
                await publisher.picture()
            await service.http.patch(publisher.links["urn:toonstream:settings"], json={"style": "flat"})
            await service.http.get("/metrics")
            await watcher.picture(is_like(BLUE))
            for client in (watcher, publisher):
                await client.close()
    return {what for _, what in found.slow}


async def test_no_callback_holds_the_loop() -> None:
    slow = await a_visit()
    for _ in range(2):  # what only happens once is the machine's doing
        slow = slow and slow & await a_visit()
    assert slow == set()


async def test_the_end_of_the_server_is_the_end_of_all_peers_in_time() -> None:
    async with running(ServerSettings(port=0, latency=0.1, grace=3.0)) as service:
        publisher = await connect(service.http, "/whip", Camera(RED), Microphone())
        watcher = await connect(service.http, publisher.links[WHEP])
        await watcher.picture()
    assert service.cores[0].finished
    assert service.cores[0].closed
    assert not service.server.left_behind
    for client in (publisher, watcher):
        await until(lambda client=client: client.connection.connectionState in ("closed", "failed"))  # type: ignore[misc]
        await client.close()


async def test_a_network_that_does_not_end_is_left_behind_in_time() -> None:
    let_go = threading.Event()
    async with running(ServerSettings(port=0, latency=0.1, grace=0.5)) as service:
        publisher = await connect(service.http, "/whip", Camera(RED))
        await publisher.picture()
        service.cores[0].finish = service.cores[0].close = let_go.wait  # type: ignore[assignment]
    assert service.server.left_behind
    let_go.set()
    await until(lambda: publisher.connection.connectionState in ("closed", "failed"))
    await publisher.close()


def test_it_runs_on_uvloop_as_well() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def there_and_back() -> None:
        async with running(ServerSettings(port=0, latency=0.1)) as service:
            publisher = await connect(service.http, "/whip", Camera(RED), Microphone())
            await publisher.picture(is_like(CYAN))
            watcher = await connect(service.http, publisher.links[WHEP])
            await watcher.picture(is_like(CYAN))
            for client in (watcher, publisher):
                await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(there_and_back())
