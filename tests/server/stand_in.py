"""A live core that only inverts colours, clients made of aiortc, and a watchdog over the loop."""

import asyncio
import gc
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import aiohttp
import numpy as np
import pytest
from aioice.ice import get_host_addresses
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, VideoFrame

from toonstream.server.app import Server
from toonstream.server.live import Catalogue, Change, Deliver, Ended
from toonstream.server.settings import ServerSettings
from toonstream.stream.frame import Frame

CATALOGUE = Catalogue(model="inverter", prompt="", styles=("ink", "flat"), steps=1, window=4, latency=0.4)
SDP = {"Content-Type": "application/sdp"}


class Inverter:
    """Turns light into dark, at once. `flat` style makes everything blue."""

    def __init__(self, change: Change, deliver: Deliver, ended: Ended) -> None:
        self.changes = [change]
        self.offered = 0
        self.finished = self.closed = False
        self.kept = True
        self.events: list[dict[str, object]] = []
        self.ended = ended
        self.ages: list[float] = []
        self._deliver = deliver

    def offer(self, frame: Frame, captured_at: float) -> None:
        self.offered += 1
        image = 255 - frame.image
        if self.changes[-1].style == "flat":
            image = np.broadcast_to(np.array([0, 0, 255], np.uint8), image.shape).copy()
        self._deliver(replace(frame, image=image), captured_at)

    def change(self, change: Change) -> None:
        self.changes.append(change)

    def aged(self, seconds: float) -> None:
        self.ages.append(seconds)

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed = True

    def say(self, kind: str, message: str) -> None:
        self.events.append({"at": time.monotonic(), "kind": kind, "message": message})

    def statistics(self) -> Mapping[str, object]:
        parts = {"count": 3, "p50": 0.01, "p95": 0.02, "p99": 0.03}
        return {
            "offered": self.offered,
            "dropped": {"input": {"late": 3}},
            "stages": {"unet": parts},
            "waits": {"window": parts, "turn": {"count": 0, "p50": None, "p95": None, "p99": None}},
            "events": tuple(self.events),
            "promise": 0.1,
            "kept": self.kept,
        }


@dataclass
class Running:
    """A server with its live cores, and an HTTP client for it."""

    server: Server
    cores: list[Inverter]
    http: aiohttp.ClientSession
    url: str

    def load(self) -> None:
        self.server.loaded(CATALOGUE)


@asynccontextmanager
async def running(settings: ServerSettings | None = None, *, loaded: bool = True) -> AsyncIterator[Running]:
    if not get_host_addresses(use_ipv4=True, use_ipv6=True):
        pytest.skip("aioice names no loopback addresses to peers: a network interface is needed")
    cores: list[Inverter] = []

    def open_live(change: Change, deliver: Deliver, ended: Ended) -> Inverter:
        cores.append(Inverter(change, deliver, ended))
        return cores[-1]

    settings = settings or ServerSettings(port=0, latency=0.1)
    async with Server(settings, open_live, CATALOGUE if loaded else None) as server:
        url = f"http://127.0.0.1:{server.port}"
        async with aiohttp.ClientSession(url) as http:
            yield Running(server, cores, http, url)
    # aiortc's decoder threads say goodbye through the loop
    await asyncio.sleep(0)


class Camera(MediaStreamTrack):
    """Pictures of one colour, 30 a second, of a size that may change."""

    kind = "video"

    def __init__(
        self, colour: tuple[int, int, int] = (240, 30, 30), size: tuple[int, int] = (128, 96)
    ) -> None:
        super().__init__()
        self.colour, self.size = colour, size
        self.index = 0
        self._began: float | None = None

    async def recv(self) -> VideoFrame:
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        self._began = self._began or loop.time()
        await asyncio.sleep(self._began + self.index / 30 - loop.time())
        width, height = self.size
        image = np.broadcast_to(np.array(self.colour, np.uint8), (height, width, 3))
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self.index * 3000, Fraction(1, 90_000)
        self.index += 1
        return frame


class Microphone(MediaStreamTrack):
    """A tone in packets of 20 ms."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.index = 0
        self._began: float | None = None

    async def recv(self) -> AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        self._began = self._began or loop.time()
        await asyncio.sleep(self._began + self.index / 50 - loop.time())
        times = (np.arange(960) + 960 * self.index) / 48_000
        tone = (8_000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
        frame = AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 960 * self.index, Fraction(1, 48_000)
        self.index += 1
        return frame


@dataclass
class Client:
    """One aiortc peer, publishing or watching."""

    connection: RTCPeerConnection
    tracks: dict[str, MediaStreamTrack]
    location: str = ""
    etag: str = ""
    answer: str = ""
    links: Mapping[str, str] = field(default_factory=dict)

    async def picture(self, like: Callable[[np.ndarray], bool] = lambda image: True) -> np.ndarray:
        """The next picture for which `like` holds."""
        async with asyncio.timeout(15):
            while True:
                frame = await self.tracks["video"].recv()
                assert isinstance(frame, VideoFrame)
                image = frame.to_ndarray(format="rgb24")
                if like(image):
                    return image

    async def close(self) -> None:
        await self.connection.close()


def links_of(response: aiohttp.ClientResponse) -> dict[str, str]:
    links = (
        re.fullmatch(r'<([^>]+)>; rel="([^"]+)".*', link) for link in response.headers.getall("Link", [])
    )
    return {link[2]: link[1] for link in links if link}


async def connect(
    http: aiohttp.ClientSession,
    endpoint: str,
    *tracks: MediaStreamTrack,
    codec: str | None = None,
    listen: bool = True,
    headers: Mapping[str, str] = {},
    expect: int = 201,
    configuration: RTCConfiguration | None = None,
    offered: Callable[[str], str] = lambda offer: offer,
    answered: Callable[[str], str] = lambda answer: answer,
) -> Client:
    """Publish `tracks` by WHIP, or watch by WHEP where there are none.

    Offer and answer go through `offered` and `answered` on their way.
    """
    connection = RTCPeerConnection(configuration or RTCConfiguration(iceServers=[]))
    client = Client(connection, {})
    connection.on("track", lambda track: client.tracks.setdefault(track.kind, track))
    for track in tracks:
        connection.addTransceiver(track, direction="sendrecv" if listen else "sendonly")
    if not tracks:
        for kind in ("video", "audio"):
            connection.addTransceiver(kind, direction="recvonly")
    await connection.setLocalDescription(await connection.createOffer())
    sdp = connection.localDescription.sdp
    if codec:
        sdp = only(codec, sdp)
    async with http.post(endpoint, data=offered(sdp), headers={**SDP, **headers}) as response:
        text = await response.text()
        assert response.status == expect, (response.status, text)
        client.answer = text
        if response.status != 201:
            await connection.close()
            return client
        client.location, client.etag = response.headers["Location"], response.headers["ETag"]
        client.links = links_of(response)
    await connection.setRemoteDescription(RTCSessionDescription(answered(text), "answer"))
    return client


def only(codec: str, sdp: str) -> str:
    """Leave one video codec in an offer."""
    wanted = re.findall(rf"a=rtpmap:(\d+) {codec}/", sdp, re.IGNORECASE)
    offered = re.search(r"^m=video \S+ \S+ ([\d ]+)", sdp, re.MULTILINE)
    assert offered
    others = "|".join(number for number in offered[1].split() if number not in wanted)

    def strip(match: re.Match[str]) -> str:
        return f"{match[1]} {' '.join(wanted)}"

    sdp = re.sub(r"^(m=video \S+ \S+) [\d ]+", strip, sdp, flags=re.MULTILINE)
    return re.sub(rf"^a=(?:rtpmap|fmtp|rtcp-fb):(?:{others}) .*\r?\n", "", sdp, flags=re.MULTILINE)


def is_like(colour: tuple[int, int, int]) -> Callable[[np.ndarray], bool]:
    return lambda image: bool(np.abs(image.mean((0, 1)) - colour).max() < 25)


@dataclass
class Watchdog:
    """CPU seconds of the event loop's callbacks that took long, by what they were."""

    slow: list[tuple[float, str]]


@contextmanager
def watchdog(limit: float = 0.010) -> Iterator[Watchdog]:
    """Measure every step of every task, and every other callback, by the CPU time of the loop's thread.

    CPU time, since on a busy machine wall time measures the others. What tests do themselves on the same
    loop, being the camera and the screen, does not count.
    """
    found = Watchdog([])
    loop, run, main = asyncio.get_running_loop(), asyncio.Handle._run, threading.get_ident()

    def note(seconds: float, what: Callable[[], str]) -> None:
        if seconds > limit and __file__ not in what():
            found.slow.append((seconds, what()))

    class Measured(Coroutine[Any, Any, Any]):
        """A coroutine whose steps are measured."""

        def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
            self.work = work

        def __await__(self) -> Iterator[Any]:
            return self.work.__await__()

        def send(self, value: Any) -> Any:
            begin, before = time.thread_time(), _where(self.work)
            try:
                return self.work.send(value)
            finally:
                note(time.thread_time() - begin, lambda: f"{before} => {_where(self.work)}")

        def throw(self, *error: Any) -> Any:
            return self.work.throw(*error)

        def close(self) -> None:
            self.work.close()

    def measured(handle: asyncio.Handle) -> None:
        begin = time.thread_time()
        run(handle)
        seconds, back = time.thread_time() - begin, handle._callback
        steps = isinstance(getattr(back, "__self__", None), asyncio.Task)
        steps = steps or type(back).__name__ == "TaskStepMethWrapper"
        if (
            not steps and threading.get_ident() == main
        ):  # no repr: half-made responses of aiohttp do not bear it
            note(seconds, lambda: getattr(back, "__qualname__", "") or type(back).__name__)

    loop.set_task_factory(lambda loop, work, **more: asyncio.Task(Measured(work), loop=loop, **more))
    asyncio.Handle._run = measured  # type: ignore[method-assign]
    gc.disable()  # what has been imported is large, and walking it is nobody's callback
    try:
        yield found
    finally:
        gc.enable()
        asyncio.Handle._run = run  # type: ignore[method-assign]
        loop.set_task_factory(None)


def _where(coroutine: Any) -> str:
    """The files and lines where a coroutine waits, outermost first."""
    places = []
    while getattr(coroutine, "cr_frame", None) is not None:
        places.append(f"{coroutine.cr_code.co_filename}:{coroutine.cr_frame.f_lineno} {coroutine.__name__}")
        coroutine = coroutine.cr_await
    return " > ".join(places) or type(coroutine).__name__


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            with suppress(TimeoutError):
                await asyncio.sleep(0.02)
