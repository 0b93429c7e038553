"""The page in a real browser: Debian's Chromium, with a clip for a camera. Most of it with a cheap live core.

Screenshots are left in `tests/artefacts` for a person to look at.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

import aiohttp
import cv2
import numpy as np
import pytest
import pytest_asyncio
from chrome import AZURE, BLUE, CHROMIUM, ORANGE, chromium, look, mostly, seen, write_camera
from playwright.async_api import Browser, ConsoleMessage, Page
from stand_in import CATALOGUE, Camera, Running, connect, running

from toonstream.config import Size
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.server.app import Server
from toonstream.server.drawing import Drawing
from toonstream.server.settings import ServerSettings
from toonstream.stream.live.settings import LiveSettings

ARTEFACTS = Path(__file__).parents[1] / "artefacts"
TOKEN = "a token of some length"

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.asyncio(loop_scope="module"),
]

# Controls that a screen reader has no name for.
UNNAMED = """[...document.querySelectorAll('button, input, select')]
  .filter((each) => each.checkVisibility())
  .filter((each) => !(each.labels?.length || each.textContent.trim() || each.ariaLabel))
  .map((each) => each.id)"""


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camera(tmp_path_factory.mktemp("camera") / "camera.y4m")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def browser(camera: Path) -> AsyncIterator[Browser]:
    async with chromium(camera) as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def service() -> AsyncIterator[Running]:
    async with running(ServerSettings(port=0, latency=0.1)) as service:
        yield service


@asynccontextmanager
async def tab(browser: Browser, url: str, **context: object) -> AsyncIterator[Page]:
    """A tab of its own, in which no script may fail."""
    own = await browser.new_context(viewport={"width": 1180, "height": 1100}, **context)  # type: ignore[arg-type]
    page = await own.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda line: failures.append(line.text) if _is_failure(line) else None)
    await page.goto(url)
    yield page
    await own.close()
    assert failures == []


def _is_failure(line: ConsoleMessage) -> bool:
    """What a script did wrong; requests that the server refuses are told of by the page itself."""
    return line.type == "error" and "Failed to load resource" not in line.text


async def start(page: Page) -> None:
    await page.wait_for_selector("#styles input", state="attached")
    await page.click("#begin")
    await page.wait_for_selector('body[data-state="live"]', timeout=30_000)


async def picture_of(page: Page, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    await page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)


async def test_the_page_from_start_to_stop_and_again(browser: Browser, service: Running) -> None:
    async with tab(browser, service.url) as page:
        await page.wait_for_selector("#styles input", state="attached")
        await picture_of(page, "idle")
        await start(page)
        assert mostly(ORANGE)(await seen(page, mostly(ORANGE), "source"))
        await seen(page, mostly(AZURE))
        await page.fill("#prompt", "rain")
        await page.click("#styles label:has-text('flat')")
        await seen(page, mostly(BLUE))
        await page.wait_for_function("document.getElementById('fps-value').textContent > '0'")
        assert (service.cores[0].changes[-1].style, service.cores[0].changes[-1].prompt) == ("flat", "rain")
        await picture_of(page, "live")

        async with page.expect_download() as download:
            await page.click("#snapshot")
        image = cv2.imread(str(await (await download.value).path()))
        assert image.shape == (240, 320, 3)
        assert np.abs(image[200:].mean((0, 1)) - BLUE[::-1]).max() < 30
        await page.click("#record")
        assert await page.get_attribute("#record", "aria-pressed") == "true"
        await page.wait_for_function("document.getElementById('toon').currentTime > 0.5")
        async with page.expect_download() as download:
            await page.click("#record")
        assert (await (await download.value).path()).stat().st_size > 1000

        await page.click("#view")
        assert not await page.is_visible("#source")
        await picture_of(page, "toon-alone")
        await page.click("#toggle")
        await page.wait_for_selector('body[data-state="idle"]')
        async with asyncio.timeout(10):
            while service.server.registry.sessions:
                await asyncio.sleep(0.05)
        assert service.cores[0].closed
        await start(page)
        await seen(page, mostly(BLUE))  # what was chosen before is still chosen
        assert len(service.cores) == 2


async def holds(page: Page, expression: str) -> None:
    """Wait until something is true of a page; its policy forbids the browser's own way to."""
    async with asyncio.timeout(30):
        while not await page.evaluate(expression):
            await asyncio.sleep(0.05)


# The browser asks for the camera, and whoever sits there takes some time to answer.
HESITANT = """() => {
  const media = navigator.mediaDevices, open = media.getUserMedia.bind(media);
  window.asked = [];
  window.opened = [];
  media.getUserMedia = async (wanted) => {
    await new Promise((allow) => window.asked.push(allow));
    const stream = await open(wanted);
    window.opened.push(stream);
    return stream;
  };
}"""


async def test_stop_while_the_browser_asks_for_the_camera(browser: Browser, service: Running) -> None:
    async with tab(browser, service.url) as page:
        await page.evaluate(HESITANT)
        await page.wait_for_selector("#styles input", state="attached")
        await page.click("#begin")
        await holds(page, "asked.length === 1")
        await page.click("#toggle")
        await page.wait_for_selector('body[data-state="idle"]')
        await page.evaluate("asked[0]()")
        await holds(page, "opened[0]?.getTracks()[0].readyState === 'ended'")
        await page.click("#begin")
        await holds(page, "asked.length === 2")
        await page.click("#toggle")
        await page.click("#begin")
        await holds(page, "asked.length === 3")
        await page.evaluate("asked[2](), asked[1]()")
        await page.wait_for_selector('body[data-state="live"]', timeout=30_000)
        await holds(page, "opened.length === 3")
        states = "opened.map((stream) => stream.getTracks()[0].readyState).sort()"
        assert await page.evaluate(states) == ["ended", "ended", "live"]
        assert len(service.cores) == 1


async def test_two_tabs_never_mix_and_a_third_watches(browser: Browser, service: Running) -> None:
    async with tab(browser, service.url) as one, tab(browser, service.url) as two:
        await asyncio.gather(start(one), start(two))
        await two.click("#styles label:has-text('flat')")
        await seen(one, mostly(AZURE))
        await seen(two, mostly(BLUE))
        link = await one.input_value("#link")
        async with tab(browser, link) as three:
            await three.click("#begin")
            await three.wait_for_selector('body[data-state="live"]', timeout=30_000)
            await seen(three, mostly(AZURE))
            for _ in range(10):
                assert mostly(AZURE)(await look(one))
                assert mostly(BLUE)(await look(two))
                assert mostly(AZURE)(await look(three))
            await picture_of(three, "watch")
            assert not await three.is_visible("#settings")
            await one.click("#toggle")
            await three.wait_for_selector('body[data-state="idle"]', timeout=30_000)


async def test_h264_is_sent_where_it_is_asked_for(browser: Browser) -> None:
    settings = ServerSettings(port=0, latency=0.1, codec="h264")
    async with running(settings) as service, tab(browser, service.url) as page:
        await start(page)
        await seen(page, mostly(AZURE))
        (session,) = service.server.registry.sessions
        assert session.statistics()["codec"] == "h264"


async def test_a_token_is_asked_for_and_kept(browser: Browser) -> None:
    settings = ServerSettings(port=0, latency=0.1, token=TOKEN)
    async with running(settings) as service:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(service.url)
        await page.fill("#token", "not this one")
        await page.press("#token", "Enter")
        await page.wait_for_selector("#ask[open]")
        await page.fill("#token", TOKEN)
        await page.press("#token", "Enter")
        await start(page)
        await seen(page, mostly(AZURE))
        await context.close()


async def test_a_token_is_asked_for_where_the_name_can_be_guessed(browser: Browser) -> None:
    settings = ServerSettings(port=0, latency=0.1, token=TOKEN)
    async with running(settings) as service:
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        publisher = await connect(service.http, "/whip?watch=stage", Camera(ORANGE), headers=bearer)
        async with tab(browser, f"{service.url}/#watch=stage") as page:
            await page.click("#begin")
            await page.wait_for_selector("#ask[open]")
            await page.fill("#token", TOKEN)
            await page.press("#token", "Enter")
            await page.wait_for_selector('body[data-state="live"]', timeout=30_000)
            await seen(page, mostly(AZURE))
        await publisher.close()


async def test_on_a_phone_and_with_a_keyboard(browser: Browser, service: Running) -> None:
    phone = {"device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    async with tab(browser, service.url, **phone) as page:
        await page.set_viewport_size({"width": 390, "height": 844})
        await start(page)
        await seen(page, mostly(AZURE))
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        await picture_of(page, "phone")
        reached = set()
        for _ in range(40):
            await page.keyboard.press("Tab")
            reached.add(await page.evaluate("document.activeElement.id || document.activeElement.name"))
        controls = "toggle sound view mirror snapshot record full prompt style steps window latency deflicker"
        assert {*controls.split(), "seed", "dice", "camera", "microphone", "link", "copy"} <= reached
        assert await page.evaluate(UNNAMED) == []


async def test_loras_are_offered_where_there_are_any(browser: Browser, service: Running) -> None:
    async with tab(browser, service.url) as page:
        await page.wait_for_selector("#styles input", state="attached")
        assert not await page.is_visible("#lora")
    service.server.loaded(replace(CATALOGUE, loras=("soft", "thick lines")))
    async with tab(browser, service.url) as page:
        await start(page)
        assert await page.get_by_label("LoRA").first.input_value() == ""
        assert not await page.is_visible("#weight")
        await page.get_by_label("LoRA").first.select_option("thick lines")
        await page.get_by_label("LoRA's weight").fill("0.5")
        assert await page.evaluate(UNNAMED) == []
        await picture_of(page, "loras")
        changes = service.cores[-1].changes
        await waiting_for(lambda: changes[-1].loras == {"thick lines": 0.5})
        await page.get_by_label("Deflicker").check()
        await waiting_for(lambda: changes[-1].deflicker is True)
        await page.select_option("#lora", "")
        await waiting_for(lambda: changes[-1].loras == {})


async def test_what_happened_is_told_and_where_the_time_goes(browser: Browser, service: Running) -> None:
    service.server.loaded(replace(CATALOGUE, loras=("soft", "damaged")))
    async with tab(browser, service.url) as page:
        await start(page)
        await page.get_by_label("LoRA").first.select_option("damaged")
        service.cores[-1].say("plan", "draws 64x48, 1 steps, window 4, stride 2")
        service.cores[-1].say("refused", "the LoRAs stay as they were: damaged is not readable as weights")
        await page.wait_for_selector("#events li.refused")
        assert "damaged is not readable" in await page.inner_text("#toast")
        assert "damaged is not readable" in await page.inner_text("#lora-hint")
        assert await page.locator("#events li").count() == 2
        await page.click("#figures summary")
        rows = [text.split("\t") for text in await page.locator("#times tr").all_inner_texts()]
        figures = {name: parts for name, *parts in rows}
        assert figures["unet"] == ["10", "20", "30"]
        assert figures["waits for later frames"] == ["10", "20", "30"]
        assert {
            "at the server: from capture to the network",
            "encode",
            "intake",
            "waits to be shown evenly",
        } <= {*figures}
        assert await page.inner_text("#dropped") == "Frames left out: 3 at input (late)"
        await picture_of(page, "figures")
        await page.get_by_label("LoRA").first.select_option("soft")
        assert "damaged" not in await page.inner_text("#lora-hint")


# Where the ball is in the source, and in the toon, where it is dark: at two moments as one.
BALLS = """() => ['source', 'toon'].map((id) => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 320, height: 1});
  const context = canvas.getContext('2d');
  context.drawImage(document.getElementById(id), 0, 70, 320, 1, 0, 0, 320, 1);
  const blue = Array.from({length: 320}, (_, x) => context.getImageData(x, 0, 1, 1).data[2]);
  const there = blue.flatMap((value, x) => ((id === 'toon') === value < 128 ? [x] : []));
  return there.reduce((sum, x) => sum + x, 0) / there.length;
})"""
LOOP = 1.0  # seconds until the ball is where it was
BALL_STEP = 7 * 30  # pixels a second


async def test_how_old_each_frame_is_when_it_is_shown_is_what_an_onlooker_sees(browser: Browser) -> None:
    async with running(ServerSettings(port=0, latency=0.4)) as service, tab(browser, service.url) as page:
        await start(page)
        await page.wait_for_selector("#delay-parts:has-text('p99')")
        await page.click("#figures summary")
        told, seen_apart = [], []
        for _ in range(40):
            source, toon = await page.evaluate(BALLS)
            seen_apart.append((source - toon) / BALL_STEP % LOOP)
            (row,) = await page.locator("#times tr", has_text="from camera to screen").all_inner_texts()
            p50, p95, p99 = map(float, row.split("\t")[1:])
            assert 0 < p50 <= p95 <= p99
            told.append(p50 / 1000)
        apart = (median(told) - median(seen_apart) + LOOP / 2) % LOOP - LOOP / 2
        assert abs(apart) < 0.25, (median(told), median(seen_apart))
        assert "an estimate" not in await page.inner_text("#delay-parts")
        (session,) = service.server.registry.sessions
        assert median(told) > session.figures().latency["p50"]


# A meter that is told of three frames, the timestamps of which begin anew in between, by a browser that ...
METER = """async (says) => {
  const { Meter } = await import('/static/meter.js');
  const meter = new Meter(), now = performance.now(), peer = { getStats: async () => new Map() };
  meter.told({ rtp: 900, after_ms: 20 }, now - 60, now); // 900 was now 20 ms ago
  meter.told({ rtp: 5, after_ms: 0 }, now - 3000, now); // an answer that took its time
  for (const [at, rtp] of [[-40, 2 ** 32 - 9000], [-20, 900], [-10, 900]]) {
    meter.shown(now + at, says ? { expectedDisplayTime: now + at, rtpTimestamp: rtp } : {});
  }
  return await meter.read(peer, { latency_ms: { p50: 70 }, watchers: 0 }, true);
}"""


async def test_ages_of_frames_and_what_is_said_where_they_are_not_known(
    browser: Browser, service: Running
) -> None:
    async with tab(browser, service.url) as page:
        figures = await page.evaluate(METER, True)
        ages = figures["displayed"]
        assert [round(ages[part]) for part in ("p50", "p95", "p99")] == [10, 90, 90]
        assert figures["latency"] == ages["p50"]
        figures = await page.evaluate(METER, False)
        assert figures["displayed"] is None
        assert figures["latency"] == 70
        assert figures["fps"] == 1.5


async def test_who_is_cut_off_comes_back_under_the_same_link(browser: Browser, service: Running) -> None:
    async with tab(browser, service.url) as page:
        await start(page)
        link = await page.input_value("#link")
        (session,) = service.server.registry.sessions
        async with tab(browser, link) as other:
            await other.click("#begin")
            await other.wait_for_selector('body[data-state="live"]', timeout=30_000)
            session.over("the connection failed", cut_off=True)
            await page.wait_for_selector('body[data-state="waiting"]')
            assert "again in" in await page.inner_text("#status")
            assert await page.is_visible("#source")  # the camera stays on
            await page.wait_for_selector('body[data-state="live"]', timeout=30_000)
            assert await page.input_value("#link") == link
            await page.click("#styles label:has-text('flat')")
            await seen(other, mostly(BLUE))
        (session,) = service.server.registry.sessions
        session.over("the connection failed", cut_off=True)
        await page.wait_for_selector('body[data-state="waiting"]')
        await page.click("#toggle")
        await page.wait_for_selector('body[data-state="idle"]')


async def test_a_server_that_is_started_anew_is_found_again(browser: Browser, unused_tcp_port: int) -> None:
    settings = ServerSettings(port=unused_tcp_port, latency=0.1, grace=2.0)
    async with running(settings) as service:
        context = await browser.new_context()
        page = await context.new_page()
        await page.goto(service.url)
        await start(page)
    await page.wait_for_selector('body[data-state="waiting"]', timeout=30_000)
    async with running(settings):
        await page.wait_for_selector('body[data-state="live"]', timeout=30_000)
        await seen(page, mostly(AZURE))
        await context.close()


async def waiting_for(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not happened():
            await asyncio.sleep(0.05)


async def test_what_the_page_says_when_there_is_no_room(browser: Browser) -> None:
    settings = ServerSettings(port=0, latency=0.1, max_sessions=1)
    async with running(settings) as service, tab(browser, service.url) as page:
        await start(page)
        context = await browser.new_context()
        other = await context.new_page()
        await other.goto(service.url)
        await other.click("#begin")
        await other.wait_for_selector("#toast:visible")
        assert await other.inner_text("#toast") == "all 1 sessions are taken: try again later"
        await context.close()
        async with aiohttp.ClientSession(service.url) as http:
            (session,) = service.server.registry.sessions
            await http.delete(f"/sessions/{session.key}")
        await page.wait_for_selector("#toast:visible", timeout=30_000)


async def test_the_model_that_ships_draws_and_follows_what_is_asked(browser: Browser) -> None:
    """The one test with networks: small pictures, and a promise that a busy machine can keep."""
    settings = LiveSettings(size=Size(short=96), latency=2.0)
    model = open_model(shipped_model())
    drawing = await asyncio.to_thread(Drawing.load, model, settings, engine="onnxruntime")
    server = Server(ServerSettings(port=0, latency=2.0), drawing, drawing.catalogue)
    async with server, tab(browser, server.url) as page:
        await start(page)
        source = await seen(page, mostly(ORANGE), "source")
        toon = await look(page)
        assert toon.mean() > 60  # not black, ...
        assert np.abs(toon - source)[8:].mean() > 10  # not the source, ...
        assert np.abs(toon - source)[8:].mean() < 80  # and yet made of it
        assert toon[8:, :, 2].mean() < 140
        await picture_of(page, "drawn")
        await page.check("#styles input[value='ink']", force=True)
        await seen(page, lambda image: bool(image[8:, :, 2].mean() > 170))  # ink leaves the paper white
        await picture_of(page, "drawn-in-ink")
        (session,) = server.registry.sessions
        assert session.statistics()["settings"] == {"style": "ink"}
