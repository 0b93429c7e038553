"""Frames a second of the whole pipeline, and how much of it is networks: `python bench/pipeline.py`.

A filmed-looking clip goes from file to file, decoder to encoder. What counts is the stretch from the first
quarter to the last frame read, so neither start-up nor the ends. In the same run the network calls of one
stride of that stretch are made again, with the same tensors and on as many threads, in a bare loop: what the
networks alone allow. Both are told in frames a second and in processor time for a frame: the first depends on
what else runs on the machine, the second hardly does, and their difference is what all the rest costs.

At the end the command itself is run, with nothing kept from runs before and then again: how long after it
the first frame is committed, and how long `toonstream --help` takes.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from torch import Tensor

from toonstream.config import EngineName, RenderSettings, Settings
from toonstream.demo import Scene, write_scene
from toonstream.engines.engine import Engine, EngineAround, Network, NetworkAround, NetworkSource
from toonstream.engines.select import open_engine
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.stream.ahead import AT_ONCE
from toonstream.stream.beside import load_beside
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditions
from toonstream.stream.pipeline import Progress, run
from toonstream.stream.sinks.file import FileSink
from toonstream.stream.sources.file import FileSource
from toonstream.stream.temporal.cuts import Scenes
from toonstream.stream.temporal.stages import in_stages

_RATE = 24  # frames a second, of the clip
_LIVE = Settings(steps=1, window=4, stride=3, guidance=1.0, deflicker="off")
_REPLAYS = 12  # of one stride's calls


@dataclass(kw_only=True)
class Tape:
    """What was called while it runs, by thread; and for how long any network was busy, always."""

    running: bool = False
    calls: dict[int, list[tuple[Network, dict[str, Tensor]]]] = field(default_factory=dict)
    busy: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _active: int = 0
    _since: float = 0.0

    def call(self, network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run a network, and note what is to be noted."""
        if self.running:
            given = {name: tensor.clone() for name, tensor in tensors.items()}
            self.calls.setdefault(threading.get_ident(), []).append((network, given))
        with self._lock:
            self._since = self._since if self._active else time.perf_counter()
            self._active += 1
        try:
            return network(tensors)
        finally:
            with self._lock:
                self._active -= 1
                if not self._active:
                    self.busy += time.perf_counter() - self._since

    def replay(self) -> tuple[float, float]:
        """Make the calls again, each thread's in order; gives the seconds, and those of processor time."""

        def replay_one(calls: list[tuple[Network, dict[str, Tensor]]]) -> None:
            for network, tensors in calls:
                network(tensors)

        threads = [threading.Thread(target=replay_one, args=(calls,)) for calls in self.calls.values()]
        begin, used = time.perf_counter(), time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin, time.process_time() - used


class Taped(NetworkAround):
    """A network whose calls are taped."""

    def __init__(self, network: Network, tape: Tape) -> None:
        super().__init__(network)
        self._tape = tape

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run on tape."""
        return self._tape.call(self._network, tensors)


class TapedEngine(EngineAround):
    """An engine all of whose networks are taped."""

    def __init__(self, *, engine: Engine, tape: Tape) -> None:
        super().__init__(engine)
        self._tape = tape

    def load(self, source: NetworkSource) -> Network:
        """Load, and tape."""
        return Taped(self._engine.load(source), self._tape)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run gave.

    Attributes:
        fps: of the pipeline.
        bare_fps: of its network calls alone.
        milliseconds: of processor time that the pipeline takes for a frame.
        bare_milliseconds: that its network calls alone take.
        share: of the wall time in which a network ran, 0 to 1.
    """

    fps: float
    bare_fps: float
    milliseconds: float
    bare_milliseconds: float
    share: float


def measure(model: Model, engine: Engine, choices: RenderSettings, *, side: int, frames: int) -> Figures:
    """Render a square clip of so many frames."""
    tape, stopwatch = Tape(), Stopwatch()
    marks: list[tuple[Progress, float, float]] = []
    taped_from = frames // 2

    def observe(progress: Progress) -> None:
        marks.append((progress, tape.busy, time.process_time()))
        tape.running = taped_from < progress.frames_in <= taped_from + choices.stride

    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_scene(Scene(width=side, height=side, rate=_RATE, seconds=frames / _RATE), clip)
        stylizer = load_beside(
            model,
            choices,
            engine=TapedEngine(engine=engine, tape=tape),
            stopwatch=stopwatch,
            size=(side, side),
        )
        conditions = Scenes(
            Conditions(model.defaults.controlnets, size=(side, side), multiple=model.size_multiple)
        )
        with (
            FileSource(clip) as source,
            FileSink(Path(folder) / "toon.mp4", source=source, width=side, height=side) as sink,
        ):
            run(
                source,
                conditions,
                in_stages(stylizer, choices),
                lambda toon: sink.write(toon.toon),
                stopwatch=stopwatch,
                observe=observe,
            )
    first, inside_first, used_first = next(mark for mark in marks if mark[0].frames_committed >= frames // 4)
    last, inside_last, used_last = next(mark for mark in marks if mark[0].frames_in == frames)
    seconds = last.seconds - first.seconds
    drawn = last.frames_committed - first.frames_committed
    tape.replay()
    replays = [tape.replay() for _ in range(_REPLAYS)]
    return Figures(
        fps=drawn / seconds,
        bare_fps=choices.stride / min(wall for wall, _ in replays),
        milliseconds=1000 * (used_last - used_first) / drawn,
        bare_milliseconds=1000 * sum(used for _, used in replays) / len(replays) / choices.stride,
        share=(inside_last - inside_first) / seconds,
    )


def seconds_to_the_first_frame(side: int, engine: str, folder: Path) -> float:
    """Run the command on a short square clip; what it keeps for the next run is in the folder."""
    clip = folder / "clip.mp4"
    write_scene(Scene(width=side, height=side, rate=_RATE, seconds=0.5), clip)
    command = [sys.executable, "-m", "toonstream", str(clip), "--engine", engine, "--json"]
    environment = {**os.environ, "TOONSTREAM_CACHE": str(folder / "cache")}
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = time.perf_counter() - begin
        done = json.loads(process.stdout.read().splitlines()[-1])
    return started + float(done["first_frame_seconds"])


def seconds_to_the_help() -> float:
    """Run `toonstream --help`."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "toonstream", "--help"], check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="auto", choices=get_args(EngineName))
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--sides", type=int, nargs="+", default=(256, 384, 512), help="pixels (256 384 512)")
    parser.add_argument("--frames", type=int, default=120, help="length of the clip (120)")
    options = parser.parse_args()
    model, engine = open_model(options.model), open_engine(options.engine, at_once=AT_ONCE)
    print(f"{model.defaults.name} on {engine.name}, {os.cpu_count()} cores, {platform.machine()}")
    print("                                          fps            CPU ms a frame")
    print("setting  side  steps window stride  pipeline  networks  pipeline  networks  a network runs")
    for name, settings in {"live": _LIVE, "file": Settings()}.items():
        choices = settings.resolve(model.defaults)
        for side in options.sides:
            got = measure(model, engine, choices, side=side, frames=options.frames)
            print(
                f"{name:7} {side:5} {choices.steps:6} {choices.window:6} {choices.stride:6} {got.fps:9.1f} "
                f"{got.bare_fps:9.1f} {got.milliseconds:9.1f} {got.bare_milliseconds:9.1f} {got.share:15.0%}",
                flush=True,
            )
    print(f"\ntoonstream --help: {seconds_to_the_help():.2f} s")
    for side in options.sides:
        with tempfile.TemporaryDirectory() as folder:
            first, again = (seconds_to_the_first_frame(side, options.engine, Path(folder)) for _ in range(2))
        print(
            f"first committed frame at {side} after the command: {first:.2f} s, then {again:.2f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
