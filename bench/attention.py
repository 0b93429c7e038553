"""How strongly frames should attend to the past, and where: `python bench/attention.py CLIP… [-o FILE.md]`.

What a model's `toonstream.json` says of it (`remember_first`, `remember_strength`, `reference_strength` and
`reference_layers`) is changed one at a time around what it says now, and for the number of frames likewise.
Every row draws the same frames of every clip; the first one attends to nothing. With --picture, rows that
attend to it are added, and a column says how far the mean colour of the toons came to the picture's:
0 is not at all, 1 all the way.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import numpy as np
from consistency import Bench, Row, Sights
from motion import read
from numpy.typing import NDArray
from tables import Cell, markdown, shown

from toonstream.config import EngineName, Settings
from toonstream.export.assemble import load_model
from toonstream.export.checkpoints import Model
from toonstream.modes import parts_off
from toonstream.stream.temporal.flow import flow
from toonstream.stream.temporal.measure import Meter, lab
from toonstream.stream.temporal.picture import read_picture

LAYERS = (("mid",), ("up",), ("down",), ("mid", "up"), ("down", "mid", "up"))
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
FRAMES = ((0, 1), (0, 2), (1, 2), (0, 4), (1, 4), (1, 8))  # the scene's first, and all of them
KEPT = 0.99  # of the sharpness of frames that attend to nothing: a row with less is no candidate


@dataclass(frozen=True, kw_only=True)
class Try:
    """A row: what is changed in the model's defaults, and what the mode is."""

    name: str
    mode: str
    defaults: dict[str, Any]


def remembering(model: Model, frames: int) -> Iterator[Try]:
    """Rows that attend to the past: everything as it is, then one thing changed at a time."""
    mode, first = f"remember={frames}", model.defaults.remember_first
    yield Try(name=f"remember {frames}", mode=mode, defaults={})
    for layers in LAYERS:
        if layers != model.defaults.reference_layers:
            yield Try(name=f"… in {' and '.join(layers)}", mode=mode, defaults={"reference_layers": layers})
    for strength in STRENGTHS:
        if strength != model.defaults.remember_strength:
            yield Try(name=f"… × {strength:g}", mode=mode, defaults={"remember_strength": strength})
    for sink, count in FRAMES:
        if (sink, count) != (min(first, frames - 1), frames):
            name = f"… {count} frames, {sink} of them the scene's first"
            yield Try(name=name, mode=f"remember={count}", defaults={"remember_first": sink})


def looking(model: Model, picture: Path) -> Iterator[Try]:
    """Rows that attend to a picture."""
    mode = f"reference={picture}"
    yield Try(name="the picture", mode=mode, defaults={})
    for strength in STRENGTHS:
        if strength != model.defaults.reference_strength:
            yield Try(name=f"… × {strength:g}", mode=mode, defaults={"reference_strength": strength})


def mean_colour(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean L*, a*, b*."""
    return np.asarray(lab(image).mean(axis=(0, 1)), dtype=np.float64)


def measured(bench: Bench, mode: str, clips: Sequence[Sights]) -> tuple[Cell, list[NDArray[np.float64]]]:
    """Mean figures over the clips, and the mean colour of each clip's toons."""
    cells: list[Cell] = []
    colours = []
    for sights in clips:
        meter, costs, seen = Meter(), Cell(), []
        for number, toon in enumerate(bench.draw(Row(name=mode, mode=mode), sights.frames, costs)):
            meter.push(sights.seen[number], toon.toon.image)
            seen.append(mean_colour(toon.toon.image))
        figures = meter.figures
        cells.append(
            {"ratio": figures.ratio, "flicker": figures.flicker, "sharpness": figures.sharpness, **costs}
        )
        colours.append(np.mean(seen, axis=0))
    names = ("ratio", "flicker", "sharpness", "cpu_seconds")
    return {name: _mean([cell[name] for cell in cells]) for name in names}, colours


def main(words: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, nargs="+", metavar="CLIP")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="and attend to this picture")
    parser.add_argument("--mode", default="wavefront+shared_noise=1", help="what all rows have in common")
    parser.add_argument("--remember", type=int, default=2, metavar="N", help="frames of the past (2)")
    parser.add_argument("--frames", type=int, default=24, help="of each clip (24)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (256)")
    parser.add_argument("--model", help="a name from toonstream models, or a folder")
    parser.add_argument("--engine", default="torch", choices=get_args(EngineName))
    options = parser.parse_args(words)
    model = load_model(options.model, engine=options.engine)
    bench = Bench(
        model=model,
        engine=options.engine,
        base=Settings(**parts_off()),
        size=options.size,
        frames=options.frames,
        minutes=0.0,
    )
    clips = [Sights(read(path, options.size, options.frames), flow) for path in options.clips]
    tries = [Try(name="nothing", mode="", defaults={}), *remembering(model, options.remember)]
    if options.picture is not None:
        tries += looking(model, options.picture)
        goal = mean_colour(read_picture(options.picture))
    lines, table, alone = [], dict[str, Cell](), []
    for each in tries:
        changed = replace(model, defaults=replace(model.defaults, **each.defaults))
        mode = f"{options.mode}+{each.mode}" if each.mode else options.mode
        cell, colours = measured(replace(bench, model=changed), mode, clips)
        alone = alone or colours
        table[each.name] = cell
        line = [each.name, *(shown(cell[name], ".3f") for name in cell)]
        if options.picture is not None:
            came = [_share(own, plain, goal) for own, plain in zip(colours, alone, strict=True)]
            line.append(shown(fmean(came), ".2f"))
        lines.append(line)
        print(" | ".join(line), flush=True)
    header = ["attends to", "warped × source", "flicker", "sharpness", "CPU, s"]
    text = (
        f"`{model.defaults.name}`, {options.frames} frames of {len(clips)} clips at {options.size}², "
        f"{options.mode}, {options.engine}.\n\n"
        + markdown(header + (["towards the picture"] if options.picture is not None else []), lines)
        + f"\n\n{verdict(table)}\n"
    )
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    print(f"\n{text}")


def verdict(table: dict[str, Cell]) -> str:
    """Which row has the smallest error among those that are as sharp as the first."""
    plain = next(iter(table.values()))
    if any(cell["ratio"] is None or cell["sharpness"] is None for cell in table.values()):
        return "These clips show no motion that could be followed: there is no error along it."
    sharp = {name: cell for name, cell in table.items() if cell["sharpness"] >= KEPT * plain["sharpness"]}
    best = min(sharp, key=lambda name: sharp[name]["ratio"])
    gain = 1.0 - sharp[best]["ratio"] / plain["ratio"]
    return f"Least error among the rows that are as sharp as the first: {best}, by {gain:.1%}."


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _share(own: NDArray[np.float64], plain: NDArray[np.float64], goal: NDArray[np.float64]) -> float:
    """How much of the way from `plain` to `goal` it is to `own`, along that way."""
    way = goal - plain
    return float((own - plain) @ way / (way @ way))


if __name__ == "__main__":
    main()
