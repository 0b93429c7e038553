"""What each way of keeping frames alike gives and costs: `python bench/consistency.py CLIP… -o FOLDER`.

Every row of the table is a mode (see `toonstream.modes`) with everything else off, drawn over the middle
squares of the same frames of every clip. Figures are those of `toonstream.stream.temporal.measure`; what they
cost is counted in frames that the UNet and the ControlNets run on, per frame of the clip, and in seconds.
Drift is that of one clip played to and fro for minutes: the last round against the first one, in the same
frames. An error along the flow is also small where there is nothing left to see: look at the sharpness, too.

Figures are kept in FOLDER/figures.json as soon as they are known, by clip, row and settings. A run that was
stopped goes on where it was; --fresh forgets them. In the end FOLDER has consistency.md and the plots.
"""

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean
from typing import get_args

import cv2
import numpy as np
import torch
from motion import Ablated, read
from numpy.typing import NDArray
from tables import Cell, plot, report, shown
from torch import Tensor

from toonstream.config import EngineName, RenderSettings, Settings
from toonstream.engines.engine import Engine, EngineAround, Network, NetworkAround, NetworkSource
from toonstream.engines.select import engine_name, open_engine
from toonstream.errors import ToonstreamError
from toonstream.export.assemble import load_model
from toonstream.export.checkpoints import Model
from toonstream.export.reference import with_reference
from toonstream.modes import parse_mode, parts_off
from toonstream.stream.clock import Stopwatch
from toonstream.stream.compare import LoadedOnce
from toonstream.stream.frame import Frame
from toonstream.stream.opening import prepare_frames
from toonstream.stream.stylizer import Toon, load_stylizer
from toonstream.stream.temporal.flow import FlowFunction, flow
from toonstream.stream.temporal.measure import Look, Meter, Sight, Survey, drift
from toonstream.stream.temporal.raft import load_raft
from toonstream.stream.temporal.stages import in_stages

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        name: what it is called.
        mode: as `toonstream compare` takes it.
        motion: whether the UNet has its motion modules; without them torch runs it.
    """

    name: str
    mode: str
    motion: bool = True


ROWS = (
    Row(name="frame by frame", mode="frame"),
    Row(name="windows without motion modules", mode="wavefront", motion=False),
    Row(name="windows", mode="wavefront"),
    Row(name="skewed", mode="skewed"),
    Row(name="anchored", mode="anchored"),
    Row(name="windows, remember 2", mode="wavefront+remember=2"),
    Row(name="anchored, remember 2", mode="anchored+remember=2"),
    Row(name="windows, shared noise", mode="wavefront+shared_noise=1"),
    Row(name="windows, fusion 0.5", mode="wavefront+fusion=0.5"),
    Row(name="windows, fusion 1", mode="wavefront+fusion=1"),
    Row(name="windows, deflicker balanced", mode="wavefront+deflicker=balanced"),
    Row(name="windows, deflicker accurate", mode="wavefront+deflicker=accurate"),
    Row(name="windows, keyframes 2", mode="wavefront+keyframes=2"),
    Row(name="windows, keyframes 4", mode="wavefront+keyframes=4"),
    Row(name="windows, skip 3", mode="wavefront+skip=3"),
    Row(name="shared noise, fusion 0.5", mode="wavefront+shared_noise=1+fusion=0.5"),
    Row(name="shared noise, keyframes 2", mode="wavefront+shared_noise=1+keyframes=2"),
    Row(name="shared noise, causal (live)", mode="wavefront+shared_noise=1+deflicker=causal"),
    Row(
        name="shared noise, balanced 1 (clips)",
        mode="wavefront+shared_noise=1+deflicker=balanced+deflicker_window=1",
    ),
    Row(
        name="shared noise, fusion 0.5, balanced 1",
        mode="wavefront+shared_noise=1+fusion=0.5+deflicker=balanced+deflicker_window=1",
    ),
    Row(name="anchored, all", mode="anchored+remember=2+fusion=0.5+deflicker=balanced+deflicker_window=1"),
)

ALONE = ROWS[0]  # what the others are to be better than
RATE = 24  # frames a second of a clip that is played to and fro
SCORED = 4  # every so-manieth frame is shown to CLIP


# ---- Running a row


class Counted(NetworkAround):
    """A network whose frames are counted."""

    def __init__(self, network: Network, name: str, counts: Counter[str]) -> None:
        super().__init__(network)
        self._name = name
        self._counts = counts

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run, and count: (batch, frames, C, h, w) or (batch, C, h, w)."""
        if "sample" in tensors:
            self._counts[self._name.split("_")[0]] += int(np.prod(tensors["sample"].shape[:-3]))
        return self._network(tensors)


class CountingEngine(EngineAround):
    """An engine whose networks count their frames, by the first word of their names."""

    def __init__(self, *, engine: Engine, counts: Counter[str]) -> None:
        super().__init__(engine)
        self._counts = counts

    def load(self, source: NetworkSource) -> Network:
        """Load, and count."""
        return Counted(self._engine.load(source), source.name, self._counts)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rows have in common.

    Attributes:
        model: whose networks are run.
        engine: its name.
        base: settings that rows start from.
        size: side of the frames in pixels.
        frames: of each clip.
        minutes: that a clip is played to and fro for.
    """

    model: Model
    engine: str
    base: Settings
    size: int
    frames: int
    minutes: float

    @cached_property
    def attending(self) -> Model:
        """The model that can attend to what is remembered."""
        return with_reference(self.model, engine=self.engine)

    @cached_property
    def loaded(self) -> Engine:
        """The engine, which loads every network once."""
        return LoadedOnce(open_engine(engine_name(self.engine)))

    @cached_property
    def ablated(self) -> Engine:
        """Torch without motion modules, likewise."""
        return LoadedOnce(Ablated(open_engine("torch")))

    def choices(self, row: Row) -> RenderSettings:
        """The row's settings, with nothing left open."""
        return parse_mode(row.mode, self.base).resolve(self.model.defaults)

    def draw(self, row: Row, frames: Iterable[Frame], costs: Cell) -> Iterator[Toon]:
        """Draw frames; tells `costs` in the end."""
        choices, stopwatch, counts = self.choices(row), Stopwatch(), Counter[str]()
        model = self.attending if choices.attends else self.model
        engine = CountingEngine(engine=self.loaded if row.motion else self.ablated, counts=counts)
        stylizer = in_stages(load_stylizer(model, choices, engine=engine, stopwatch=stopwatch), choices)
        prepare = prepare_frames(model, (self.size, self.size))
        count, busy = 0, 0.0

        def timed(toons: Callable[[], Iterable[Toon]]) -> list[Toon]:
            nonlocal busy
            begin = time.process_time()
            drawn = list(toons())
            busy += time.process_time() - begin
            return drawn

        for frame in frames:
            conditioned = prepare(frame)
            count += 1
            yield from timed(lambda conditioned=conditioned: stylizer.push(conditioned))
        yield from timed(stylizer.finish)
        inside = sum(stopwatch.seconds.get(name, 0.0) for name in model.sources)
        costs |= {
            "unet": counts["unet"] / count,
            "controlnet": counts["controlnet"] / count,
            "network_seconds": inside / count,
            "cpu_seconds": busy / count,
        }

    def key(self, row: Row, clip: Path, what: str) -> str:
        """What a figure depends on; another version of the code is not noticed."""
        weights = sorted(path for path in self.model.path.rglob("*.safetensors"))
        stamp = [f"{path.name}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in weights]
        facts = {
            "what": what,
            "clip": [clip.name, clip.stat().st_size],
            "motion": row.motion,
            "model": [self.model.defaults.name, stamp],
            "engine": self.engine,
            "size": self.size,
            "frames": self.frames,
            "settings": asdict(self.choices(row)),
        }
        return json.dumps(facts, sort_keys=True, default=str)


class Scorer:
    """CLIP's cosine between picture and prompt, times 100, and the aesthetic score of a linear head on it.

    Args:
        folder: of a CLIP model with its tokenizer, as transformers keeps it.
        head: `weight` (1, D) and `bias` (1,) over CLIP's normalised image features, or None.
    """

    _MEAN = (0.48145466, 0.4578275, 0.40821073)
    _DEVIATION = (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, folder: Path, head: Path | None) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self._model = CLIPModel.from_pretrained(folder).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._side = self._model.config.vision_config.image_size
        self._head = None if head is None else torch.load(head, weights_only=True)
        self._scores: dict[str, list[float]] = {"clip": [], "aesthetic": []}

    def add(self, image: Image, prompt: str) -> None:
        """Score one square picture."""
        scaled = cv2.resize(image, (self._side, self._side), interpolation=cv2.INTER_AREA)
        pixels = (scaled / 255.0 - self._MEAN) / self._DEVIATION
        words = self._tokenizer(prompt, return_tensors="pt", truncation=True)
        with torch.inference_mode():
            made = self._model(pixel_values=torch.from_numpy(pixels).float().permute(2, 0, 1)[None], **words)
            self._scores["clip"].append(100 * float((made.image_embeds * made.text_embeds).sum()))
            if self._head is not None:
                score = made.image_embeds @ self._head["weight"].float().T + self._head["bias"].float()
                self._scores["aesthetic"].append(float(score))

    def take(self) -> Cell:
        """The means of what was added since the last time."""
        means = {name: fmean(scores) for name, scores in self._scores.items() if scores}
        self._scores = {name: [] for name in self._scores}
        return means


@dataclass(frozen=True)
class Sights:
    """What is known of a clip's frames, found out when it is first asked for."""

    frames: Sequence[Frame]
    flow: FlowFunction

    @cached_property
    def seen(self) -> list[Sight]:
        """One per frame."""
        survey = Survey(self.flow)
        return [survey.push(frame.image) for frame in self.frames]


def measure(bench: Bench, row: Row, sights: Sights, scorer: Scorer | None) -> Cell:
    """Figures and costs of one row on one clip."""
    meter, costs = Meter(), Cell()
    prompt = bench.choices(row).prompt
    for number, toon in enumerate(bench.draw(row, sights.frames, costs)):
        meter.push(sights.seen[number], toon.toon.image)
        if scorer is not None and number % SCORED == 0:
            scorer.add(toon.toon.image, prompt)
    figures = meter.figures
    return {
        **asdict(figures),
        "ratio": figures.ratio,
        **costs,
        **(scorer.take() if scorer is not None else {}),
    }


def to_and_fro(frames: Sequence[Frame], count: int) -> Iterator[Frame]:
    """Play a clip forwards and backwards, so that there is no cut, as `count` frames in a row."""
    whole = [*frames, *frames[-2:0:-1]]
    for index, frame in enumerate(islice(cycle(whole), count)):
        yield replace(frame, index=index, pts=index)


def long_run(bench: Bench, row: Row, frames: Sequence[Frame]) -> Cell:
    """How a clip that is played to and fro changes: every round against the first one."""
    length = max(1, 2 * len(frames) - 2)
    rounds = max(2, round(bench.minutes * 60 * RATE / length))
    first, current, colours, sharpness = Look(), Look(), [], []
    for number, toon in enumerate(bench.draw(row, to_and_fro(frames, rounds * length), Cell()), start=1):
        (first if number <= length else current).push(toon.toon.image)
        if number > length and number % length == 0:
            change = drift(first, current)
            colours.append(change.colour)
            sharpness.append(change.sharpness)
            current = Look()
    return {
        "drift_colour": colours[-1],
        "drift_sharpness": sharpness[-1],
        "drift_colours": colours,
        "drift_minutes": rounds * length / RATE / 60,
    }


class Kept:
    """Figures in a file that survives the run."""

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self._cells: dict[str, Cell] = {}
        if path.is_file() and not fresh:
            self._cells = json.loads(path.read_text(encoding="utf-8"))

    def get(self, key: str, make: Callable[[], Cell]) -> Cell:
        """Give what is kept, or make and keep it."""
        if key not in self._cells:
            self._cells[key] = make()
            temporary = self._path.with_suffix(".partial")
            temporary.write_text(json.dumps(self._cells, indent=1), encoding="utf-8")
            temporary.replace(self._path)
        return self._cells[key]


def about(bench: Bench, clips: int, along: str) -> str:
    """What was measured, on what."""
    return (
        f"`{bench.model.defaults.name}` on {bench.engine}, {os.cpu_count()} cores, {platform.machine()}; "
        f"{bench.frames} frames of {clips} clips at {bench.size}². Flow-warped error along {along}, in "
        "squared levels and as a multiple of the source's own; slow and fast: of those clips; excess: what "
        "is above 1, against frame by frame's; flicker in levels; sharpness against the source's; outline: "
        "F-score; colour: ΔE. UNet and ControlNet: "
        "frames they run on, per frame of the clip; seconds are per frame, too."
    )


# ---- The command line


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("clips", type=Path, nargs="+", metavar="CLIP")
    words.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    words.add_argument("--frames", type=int, default=32, help="of each clip (32)")
    words.add_argument("--size", type=int, default=256, help="pixels a side (256)")
    words.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows of the table")
    words.add_argument("--also", nargs="+", default=[], metavar="MODE", help="rows for these modes, too")
    words.add_argument("--drift", type=float, default=5.0, metavar="MINUTES", help="0 leaves it out (5)")
    words.add_argument(
        "--drift-clip", type=Path, metavar="CLIP", help="which one is played so long (the first)"
    )
    words.add_argument("--model", help="a name from toonstream models, or a folder")
    words.add_argument("--engine", default="torch", choices=get_args(EngineName))
    words.add_argument("--style", help="one of the model's")
    words.add_argument("--prompt")
    words.add_argument("--steps", type=int, help="denoising steps of all rows (the model's)")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--raft", type=Path, metavar="FILE", help="measure along its flow, not DIS's")
    words.add_argument("--clip-model", type=Path, metavar="FOLDER", help="CLIP, for a column of its scores")
    words.add_argument("--aesthetic", type=Path, metavar="FILE", help="linear head on CLIP, for another one")
    words.add_argument("--fresh", action="store_true", help="forget what is kept in FOLDER")
    return words


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """The rows asked for."""
    known = {row.name: row for row in ROWS}
    unknown = [name for name in options.rows or [] if name not in known]
    if unknown:
        raise SystemExit(f"there is no row {unknown[0]!r}; there are: {', '.join(known)}")
    rows = [known[name] for name in options.rows] if options.rows else list(ROWS)
    return rows + [Row(name=mode, mode=mode) for mode in options.also]


def main(words: Sequence[str] | None = None) -> None:
    options = parser().parse_args(words)
    if options.aesthetic is not None and options.clip_model is None:
        raise SystemExit("--aesthetic is a head on CLIP: give --clip-model, too")
    rows = chosen_rows(options)
    bench = Bench(
        model=load_model(options.model, engine=options.engine),
        engine=options.engine,
        base=Settings(
            style=options.style,
            prompt=options.prompt,
            steps=options.steps,
            seed=options.seed,
            **parts_off(),
        ),
        size=options.size,
        frames=options.frames,
        minutes=options.drift,
    )
    options.output.mkdir(parents=True, exist_ok=True)
    kept = Kept(options.output / "figures.json", fresh=options.fresh)
    scorer = Scorer(options.clip_model, options.aesthetic) if options.clip_model is not None else None
    search = load_raft(options.raft) if options.raft is not None else flow
    clips = {path.stem: Sights(read(path, options.size, options.frames), search) for path in options.clips}
    played = options.drift_clip or options.clips[0]
    drifting = read(played, options.size, options.frames)
    scores = f"figures, {options.raft or 'DIS'}, {options.clip_model}, {options.aesthetic}"
    table: dict[str, dict[str, Cell]] = {}
    left_out: list[str] = []
    for row in rows:
        try:
            cells = {
                path.stem: dict(
                    kept.get(
                        bench.key(row, path, scores), partial(measure, bench, row, clips[path.stem], scorer)
                    )
                )
                for path in options.clips
            }
            for clip, cell in cells.items():
                print(f"{row.name}, {clip}: {shown(cell['ratio'], '.2f')} × source", flush=True)
            if options.drift > 0:
                key = bench.key(row, played, f"drift {options.drift:g}")
                found = kept.get(key, partial(long_run, bench, row, drifting))
                cells[options.clips[0].stem].update(found)
                print(f"{row.name}, drift: {found['drift_colour']:.2f} ΔE", flush=True)
        except ToonstreamError as error:
            left_out.append(f"Left out: {row.name}: {error}")
            print(left_out[-1], flush=True)
        else:
            table[row.name] = cells
    if not table:
        raise SystemExit("no row could be run")
    along = "RAFT" if options.raft is not None else "DIS"
    text = report(table, about(bench, len(clips), along), left_out, alone=ALONE.name)
    (options.output / "consistency.md").write_text(text, encoding="utf-8")
    plot(table, options.output)
    print(f"\n{text}")


if __name__ == "__main__":
    main()
