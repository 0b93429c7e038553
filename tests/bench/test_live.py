"""The benches of live streams, on cores that draw nothing."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import aiohttp
import aioice.ice
import psutil
import pytest

from toonstream.server.app import Server
from toonstream.server.live import Catalogue
from toonstream.server.settings import Limits, ServerSettings

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    spec = spec_from_file_location("toonstream_bench_live", BENCH / "live.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hogs_are_there_for_a_while_and_gone_after(bench: ModuleType) -> None:
    before = set(psutil.Process().children())
    with bench.hogs(2):
        busy = [child for child in psutil.Process().children() if child not in before]
        assert [process.cmdline()[0] for process in busy] == [sys.executable] * 2
    assert not any(process.is_running() for process in busy)


async def test_a_row_of_glass_to_glass_says_how_late_changes_are_seen(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_SETTLE", 0.1)
    catalogue = Catalogue(model="copy", prompt="", styles=(), steps=1, window=1, latency=0.4)
    settings = ServerSettings(port=0, latency=0.4, limits=Limits(offers_per_minute=1e4))
    async with (
        Server(settings, bench.Copier, catalogue) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http,
    ):
        row = await bench._flashes(http, 4.0, 0)
    cells = [cell.strip() for cell in row.split("|")[1:]]
    assert len(cells) == 10
    p50, p95, p99 = map(int, cells[:3])
    assert 0 < p50 <= p95 <= p99
    assert int(cells[3]) >= 1
    assert cells[-1] == "none"


async def test_visitors_are_counted_by_how_far_they_came_and_how_they_left(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aioice.ice, "CONSENT_INTERVAL", 0.2)  # who is gone is known sooner
    catalogue = Catalogue(model="copy", prompt="", styles=(), steps=1, window=1, latency=0.1)
    settings = ServerSettings(port=0, latency=0.1, limits=Limits(offers_per_minute=1e4))
    async with (
        Server(settings, bench.Copier, catalogue) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http,
    ):
        visitors = await bench._visits(http, psutil.Process(), 3, 3, 2)
        assert await bench._gauge(http, "sessions") == 0
    assert (visitors.joined, visitors.polite, visitors.abrupt) == (6, 4, 2)
    assert (len(visitors.waits), visitors.blind) == (6, [])
    assert visitors.stayed > 0
    assert visitors.left == {"watchers": 0, "sessions": 0}
    assert len(visitors.memory) == 3


def test_pictures_that_never_came_are_told_from_the_times_of_those_that_did(bench: ModuleType) -> None:
    gaps = bench.Gaps(rate=30)
    for time in (0, 3000, 6010, 15_000, 17_990):
        gaps.shown(time)
    assert (gaps.seen, gaps.lost) == (5, 2)


async def test_a_row_of_a_rough_network_says_what_came_through(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_SETTLE", 0.1)
    catalogue = Catalogue(model="copy", prompt="", styles=(), steps=1, window=1, latency=0.1)
    settings = ServerSettings(port=0, latency=0.1, limits=Limits(offers_per_minute=1e4))
    async with (
        Server(settings, bench.Copier, catalogue) as server,
        aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as http,
    ):
        row = await bench._through(http, 0.05, 0.02, 3.0)
    cells = [float(cell) for cell in row.strip("| \n").split("|")]
    assert len(cells) == 6
    packets, fps, missing, freeze = cells[2:]
    assert cells[:2] == [5, 20]
    assert packets > 0
    assert 1 < fps < 40
    assert 0 <= missing < 100
    assert freeze > 0
