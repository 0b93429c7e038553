"""Hours in the life of `toonstream serve`: its memory stays flat, and it lets go of what it opens.

    python bench/soak.py [--minutes 60] [--size 128] [--fps 10] [--promise 800ms] [--engine auto]

One publisher stays, with a picture that moves. Meanwhile others come and go: a watcher every ten seconds, a
change of words every half minute, and every minute another publisher of another size, for a few seconds.
Every ten seconds the server's process is looked at: resident memory, open files, threads. It fails where the
median memory of the last tenth is more than 2 % above that of the tenth after the warm-up, which is the first
sixth.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import aiohttp
import cv2
import numpy as np
import psutil
from live import Camera, Screen, scene_of, toonstream_serve
from numpy.typing import NDArray

_LOOK = 10.0  # seconds
_WATCH, _WORDS, _PUBLISH = 10.0, 30.0, 60.0  # seconds from one visit to the next
_STAY = 4.0  # seconds that a visitor stays
_STYLES = ("ink", "flat", "hosoda", "shinkai")
_FLAT = 0.02  # growth that counts as none


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of the server.

    Attributes:
        minutes: since it was ready.
        memory: resident, in MiB.
        files: open ones, sockets too. threads: of the process.
        fps: toons a second. p50, p99: milliseconds from capture to the network.
    """

    minutes: float
    memory: float
    files: int
    threads: int
    fps: float
    p50: float
    p99: float


class Visitors:
    """Those who come and go, and how many of them did."""

    def __init__(self, http: aiohttp.ClientSession, publisher: Screen, size: int, fps: int) -> None:
        self._http = http
        self._publisher = publisher
        self._size = size
        self._fps = fps
        self.visits = {"watch": 0, "words": 0, "publish": 0}
        self.failures: list[str] = []

    async def watch(self, number: int) -> None:
        """Look at the stream for a while."""
        screen = Screen()
        await screen.connect(self._http, self._publisher.link)
        await self._stay(screen)

    async def words(self, number: int) -> None:
        """Ask for another style."""
        place = f"{self._publisher.location}/settings"
        async with self._http.patch(place, json={"style": _STYLES[number % len(_STYLES)]}) as response:
            assert response.status == 200, await response.text()

    async def publish(self, number: int) -> None:
        """Have something else drawn for a while."""
        screen, pictures = Screen(), moving(self._size, 4 / 3 if number % 2 else 1)
        await screen.connect(self._http, "/whip", Camera(lambda index: pictures[index % 30], self._fps))
        await self._stay(screen)

    async def _stay(self, screen: Screen) -> None:
        try:
            await screen.first()
            await asyncio.sleep(_STAY)
        finally:
            async with self._http.delete(screen.location):
                pass
            await screen.close()

    async def every(self, seconds: float, visit: Callable[[int], Coroutine[None, None, None]]) -> None:
        """Let them come, for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await visit(self.visits[visit.__name__])
            except (AssertionError, TimeoutError, aiohttp.ClientError) as error:
                self.failures.append(f"{visit.__name__}: {type(error).__name__}: {error}")
            self.visits[visit.__name__] += 1


def moving(size: int, ratio: float = 4 / 3) -> list[NDArray[np.uint8]]:
    """Pictures whose short side is `size`."""
    wanted = 2 * round(size * ratio / 2), size
    return [np.asarray(cv2.resize(scene_of(index), wanted), np.uint8) for index in range(30)]


async def soak(words: list[str], size: int, fps: int, minutes: float) -> tuple[list[Look], Visitors]:
    looks: list[Look] = []
    async with toonstream_serve(words) as (url, process), aiohttp.ClientSession(url) as http:
        publisher, pictures = Screen(), moving(size)
        await publisher.connect(http, "/whip", Camera(lambda index: pictures[index % 30], fps))
        await publisher.first()
        visitors = Visitors(http, publisher, size, fps)
        coming = [
            asyncio.create_task(visitors.every(seconds, visit))
            for seconds, visit in (
                (_WATCH, visitors.watch),
                (_WORDS, visitors.words),
                (_PUBLISH, visitors.publish),
            )
        ]
        began = time.perf_counter()
        try:
            while (passed := (time.perf_counter() - began) / 60) < minutes:
                await asyncio.sleep(_LOOK)
                async with http.get(f"{publisher.location}/statistics") as response:
                    if response.status != 200:
                        raise SystemExit(f"after {passed:.1f} minutes: {await response.text()}")
                    figures = await response.json()
                looks.append(look(process, passed, figures))
                if len(looks) % 30 == 1:
                    print(json.dumps(asdict(looks[-1])), flush=True)
        finally:
            for task in coming:
                task.cancel()
            await asyncio.gather(*coming, return_exceptions=True)
            await publisher.close()
    return looks, visitors


def look(process: psutil.Process, minutes: float, figures: dict[str, object]) -> Look:
    latency, rate = figures["latency_ms"], figures["frames_out_per_second"]
    assert isinstance(latency, dict)
    assert isinstance(rate, float | int)
    return Look(
        minutes=round(minutes, 2),
        memory=round(process.memory_info().rss / 2**20, 1),
        files=process.num_fds(),
        threads=process.num_threads(),
        fps=float(rate),
        p50=latency.get("p50", 0.0),
        p99=latency.get("p99", 0.0),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--fps", type=int, default=10)
    parser.add_argument("--promise", default="800ms")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--json", type=Path, help="where to write all that was seen")
    options = parser.parse_args()
    words = ["--size", str(options.size), "--latency", options.promise, "--engine", options.engine]
    looks, visitors = asyncio.run(soak(words, options.size, options.fps, options.minutes))
    warm = [each for each in looks if each.minutes >= options.minutes / 6]
    part = max(1, len(looks) // 10)
    first, last = warm[:part], warm[-part:]
    print("| | MiB | open files | threads | fps | p50 ms | p99 ms |\n|---|---|---|---|---|---|---|")
    for name, some in (("after the warm-up", first), ("at the end", last)):
        row = [median(getattr(each, field) for each in some) for field in ("memory", "files", "threads")]
        row += [median(getattr(each, field) for each in some) for field in ("fps", "p50", "p99")]
        print(f"| {name} | {' | '.join(f'{value:g}' for value in row)} |")
    growth = median(each.memory for each in last) / median(each.memory for each in first) - 1
    print(
        f"\nmemory grew by {100 * growth:+.2f} % over {options.minutes:g} minutes; visits {visitors.visits}"
    )
    print(f"load average at the end {os.getloadavg()[2]:.1f}; failures: {visitors.failures or 'none'}")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(each) for each in looks]) + "\n", encoding="utf-8")
    if growth > _FLAT or visitors.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
