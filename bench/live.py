"""The live service over real peer connections on this machine.

    python bench/live.py media [--watchers 0 1 5 10]   CPU of the way in and out, without networks
    python bench/live.py churn [--visits 100] [--at-once 5] [--rounds 1]   watchers that come and go
    python bench/live.py rough [--seconds 20]          networks that lose and delay packets
    python bench/live.py glass [--sizes 256 384] [--promises 200ms 300ms 400ms 700ms] [--hogs 4]

`media` compares three servers that give back what they are sent, 640×480 at 30 fps: ours (pictures through
the whole server, a copy for a network); aiortc's own (the track handed back and relayed, decoded and encoded
by aiortc, once for each watcher); and what peers do, one JPEG after the other over a WebSocket, there and
back. The CPU is that of the server's process alone; camera and screens are in this one.

`churn` lets each visitor connect and see a picture before it leaves, every third without a word: the server
finds out half a minute later. One watcher stays, and counts what it misses.

`rough` sends what is published, and what comes back, through a link that loses packets, both ways, and takes
its time, as `tc netem` would where it is permitted. A freeze is the longest time without a new picture.

`glass` measures from glass to glass: the camera shows a light band that moves from place to place, and what
counts is the time from there to the screen, through two encoders, two decoders, and the networks that ship,
in `toonstream serve`. A row takes half a minute and no more: one in which nothing is shown says so. With
`--hogs`, so many other processes want the cores while it is measured; so do camera and screen.
"""

import argparse
import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from statistics import median

import aiohttp
import cv2
import numpy as np
import psutil
from aiohttp import web
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaRelay
from av import VideoFrame
from hogs import hogs
from link import Link, link
from numpy.typing import NDArray

from toonstream.server.app import Server
from toonstream.server.live import Catalogue, Change, Deliver, Ended
from toonstream.server.settings import Limits, ServerSettings
from toonstream.stream.frame import Frame
from toonstream.stream.live.statistics import Percentiles

_WIDTH, _HEIGHT, _RATE = 640, 480, 30
_SDP = {"Content-Type": "application/sdp"}
_SETTLE = 3.0  # seconds that are not measured
_START, _FIRST = 180.0, 10.0  # seconds that a server may take to begin, and the first picture
_NOTICED, _POLL = 90.0, 1.0  # seconds until who is gone has to be known, and between two looks
_TICKS = 90_000  # a second, of a picture's time
_LIMITS = Limits(offers_per_minute=1e6, changes_per_second=1e6)


class Copier:
    """A live core that copies every picture, as one that draws would at least have to."""

    def __init__(self, change: Change, deliver: Deliver, ended: Ended) -> None:
        self._deliver = deliver

    def offer(self, frame: Frame, captured_at: float) -> None:
        """Give it back."""
        image = frame.image.copy()
        self._deliver(
            Frame(index=frame.index, pts=frame.pts, time_base=frame.time_base, image=image), captured_at
        )

    def change(self, change: Change) -> None:
        """Nothing to be changed."""

    def finish(self) -> None:
        """Nothing is in flight."""

    def close(self) -> None:
        """Nothing to let go of."""

    def aged(self, seconds: float) -> None:
        """It makes no difference."""

    def statistics(self) -> Mapping[str, object]:
        """None."""
        return {}


# ---- servers, each in a process of its own


async def _serve_ours() -> None:
    catalogue = Catalogue(model="copy", prompt="", styles=(), steps=1, window=1, latency=0.1)
    settings = ServerSettings(port=0, latency=0.1, max_watchers=1000, limits=_LIMITS)
    async with Server(settings, Copier, catalogue) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


async def _serve_aiortc() -> None:
    """The few lines that aiortc's examples need for the same."""
    peers: list[RTCPeerConnection] = []
    relay = MediaRelay()
    source: list[MediaStreamTrack] = []

    async def answer(request: web.Request) -> web.Response:
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        peers.append(peer)

        @peer.on("track")
        def _(track: MediaStreamTrack) -> None:
            source.append(track)
            peer.addTrack(relay.subscribe(track))

        if request.path.startswith("/whep"):
            peer.addTrack(relay.subscribe(source[0]))
        await peer.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        headers = {"Location": "/x", "Link": '</whep/x>; rel="urn:toonstream:whep"'}
        return web.Response(status=201, text=peer.localDescription.sdp, headers=headers)

    app = web.Application()
    app.router.add_post("/whip", answer)
    app.router.add_post("/whep/x", answer)
    await _listen(app)


async def _serve_jpeg() -> None:
    async def talk(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
            await socket.send_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        return socket

    app = web.Application()
    app.router.add_get("/jpeg", talk)
    await _listen(app)


async def _listen(app: web.Application) -> None:
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


_SERVERS = {"ours": _serve_ours, "aiortc": _serve_aiortc, "jpeg": _serve_jpeg}


@asynccontextmanager
async def _server(kind: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    words = [sys.executable, __file__, "--serve", kind]
    process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    try:
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


# ---- camera and screen


def scene_of(index: int) -> NDArray[np.uint8]:
    """A picture that is neither still nor noise."""
    rows, columns = np.mgrid[0:_HEIGHT, 0:_WIDTH]
    waves = 127 + 60 * np.sin((columns + 5 * index) / 40) + 60 * np.cos((rows - 3 * index) / 30)
    image = np.stack([waves, np.roll(waves, 90, 1), 255 - waves], -1).astype(np.uint8)
    cv2.circle(image, ((index * 9) % _WIDTH, 240), 60, (250, 240, 230), -1)
    return image


class Camera(MediaStreamTrack):
    """Shows pictures.

    Args:
        picture: gives the picture of an index.
        rate: pictures a second.
    """

    kind = "video"

    def __init__(self, picture: Callable[[int], NDArray[np.uint8]], rate: int = _RATE) -> None:
        super().__init__()
        self._picture = picture
        self._rate = rate
        self._index = 0
        self._began: float | None = None

    async def recv(self) -> VideoFrame:
        """The next picture, when it is due."""
        loop = asyncio.get_running_loop()
        self._began = self._began or loop.time()
        await asyncio.sleep(self._began + self._index / self._rate - loop.time())
        frame = VideoFrame.from_ndarray(self._picture(self._index), format="rgb24")
        frame.pts, frame.time_base = self._index * 90_000 // self._rate, Fraction(1, 90_000)
        self._index += 1
        return frame


class Screen:
    """One peer connection and the frames that come."""

    def __init__(self) -> None:
        self.peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.frames = 0
        self.location = ""
        self.link = ""
        self._watching: asyncio.Task[None] | None = None

    async def connect(
        self,
        http: aiohttp.ClientSession,
        endpoint: str,
        camera: Camera | None = None,
        shown: Callable[[VideoFrame], None] = lambda frame: None,
        through: Link | None = None,
    ) -> None:
        """Publish, or watch where there is no camera; `through` a network, or the machine's own."""
        self.peer.on("track", lambda track: self._watch(track, shown))
        self.peer.addTransceiver(camera or "video", direction="sendrecv" if camera else "recvonly")
        await self.peer.setLocalDescription(await self.peer.createOffer())
        offer = self.peer.localDescription.sdp
        offer = offer if through is None else through.offered(offer)
        response = await http.post(endpoint, data=offer, headers=_SDP)
        assert response.status == 201, await response.text()
        self.location = response.headers["Location"]
        for header in response.headers.getall("Link", []):
            match = re.fullmatch(r'<([^>]+)>; rel="urn:toonstream:whep"', header)
            self.link = match[1] if match else self.link
        answer = await response.text()
        answer = answer if through is None else through.answered(answer)
        await self.peer.setRemoteDescription(RTCSessionDescription(answer, "answer"))

    def _watch(self, track: MediaStreamTrack, shown: Callable[[VideoFrame], None]) -> None:
        async def look() -> None:
            while True:
                frame = await track.recv()
                assert isinstance(frame, VideoFrame)
                self.frames += 1
                shown(frame)

        self._watching = asyncio.create_task(look())

    async def first(self, seconds: float = 60.0) -> None:
        """Wait for a picture."""
        async with asyncio.timeout(seconds):
            while not self.frames:
                await asyncio.sleep(0.02)

    async def vanish(self) -> None:
        """Lose the network, so that nobody hears of it."""
        await self.peer.getReceivers()[0].transport.transport.stop()

    async def close(self) -> None:
        """Turn it off."""
        if self._watching is not None:
            self._watching.cancel()
        await self.peer.close()


# ---- what is measured


async def _media(watchers: Sequence[int], seconds: float) -> None:
    scene = [scene_of(index) for index in range(60)]
    print("| server | watchers | cores | fps on the first screen |\n|---|---|---|---|")
    for kind in ("ours", "aiortc"):
        for count in watchers:
            async with _server(kind) as (url, process), aiohttp.ClientSession(url) as http:
                screens = [Screen()]
                await screens[0].connect(http, "/whip", Camera(lambda index: scene[index % 60]))
                await screens[0].first()
                for _ in range(count):
                    screens.append(Screen())
                    await screens[-1].connect(http, screens[0].link)
                await asyncio.sleep(_SETTLE)
                cores, fps = await _load(process, screens[0], seconds)
                print(f"| {kind} | {count} | {cores:.2f} | {fps:.1f} |", flush=True)
                await asyncio.gather(*(screen.close() for screen in screens))
    async with _server("jpeg") as (url, process), aiohttp.ClientSession(url) as http:
        cores, fps = await _ping_pong(http, process, scene, seconds)
        print(f"| JPEG over a WebSocket | 0 | {cores:.2f} | {fps:.1f} |")


async def _load(process: psutil.Process, screen: Screen, seconds: float) -> tuple[float, float]:
    before, frames, begin = _cpu(process), screen.frames, time.perf_counter()
    await asyncio.sleep(seconds)
    passed = time.perf_counter() - begin
    return (_cpu(process) - before) / passed, (screen.frames - frames) / passed


async def _ping_pong(
    http: aiohttp.ClientSession, process: psutil.Process, scene: list[NDArray[np.uint8]], seconds: float
) -> tuple[float, float]:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
    pictures = [cv2.imencode(".jpg", image, quality)[1].tobytes() for image in scene]
    async with http.ws_connect("/jpeg", max_msg_size=0) as socket:
        before, begin, index = _cpu(process), time.perf_counter(), 0
        while (passed := time.perf_counter() - begin) < seconds:
            await asyncio.sleep(begin + index / _RATE - time.perf_counter())
            await socket.send_bytes(pictures[index % 60])
            await socket.receive_bytes()
            index += 1
        return (_cpu(process) - before) / passed, index / passed


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class Gaps:
    """Counts pictures by their times, and those between them that never came.

    Args:
        rate: pictures a second that there should be.
    """

    def __init__(self, rate: int) -> None:
        self._step = _TICKS // rate
        self._before: int | None = None
        self.seen = self.lost = 0

    def shown(self, time: int) -> None:
        """Take note of a picture's time in ticks."""
        if self._before is not None:
            self.lost += max(0, round((time - self._before) / self._step) - 1)
        self._before = time
        self.seen += 1


@dataclass
class Visitors:
    """What became of those who came to watch.

    Attributes:
        joined: how many were let in. waits: seconds until each saw its first picture.
        blind: in which state the connections of those were that saw none.
        polite: how many said goodbye. abrupt: how many were gone without a word.
        stayed, lost: pictures that the watcher who stayed saw, and missed, meanwhile.
        dropped: pictures and packets that the server left out meanwhile, by place and reason.
        memory: of the server in MiB, before, and after each round, once all were known to have left.
        noticed: seconds until the server knew that, after the last round.
        left: what it still counted after that, and after the publisher had left, too.
    """

    joined: int = 0
    polite: int = 0
    abrupt: int = 0
    stayed: int = 0
    lost: int = 0
    noticed: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)
    waits: list[float] = field(default_factory=list)
    blind: list[str] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    left: dict[str, float] = field(default_factory=dict)


async def _churn(visits: int, at_once: int, rounds: int) -> None:
    async with _server("ours") as (url, process), aiohttp.ClientSession(url) as http:
        found = await _visits(http, process, visits, at_once, rounds)
        threads = process.num_threads()
    before, *after = (f"{megabytes:.0f}" for megabytes in found.memory)
    print(
        f"{found.joined} of {rounds * visits} joined, {at_once} at a time; {len(found.waits)} saw a picture,"
        f" after {median(found.waits):.2f} s (median), {max(found.waits):.2f} s (longest)"
    )
    if found.blind:
        print(f"{len(found.blind)} saw nothing within a minute; their connections: {', '.join(found.blind)}")
    print(f"{found.polite} left with a DELETE, {found.abrupt} without a word")
    print(f"the watcher who stayed: {found.stayed} pictures seen, {found.lost} lost on the whole way")
    print(f"left out by the server: {found.dropped or 'none'}")
    print(f"server: {before} MiB before, {', '.join(after)} MiB after each round; {threads} threads")
    print(f"all visitors known to be gone after {found.noticed:.0f} s; left at the end: {found.left}")


async def _visits(
    http: aiohttp.ClientSession, process: psutil.Process, count: int, at_once: int, rounds: int
) -> Visitors:
    scene, found = [scene_of(index) for index in range(60)], Visitors()
    publisher, staying = Screen(), Screen()
    await publisher.connect(http, "/whip", Camera(lambda index: scene[index % 60]))
    await publisher.first()
    gaps = Gaps(_RATE)
    await staying.connect(http, publisher.link, shown=lambda frame: gaps.shown(frame.pts or 0))

    async def visit(number: int) -> None:
        begin, screen = time.perf_counter(), Screen()
        await screen.connect(http, publisher.link)
        found.joined += 1
        try:
            await screen.first()
            found.waits.append(time.perf_counter() - begin)
        except TimeoutError:
            found.blind.append(screen.peer.connectionState)
        if number % 3 == 2:
            await screen.vanish()
            found.abrupt += 1
        else:
            assert (await http.delete(screen.location)).status == 200
            found.polite += 1
        await screen.close()

    async def come(numbers: Sequence[int]) -> None:
        await asyncio.gather(*(visit(number) for number in numbers))

    await staying.first()
    await come([0] * at_once)  # caches fill
    found.joined = found.polite = 0
    found.waits.clear()
    found.memory.append(process.memory_info().rss / 2**20)
    gaps.seen = gaps.lost = 0
    dropped = await _drops(http)
    for _ in range(rounds):
        for first in range(0, count, at_once):
            await come(range(first, min(count, first + at_once)))
        begin = time.perf_counter()
        while await _gauge(http, "watchers") > 1 and time.perf_counter() - begin < _NOTICED:
            await asyncio.sleep(_POLL)
        found.noticed = time.perf_counter() - begin
        found.memory.append(process.memory_info().rss / 2**20)
    found.stayed, found.lost = gaps.seen, gaps.lost
    found.dropped = {
        place: more
        for place, number in (await _drops(http)).items()
        if (more := number - dropped.get(place, 0))
    }
    for screen in (staying, publisher):
        assert (await http.delete(screen.location)).status == 200
        await screen.close()
    found.left = {name: await _gauge(http, name) for name in ("watchers", "sessions")}
    return found


async def _drops(http: aiohttp.ClientSession) -> dict[str, int]:
    """What the server left out so far, by place and reason."""
    async with http.get("/metrics") as response:
        text = await response.text()
    pattern = r'^toonstream_frames_dropped_total\{place="(\w+)",reason="(\w+)"\} (\S+)$'
    return {
        f"{place} {reason}": int(float(number))
        for place, reason, number in re.findall(pattern, text, re.MULTILINE)
    }


async def _gauge(http: aiohttp.ClientSession, name: str) -> float:
    """A figure of the server's."""
    async with http.get("/metrics") as response:
        match = re.search(rf"^toonstream_{name} (\S+)$", await response.text(), re.MULTILINE)
    assert match is not None
    return float(match[1])


async def _rough(seconds: float) -> None:
    print("| loss % | delay ms, each way | packets lost | fps | pictures missing % | longest freeze s |")
    print("|---|---|---|---|---|---|", flush=True)
    for loss, delay in ((0.0, 0.0), (0.05, 0.0), (0.0, 0.1), (0.05, 0.1), (0.1, 0.1)):
        async with _server("ours") as (url, _), aiohttp.ClientSession(url) as http:
            print(await _through(http, loss, delay, seconds), flush=True)


async def _through(http: aiohttp.ClientSession, loss: float, delay: float, seconds: float) -> str:
    """A row: what comes back through a network like that."""
    scene, gaps = [scene_of(index) for index in range(60)], Gaps(_RATE)
    moments: list[float] = []

    def shown(frame: VideoFrame) -> None:
        gaps.shown(frame.pts or 0)
        moments.append(time.perf_counter())

    screen = Screen()
    async with link(loss=loss, delay=delay, jitter=delay / 10) as network:
        try:
            camera = Camera(lambda index: scene[index % 60])
            await screen.connect(http, "/whip", camera, shown, through=network)
            await screen.first()
            await asyncio.sleep(_SETTLE)
            lost = network.lost
            gaps.seen = gaps.lost = 0
            moments.clear()
            begin = time.perf_counter()
            await asyncio.sleep(seconds)
            moments.append(time.perf_counter())
        finally:
            await screen.close()
    freeze = max(later - earlier for earlier, later in pairwise([begin, *moments]))
    cells = [f"{100 * loss:g}", f"{1000 * delay:g}", f"{network.lost - lost}", f"{gaps.seen / seconds:.1f}"]
    cells += [f"{100 * gaps.lost / max(1, gaps.seen + gaps.lost):.1f}", f"{freeze:.2f}"]
    return f"| {' | '.join(cells)} |"


async def _glass(
    sizes: Sequence[int], promises: Sequence[str], seconds: float, engine: str, busy: int
) -> None:
    print(f"{seconds:g} s a row, {busy} other programs that want the cores; milliseconds\n")
    print("| side | promise | p50 | p95 | p99 | changes | fps | server p50 | p95 | p99 | plan | dropped |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for side in sizes:
        for promise in promises:
            row = f"| {side} | {promise} "
            words = ["--size", str(side), "--latency", promise, "--engine", engine]
            try:
                async with (
                    asyncio.timeout(_START) as limit,
                    toonstream_serve(words) as (url, _),
                    aiohttp.ClientSession(url) as http,
                ):
                    limit.reschedule(asyncio.get_running_loop().time() + _FIRST + 2 * _SETTLE + seconds + 5.0)
                    row += await _flashes(http, seconds, busy)
            except TimeoutError:
                row += "| nothing was shown in time " + 9 * "| "
            print(f"{row}|", flush=True)


@asynccontextmanager
async def toonstream_serve(words: Sequence[str]) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Run `toonstream serve` with these words; gives its address and its process once it is ready."""
    command = [sys.executable, "-m", "toonstream", "serve", "--port", "0", *words]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    said = ""
    while not (match := re.search(r"open (http://[\w.:]+)", said)):
        line = await process.stderr.readline()
        assert line, said
        said += line.decode()
    draining = asyncio.create_task(process.stderr.read())
    try:
        yield match[1], psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()
        await draining


async def _flashes(http: aiohttp.ClientSession, seconds: float, busy: int) -> str:
    """The cells of a row: how long after its capture a change is seen."""
    period, bands = 13, 8  # frames from one place to the next, which is no multiple of any stride; places
    sent: dict[int, float] = {}
    seen: list[tuple[float, float]] = []  # when, and how long after it was sent
    place = -1
    scene = [scene_of(index) // 3 for index in range(60)]

    def picture(index: int) -> NDArray[np.uint8]:
        number = index // period
        if index % period == 0:
            sent[number] = time.perf_counter()
        image = scene[index % 60].copy()
        width = _WIDTH // bands
        image[:, number % bands * width : (number % bands + 1) * width] += 150
        return image

    def shown(frame: VideoFrame) -> None:
        nonlocal place
        grey = frame.to_ndarray(format="gray8")
        lightest = int(np.argmax([part.mean() for part in np.array_split(grey, bands, axis=1)]))
        if lightest != place:
            place, now = lightest, time.perf_counter()
            number = max((n for n in sent if n % bands == lightest), default=None)
            if number is not None:
                seen.append((now, now - sent[number]))

    screen = Screen()
    try:
        await screen.connect(http, "/whip", Camera(picture), shown)
        await screen.first(_FIRST)
        await asyncio.sleep(2 * _SETTLE)  # the controller finds its plan
        with hogs(busy):
            begin, frames = time.perf_counter(), screen.frames
            await asyncio.sleep(seconds)
            fps = (screen.frames - frames) / (time.perf_counter() - begin)
            async with http.get(f"{screen.location}/statistics") as response:
                figures = await response.json()
    finally:
        await screen.close()
    waited = Percentiles.of(delay for when, delay in seen if when >= begin)
    core, of_server = figures["core"], figures["latency_ms"]
    plan = core.get("plan") or {}
    drawn = "x".join(str(side) for side in plan.get("size", ()))
    said = f"{drawn}, T {plan.get('steps')}, d {plan.get('window')}, s {plan.get('stride')}"
    said += f", 1 in {plan.get('every')}"
    dropped = [
        f"{place} {reason} {count}"
        for place, reasons in core.get("dropped", {}).items()
        for reason, count in reasons.items()
    ]
    parts = [_milliseconds(part) for part in (waited.p50, waited.p95, waited.p99)]
    parts += [str(waited.count), f"{fps:.1f}", *(str(of_server.get(part)) for part in ("p50", "p95", "p99"))]
    return f"| {' | '.join([*parts, said, ', '.join(dropped) or 'none'])} "


def _milliseconds(seconds: float | None) -> str:
    return "none" if seconds is None else f"{1000 * seconds:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("media", "churn", "rough", "glass"), default="media")
    parser.add_argument("--serve", choices=tuple(_SERVERS), help=argparse.SUPPRESS)
    parser.add_argument("--watchers", type=int, nargs="+", default=[0, 1, 5, 10])
    parser.add_argument("--visits", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=1, help="of visits, of churn")
    parser.add_argument("--at-once", type=int, default=5, help="visitors at a time, of churn")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384])
    parser.add_argument("--promises", nargs="+", default=["200ms", "300ms", "400ms", "700ms"])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--hogs", type=int, default=0, help="other processes that want the cores, of glass")
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(_SERVERS[options.serve]())
    elif options.what == "media":
        asyncio.run(_media(options.watchers, options.seconds))
    elif options.what == "churn":
        asyncio.run(_churn(options.visits, options.at_once, options.rounds))
    elif options.what == "rough":
        asyncio.run(_rough(options.seconds))
    else:
        asyncio.run(_glass(options.sizes, options.promises, options.seconds, options.engine, options.hogs))


if __name__ == "__main__":
    main()
