"""What the live core keeps of a promised latency: glass to glass and frames a second, in real time.

    python bench/live_core.py [--engine openvino] [--sizes 256 384] [--promises 200ms 300ms …] [--seconds 3]
    python bench/live_core.py --sessions 3 --promises 400ms --sizes 256
    python bench/live_core.py --hogs 4 --promises 300ms --sizes 256 --seconds 60

A picture that moves is offered at 30 fps, as a camera would. Capture is when a frame is offered; the other
glass is where its toon is shown, if it is shown in order and evenly (see stream/delay.py). What has to
be built is built before the clock starts. With `--hogs`, so many other processes want the cores from a third
of the measured time on, for a third of it; frames are then offered as late as this process is let.
"""

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
from hogs import hogs
from numpy.typing import NDArray

from toonstream.config import Size
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.stream.clock import monotonic
from toonstream.stream.delay import Delay, longest_delay
from toonstream.stream.frame import Frame
from toonstream.stream.live.networks import SharedNetworks
from toonstream.stream.live.session import LiveSession, LiveToon
from toonstream.stream.live.settings import LiveSettings, parse_latency
from toonstream.stream.live.statistics import Percentiles
from toonstream.stream.serving import open_live_networks

FPS = 30
TIME_BASE = Fraction(1, 90_000)


@dataclass
class Viewer:
    """One session, and when each of its toons was committed and would be shown."""

    shared: SharedNetworks
    settings: LiveSettings
    delay: Delay = field(init=False)
    committed: list[float] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)
    since: float = float("inf")

    def __post_init__(self) -> None:
        promise = self.settings.latency
        self.delay = Delay(initial=promise or 0.0, limit=longest_delay(promise))
        self.session = LiveSession(self.shared, self.settings, deliver=self._take)

    def _take(self, toon: LiveToon) -> None:
        now = monotonic()
        self.delay.ready(toon.captured_at, now)
        if toon.captured_at >= self.since:
            self.committed.append(toon.committed_at - toon.captured_at)
            self.shown.append(max(self.delay.due(toon.captured_at), now) - toon.captured_at)


def moving(size: int, frames: int) -> list[NDArray[np.uint8]]:
    """Square pictures of a disc that goes round over a gradient."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    pictures = []
    for frame in range(frames):
        angle = 2 * np.pi * frame / frames
        disc = np.hypot(rows - 0.5 - 0.25 * np.sin(angle), columns - 0.5 - 0.25 * np.cos(angle)) < 0.15
        picture = np.stack([255 * rows, 255 * columns, np.full_like(rows, 128)], axis=2)
        picture[disc] = (230, 200, 60)
        pictures.append(picture.astype(np.uint8))
    return pictures


def measure(
    shared: SharedNetworks,
    settings: LiveSettings,
    size: int,
    *,
    sessions: int,
    seconds: float,
    settle: float,
    busy: int,
) -> dict[str, object]:
    """Offer frames in real time to some sessions at once: what came of those after the first seconds."""
    pictures = moving(size, FPS)
    shared.warm_up(settings, (size, size))
    viewers = [Viewer(shared, settings) for _ in range(sessions)]
    begin = monotonic()
    for viewer in viewers:
        viewer.since = begin + settle
    with ExitStack() as others:
        for place in range(round((settle + seconds) * FPS)):
            if place == round((settle + seconds / 3) * FPS):
                others.enter_context(hogs(busy))
            elif place == round((settle + 2 * seconds / 3) * FPS):
                others.close()
            due = begin + place / FPS
            time.sleep(max(0.0, due - monotonic()))
            for viewer in viewers:
                picture = pictures[place % len(pictures)]
                pts = round(place / FPS / TIME_BASE)
                frame = Frame(index=place, pts=pts, time_base=TIME_BASE, image=picture)
                viewer.session.offer(frame, due)
    figures = [viewer.session.statistics() for viewer in viewers]
    for viewer in viewers:
        viewer.session.close()
        viewer.session.wait()
        if viewer.session.end is None or viewer.session.end.reason == "failed":
            raise SystemExit(f"a session failed: {viewer.session.end}")
    committed = Percentiles.of(value for viewer in viewers for value in viewer.committed)
    shown = Percentiles.of(value for viewer in viewers for value in viewer.shown)
    plan = figures[0].plan
    return {
        "size": size,
        "promise": settings.latency,
        "sessions": sessions,
        "plan": None if plan is None else str(plan),
        "fps": committed.count / seconds / sessions,
        "committed": committed,
        "shown": shown,
        "kept": all(figure.kept for figure in figures),
        "changes": sum(event.kind == "plan" for event in figures[0].events) - 1,
        "events": [(round(event.at - begin, 2), event.message) for event in figures[0].events],
        "dropped": {f"{drop.place} {drop.reason}": drop.count for drop in figures[0].drops},
        "stages": {name: value.p50 for name, value in figures[0].stages.items()},
    }


def milliseconds(values: Percentiles) -> str:
    if values.p50 is None or values.p95 is None or values.p99 is None:
        return f"{'none':>15}"
    return f"{1000 * values.p50:5.0f}{1000 * values.p95:5.0f}{1000 * values.p99:5.0f}"


def report(rows: Sequence[dict[str, object]]) -> None:
    print(f"{'':6}{'promise':>8}{'fps':>7}{'committed, ms':>17}{'shown, ms':>17}   plan at the end")
    print(f"{'size':6}{'ms':>8}{'':7}{'p50  p95  p99':>17}{'p50  p95  p99':>17}")
    for row in rows:
        committed, shown = row["committed"], row["shown"]
        assert isinstance(committed, Percentiles)
        assert isinstance(shown, Percentiles)
        promise = row["promise"]
        asked = "none" if not isinstance(promise, float) else f"{1000 * promise:.0f}"
        print(
            f"{row['size']!s:6}{asked:>8}{row['fps']:7.1f}  {milliseconds(committed)}  {milliseconds(shown)}"
            f"   {row['plan']}{'' if row['kept'] else '  (not kept)'}; dropped: {row['dropped']}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 384])
    parser.add_argument(
        "--promises", type=parse_latency, nargs="+", default=[0.2, 0.3, 0.4, 0.6, 1.0], metavar="LATENCY"
    )
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured, of each run")
    parser.add_argument("--settle", type=float, default=1.0, help="before that")
    parser.add_argument("--hogs", type=int, default=0, help="other processes that want the cores for a while")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    model = open_model(options.model)
    shared = open_live_networks(options.engine, model, LiveSettings())
    print(
        f"{model.defaults.name} on {options.engine}, sessions at once: {options.sessions}, {FPS} fps "
        f"offered, {options.seconds:g} s after {options.settle:g} s\n"
    )
    rows = []
    for size in options.sizes:
        for promise in options.promises:
            settings = LiveSettings(size=Size(exact=(size, size)), latency=promise)
            rows.append(
                measure(
                    shared,
                    settings,
                    size,
                    sessions=options.sessions,
                    seconds=options.seconds,
                    settle=options.settle,
                    busy=options.hogs,
                )
            )
    report(rows)
    shared.close()
    if options.json is not None:
        options.json.write_text(json.dumps(rows, default=vars, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
