"""WHIP and WHEP peers that others wrote: npm's `whip-whep` in Chromium, and FFmpeg's WHIP muxer."""

import asyncio
import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from certificates import write_certificate
from chrome import AZURE, CHROMIUM, chromium, mostly, seen, write_camera
from playwright.async_api import Browser, Page
from stand_in import connect, is_like, running, until

from toonstream.server.settings import Limits, ServerSettings

PACKAGE = "whip-whep@1.2.0"
TOKEN = "a token of some length"

pytestmark = pytest.mark.asyncio(loop_scope="module")


# ---- whip-whep in Chromium, on a page of another origin


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as npm brings it, unpacked."""
    npm = shutil.which("npm")
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    if npm is None:
        pytest.skip(f"no npm to fetch {PACKAGE} with: apt-get install npm")
    folder = tmp_path_factory.mktemp("npm")
    words = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder, PACKAGE]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm does not bring {PACKAGE} within 90 s")
    if done.returncode:
        pytest.skip(f"npm does not bring {PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "node_modules" / "whip-whep"


PAGE = """<!doctype html><title>peers</title><video id="toon" autoplay muted playsinline></video>
<script type="module">
import { WHIPClient } from "/whip.js";
import { WHEPClient } from "/whep.js";
const watch = async (url, token) => {
  const connection = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  connection.addTransceiver("audio", { direction: "recvonly" });
  connection.addTransceiver("video", { direction: "recvonly" });
  const toon = document.getElementById("toon");
  connection.ontrack = ({ track, streams }) => {
    if (track.kind === "video") toon.srcObject = streams[0] ?? new MediaStream([track]);
  };
  const client = new WHEPClient();
  await client.view(connection, url, token);
  return client;
};
const publish = async (url, token) => {
  const camera = await navigator.mediaDevices.getUserMedia({ audio: true, video: true });
  const connection = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
  for (const track of camera.getTracks()) {
    connection.addTransceiver(track, { direction: "sendonly", streams: [camera] });
  }
  const client = new WHIPClient();
  await client.publish(connection, url, token);
  return client;
};
Object.assign(window, { publish, watch, ready: true });
</script>"""


@asynccontextmanager
async def elsewhere(package: Path) -> AsyncIterator[str]:
    """A site of its own that serves the package and a page that uses it; gives its origin."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    app.router.add_static("/", package)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser(package: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Browser]:
    async with chromium(write_camera(tmp_path_factory.mktemp("camera") / "camera.y4m")) as browser:
        yield browser


async def opened(browser: Browser, origin: str, failures: list[str]) -> Page:
    page = await (await browser.new_context()).new_page()
    page.on("pageerror", lambda error: failures.append(str(error)))
    await page.goto(origin)
    await page.wait_for_function("window.ready")
    return page


@pytest.mark.parametrize("codec", ["vp8", "h264"])
async def test_clients_of_another_hand_publish_and_watch(browser: Browser, package: Path, codec: str) -> None:
    failures: list[str] = []
    async with elsewhere(package) as origin:
        settings = ServerSettings(port=0, latency=0.1, token=TOKEN, origins=(origin,), codec=codec)  # type: ignore[arg-type]
        async with running(settings) as service:
            one, two = [await opened(browser, origin, failures) for _ in range(2)]
            await one.evaluate(
                "async ([url, token]) => { window.client = await publish(url, token) }",
                [f"{service.url}/whip?watch=stage", TOKEN],
            )
            await two.evaluate(
                "async ([url, token]) => { window.client = await watch(url, token) }",
                [f"{service.url}/whep/stage", TOKEN],
            )
            await two.wait_for_function("document.getElementById('toon').videoWidth > 0")
            await seen(two, mostly(AZURE))
            (session,) = service.server.registry.sessions
            assert [watcher.peer.codecs["video"] for watcher in session.watchers.values()] == [codec]
            assert session.peer.state == "connected"
            await two.evaluate("client.stop()")
            await until(lambda: not session.watchers)
            await one.evaluate("client.stop()")
            await until(lambda: not service.server.registry.sessions)
            # The connection is closed before the DELETE is sent, and may be noticed first.
            reasons = ("the publisher ended it", "the peer went away", "the publisher went away")
            assert service.server.registry.reason(session.key) in reasons
            for page in (one, two):
                await page.context.close()
    assert failures == []


async def test_a_client_of_another_hand_is_refused_without_the_token(browser: Browser, package: Path) -> None:
    async with elsewhere(package) as origin:
        settings = ServerSettings(port=0, latency=0.1, token=TOKEN, origins=(origin,))
        async with running(settings) as service:
            page = await opened(browser, origin, [])
            script = "(url) => publish(url, 'guessed').then(() => 'let in', (error) => error.message)"
            assert await page.evaluate(script, f"{service.url}/whip") == "Request rejected with status 401"
            assert service.server.registry.sessions == ()
            await page.context.close()


# ---- FFmpeg

# Publishes a red picture and a tone in real time, in a process of its own, since PyAV opens outputs with the
# interpreter's lock held.
MUXER = textwrap.dedent(
    """
    import json, sys, time
    from fractions import Fraction
    import av, numpy as np
    url, options, seconds = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
    with av.open(url, "w", format="whip", container_options=options) as target:
        video = target.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt, video.bit_rate = 160, 120, "yuv420p", 400_000
        video.codec_context.options = {"profile": "baseline", "tune": "zerolatency", "g": "30"}
        sound = target.add_stream("libopus", rate=48_000, layout="stereo")
        began = time.monotonic()
        for index in range(round(30 * seconds)):
            time.sleep(max(0.0, began + index / 30 - time.monotonic()))
            picture = np.zeros((120, 160, 3), np.uint8)
            picture[:] = 240, 30, 30
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            target.mux(video.encode(frame))
            samples = np.sin((np.arange(1600) + 1600 * index) * 0.06).repeat(2)[None] * 8000
            heard = av.AudioFrame.from_ndarray(samples.astype(np.int16), format="s16", layout="stereo")
            heard.sample_rate, heard.pts, heard.time_base = 48_000, 1600 * index, Fraction(1, 48_000)
            target.mux(sound.encode(heard))
    """
)


@asynccontextmanager
async def muxing(
    url: str, folder: Path, seconds: float, token: str = TOKEN
) -> AsyncIterator[asyncio.subprocess.Process]:
    """FFmpeg publishing at `url`. It does not greet without the certificate of a P-256 key of its own."""
    certificate, key = write_certificate(folder)
    options = {"cert_file": str(certificate), "key_file": str(key), "authorization": token}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MUXER, url, json.dumps(options), str(seconds), stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_ffmpeg_publishes_and_says_goodbye(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, latency=0.1, token=TOKEN)
    async with (
        running(settings) as service,
        muxing(f"{service.url}/whip?watch=stage", tmp_path, 4.0) as ffmpeg,
    ):
        await until(lambda: service.server.registry.watched("stage") is not None)
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        watcher = await connect(service.http, "/whep/stage", headers=bearer)
        await watcher.picture(is_like((15, 225, 225)))
        heard = [await watcher.tracks["audio"].recv() for _ in range(20)]
        assert max(np.abs(frame.to_ndarray()).max() for frame in heard) > 2_000
        (session,) = service.server.registry.sessions
        _, complaints = await ffmpeg.communicate()
        assert (ffmpeg.returncode, complaints) == (0, b"")
        await until(lambda: not service.server.registry.sessions)
        assert service.server.registry.reason(session.key) == "the publisher ended it"
        await watcher.close()


async def test_ffmpeg_that_is_killed_ends_its_session(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, latency=0.1, token=TOKEN, limits=Limits(silence_seconds=4.0))
    async with running(settings) as service, muxing(f"{service.url}/whip", tmp_path, 30.0) as ffmpeg:
        await until(lambda: bool(service.cores) and service.cores[0].offered > 5, 30.0)
        (session,) = service.server.registry.sessions
        ffmpeg.kill()
        await until(lambda: not service.server.registry.sessions)
        assert service.server.registry.reason(session.key) == "no picture came for 4 s"


async def test_ffmpeg_without_the_token_is_refused(tmp_path: Path) -> None:
    async with running(ServerSettings(port=0, latency=0.1, token=TOKEN)) as service:
        async with muxing(f"{service.url}/whip", tmp_path, 1.0, token="guessed") as ffmpeg:
            await ffmpeg.communicate()
            assert ffmpeg.returncode != 0
        assert service.cores == []
