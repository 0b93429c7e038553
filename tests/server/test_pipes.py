"""WHIP and WHEP as the ends of a pipe."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import Mock

import aiohttp
import av
import numpy as np
import pytest
from certificates import write_certificate
from stand_in import Camera, Client, Microphone, connect, is_like, until

from toonstream.errors import OutputError, SettingError
from toonstream.server.background import Background
from toonstream.server.pipes import WhepOutput, WhipSource, _Captured, _Heard, _Publication
from toonstream.server.settings import ServerSettings
from toonstream.stream.clock import monotonic
from toonstream.stream.frame import Frame
from toonstream.stream.live.core import LiveToon
from toonstream.stream.live.session import End
from toonstream.stream.live.settings import Plan
from toonstream.stream.live.statistics import Meter
from toonstream.stream.relay import Relay
from toonstream.stream.retry import Patience
from toonstream.stream.sinks.tee import Outlet, Tee
from toonstream.stream.sources.live import Picture, SourceGone
from toonstream.stream.sources.timeline import Timeline

RED, CYAN, GREEN, MAGENTA = (240, 30, 30), (15, 225, 225), (30, 200, 30), (225, 55, 225)
PLAN = Plan(size=(128, 96), steps=1, window=1, stride=1)


class Inverter:
    """A session that turns light into dark, at once."""

    def __init__(self, deliver: Callable[[LiveToon], None], ended: Callable[[End], None]) -> None:
        self._deliver, self._ended = deliver, ended
        self._over = False

    def offer(self, frame: Any, captured_at: float) -> None:
        toon = replace(frame, image=255 - frame.image)
        now = monotonic()
        self._deliver(LiveToon(source=frame, toon=toon, captured_at=captured_at, committed_at=now, plan=PLAN))

    def finish(self) -> None:
        self.close()

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._ended(End(reason="finished", message="done"))

    def wait(self, seconds: float | None = None) -> bool:
        return self._over

    def note_shown(self, toon: LiveToon, at: float | None = None) -> None:
        pass

    def statistics(self) -> Any:
        return Meter().read(at=0.0)


@pytest.fixture
def port(unused_tcp_port_factory: Callable[[], int]) -> int:
    return unused_tcp_port_factory()


async def published(url: str, camera: Camera) -> tuple[aiohttp.ClientSession, Client]:
    http = aiohttp.ClientSession(url)
    return http, await connect(http, "/whip", camera, Microphone(), listen=False)


async def test_whoever_publishes_from_outside_may_do_so_over_tls(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = write_certificate(tmp_path)
    monkeypatch.setenv("TOONSTREAM_TOKEN", "sesame-of-sixteen-letters")
    with WhipSource(f"whip://127.0.0.1:{port}", tls_cert=certificate, tls_key=key) as source:
        assert source.shown == f"https://127.0.0.1:{port}/whip"
        trust = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(certificate)))
        bearer = {"Authorization": "Bearer sesame-of-sixteen-letters"}
        http = aiohttp.ClientSession(f"https://localhost:{port}", connector=trust, headers=bearer)
        client = await connect(http, "/whip", Camera(RED), Microphone(), listen=False)
        events = source.read(Timeline(), lambda format_: None)
        picture = await asyncio.to_thread(next, events)
        assert isinstance(picture, Picture)
        await client.close()
        await http.close()


async def test_what_is_published_comes_in_with_its_times_and_its_sound_and_again(port: int) -> None:
    with WhipSource(f"whip://127.0.0.1:{port}") as source:
        timeline, formats = Timeline(), []
        ends = []
        for colour in (RED, GREEN):
            http, client = await published(f"http://127.0.0.1:{port}", Camera(colour))
            pictures: list[Any] = []
            sounds: list[Any] = []

            def read(pictures: list[Any], sounds: list[Any]) -> None:
                try:
                    for event in source.read(timeline, formats.append):
                        (pictures if isinstance(event, Picture) else sounds).append(event)
                except SourceGone as error:
                    ends.append(str(error))

            reading = asyncio.create_task(asyncio.to_thread(read, pictures, sounds))
            while min(len(pictures), len(sounds)) < 20:
                await asyncio.sleep(0.02)
            await http.delete(client.location)
            await reading
            assert all(is_like(colour)(each.frame.image) for each in pictures)
            times = [each.frame.pts * each.frame.time_base for each in pictures]
            assert all(later > earlier for earlier, later in pairwise(times))
            begins = [each.begin for each in sounds]
            assert all(later > earlier for earlier, later in pairwise(begins))
            assert median(later - earlier for earlier, later in pairwise(begins)) == Fraction(1, 50)
            decoder = sounds[0].format.decoder()
            heard = [frame for each in sounds for frame in decoder.decode(av.Packet(each.data))]
            assert max(np.abs(frame.to_ndarray()).max() for frame in heard) > 2_000
            await client.close()
            await http.close()
        assert len(ends) == len(formats) == source.statistics.opened == 2
        assert ends[0].endswith(f"127.0.0.1:{port}/whip left")


async def test_sound_and_the_end_outlast_the_time_that_networks_take_to_load(port: int) -> None:
    with WhipSource(f"whip://127.0.0.1:{port}") as source:
        camera, formats = Camera(RED), []
        http, client = await published(f"http://127.0.0.1:{port}", camera)
        await until(lambda: camera.index > 120)  # with the sound, more than anybody keeps
        pictures: list[Picture] = []
        sounds: list[Any] = []

        def read() -> None:
            for event in source.read(Timeline(), formats.append):
                if isinstance(event, Picture):
                    pictures.append(event)
                else:
                    sounds.append(event)

        reading = asyncio.create_task(asyncio.to_thread(read))
        await until(lambda: reading.done() or min(len(pictures), len(sounds)) > 20)
        assert formats[0].sound is not None
        await http.delete(client.location)
        with pytest.raises(SourceGone, match="left"):
            await reading
        await client.close()
        await http.close()


def test_of_what_nobody_reads_the_latest_is_kept_and_few_pictures_since_they_are_large() -> None:
    waiting = _Publication(heard=True)
    image = np.zeros((2, 2, 3), np.uint8)
    for number in range(1000):
        frame = Frame(index=number, pts=number, time_base=Fraction(1, 50), image=image)
        if number < 500:
            waiting.put(_Captured(frame=frame, at=number / 50))
        waiting.put(_Heard(data=b"", at=number / 50))
    waiting.end()
    kept = []
    while not waiting.over:
        kept.append(waiting.get(0.0))
    assert [item.at for item in kept if isinstance(item, _Heard)] == [n / 50 for n in range(744, 1000)]
    assert not any(isinstance(item, _Captured) for item in kept)  # the sound after them is newer
    waiting = _Publication(heard=False)
    for number in range(100):
        frame = Frame(index=number, pts=number, time_base=Fraction(1, 50), image=image)
        waiting.put(_Captured(frame=frame, at=number / 50))
    assert [waiting.get(0.0).at for _ in range(8)] == [n / 50 for n in range(92, 100)]  # type: ignore[union-attr]
    assert waiting.get(0.0) is None
    assert not waiting.over


async def test_from_whip_to_whep(port: int, unused_tcp_port_factory: Callable[[], int]) -> None:
    out = unused_tcp_port_factory()
    lines: list[str] = []
    with (
        WhipSource(f"whip://127.0.0.1:{port}") as source,
        WhepOutput(f"whep://127.0.0.1:{out}/stage", bitrate=500_000) as whep,
    ):
        assert whep.url == f"http://127.0.0.1:{out}/#watch=stage"
        relay = Relay(
            source,
            Inverter,  # type: ignore[arg-type]
            Tee([Outlet(whep.destination, Patience(), note=lines.append)]),
            size=lambda width, height: (width, height),
            patience=Patience(first=0.05),
            note=lines.append,
            clock=monotonic,
        )
        stop = threading.Event()
        running = asyncio.create_task(asyncio.to_thread(relay.run, stopped=stop.is_set))
        http, client = await published(f"http://127.0.0.1:{port}", Camera(RED))
        async with aiohttp.ClientSession(f"http://127.0.0.1:{out}") as watching:
            await until(lambda: relay.news().outlets[0].state == "open")
            watcher = await connect(watching, "/whep/stage")
            await watcher.picture(is_like(CYAN))
            heard = [await watcher.tracks["audio"].recv() for _ in range(30)]
            assert max(np.abs(frame.to_ndarray()).max() for frame in heard) > 2_000  # type: ignore[union-attr]
            await http.delete(client.location)
            await until(lambda: any("left; again in" in line for line in lines))
            await watcher.picture(is_like(CYAN))  # the last one is shown on
            http2, client2 = await published(f"http://127.0.0.1:{port}", Camera(GREEN))
            await watcher.picture(is_like(MAGENTA))
            await connect(watching, "/whip", Camera(RED), expect=503)  # others do not publish here
            stop.set()
            news = await running
            await until(lambda: watcher.connection.connectionState in ("closed", "failed"))
            for each in (client, client2, watcher):
                await each.close()
            for session in (http, http2):
                await session.close()
    assert news.outlets[0].state == "closed"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("whip://", "write whip://HOST:PORT"),
        ("whip://127.0.0.1:x", "write whip://HOST:PORT"),
        ("whip://user:secret@127.0.0.1", "TOONSTREAM_TOKEN"),
        ("whip://0.0.0.0:8080", "set a token"),
        ("whip://127.0.0.1/a", "3 to 64 letters"),
    ],
)
def test_addresses_that_are_none(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOONSTREAM_TOKEN", raising=False)
    with pytest.raises(SettingError, match=reason) as caught:
        WhipSource(address)
    assert "secret" not in str(caught.value)


def test_a_server_beside_a_pipe_runs_on_uvloop_where_there_is_one(port: int) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with Background(ServerSettings(port=port), Mock()) as background:
        assert isinstance(background.run(loop(), 10.0), uvloop.Loop)


def test_a_stream_without_a_name() -> None:
    with pytest.raises(OutputError, match="names no stream"):
        WhepOutput("whep://127.0.0.1:8080")


def test_a_place_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"whip://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OutputError, match="cannot listen"), WhipSource(address):
            pass
