"""The benches of live streams, on cores that draw nothing."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import aiohttp
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
