"""Tables and plots of what `consistency.py` has measured."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

FAST = 0.01  # of the short side: a clip whose flow is longer, per frame, is a fast one
GOALS = {"slow": 1.05, "fast": 1.25}  # × the source's own warped error

Cell = dict[str, Any]  # figures of one row on one clip, as JSON has them
Table = Mapping[str, Mapping[str, Cell]]  # row → clip → figures


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of averages.

    Attributes:
        title: what it is called.
        form: how a number is written.
        value: the row's figures by clip → a number, or None where there is none.
    """

    title: str
    form: str
    value: Callable[[Mapping[str, Cell]], float | None]


def mean(name: str, *, among: str = "") -> Callable[[Mapping[str, Cell]], float | None]:
    """The mean of a figure over the clips, or over the slow or the fast ones of them."""

    def value(cells: Mapping[str, Cell]) -> float | None:
        known = [
            cell[name] for cell in cells.values() if cell.get(name) is not None and among in ("", speed(cell))
        ]
        return fmean(known) if known else None

    return value


def speed(cell: Cell) -> str:
    """Whether the clip is a slow or a fast one."""
    return "fast" if (cell["motion"] or 0.0) > FAST else "slow"


def columns(table: Table, *, alone: str) -> list[Column]:
    """All columns of averages that have something in them; `alone` is the row that others improve on."""

    def excess(cells: Mapping[str, Cell]) -> float | None:
        worst, own = mean("ratio")(table.get(alone, {})), mean("ratio")(cells)
        return None if worst is None or own is None or worst <= 1.0 else (own - 1.0) / (worst - 1.0)

    every = [
        Column(title="warped", form=".1f", value=mean("warped")),
        Column(title="× source", form=".2f", value=mean("ratio")),
        Column(title="slow", form=".2f", value=mean("ratio", among="slow")),
        Column(title="fast", form=".2f", value=mean("ratio", among="fast")),
        Column(title="excess", form=".0%", value=excess),
        Column(title="flicker", form=".2f", value=mean("flicker")),
        Column(title="sharpness", form=".2f", value=mean("sharpness")),
        Column(title="outline", form=".2f", value=mean("outline")),
        Column(title="colour ΔE", form=".1f", value=mean("colour")),
        Column(title="UNet", form=".2f", value=mean("unet")),
        Column(title="ControlNet", form=".2f", value=mean("controlnet")),
        Column(title="networks, s", form=".3f", value=mean("network_seconds")),
        Column(title="CPU, s", form=".3f", value=mean("cpu_seconds")),
        Column(title="drift ΔE", form=".2f", value=mean("drift_colour")),
        Column(title="drift of sharpness", form=".2f", value=mean("drift_sharpness")),
        Column(title="CLIP", form=".2f", value=mean("clip")),
        Column(title="aesthetic", form=".2f", value=mean("aesthetic")),
    ]
    return [column for column in every if any(column.value(cells) is not None for cells in table.values())]


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def shown(value: float | None, form: str) -> str:
    """A number, or a dash."""
    return "-" if value is None else format(value, form)


def report(table: Table, about: str, left_out: Sequence[str], *, alone: str) -> str:
    """The whole text."""
    chosen = columns(table, alone=alone)
    clips = list(next(iter(table.values())))
    parts = [
        about,
        markdown(
            ["", *(column.title for column in chosen)],
            ([name, *(shown(c.value(cells), c.form) for c in chosen)] for name, cells in table.items()),
        ),
        *left_out,
        *(
            f"{title}\n\n"
            + markdown(
                ["", *clips],
                (
                    [name, *(shown(cells[clip].get(figure), ".2f") for clip in clips)]
                    for name, cells in table.items()
                ),
            )
            for title, figure in (
                ("Flow-warped error × the source's own, clip by clip:", "ratio"),
                ("Flicker, clip by clip:", "flicker"),
                ("Sharpness, clip by clip:", "sharpness"),
            )
        ),
    ]
    first = next(iter(table.values()))
    parts.append(
        markdown(
            ["source", *clips],
            [
                ["", *(speed(first[clip]) for clip in clips)],
                [
                    "motion, % of the short side",
                    *(shown(100 * first[clip]["motion"], ".2f") for clip in clips),
                ],
                ["warped", *(shown(first[clip]["source_warped"], ".1f") for clip in clips)],
                ["flicker", *(shown(first[clip]["source_flicker"], ".2f") for clip in clips)],
            ],
        )
    )
    return "\n\n".join(parts) + "\n"


def plot(table: Table, folder: Path) -> None:
    """Ratios row by row, against what they cost, and drift over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(table)
    means = {name: mean("ratio")(cells) for name, cells in table.items()}
    height = 1.2 + 0.35 * len(names)
    figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
    axes.barh(names, [means[name] or 0.0 for name in names], color="0.85")
    for clip in next(iter(table.values())):
        ratios = [table[name][clip]["ratio"] for name in names]
        axes.plot(ratios, names, "o", markersize=4, label=f"{clip} ({speed(table[names[0]][clip])})")
    for among, goal in GOALS.items():
        axes.axvline(goal, linestyle="--", linewidth=1, color="0.4")
        axes.annotate(
            f"goal, {among}", (goal, 1), xycoords=("data", "axes fraction"), rotation=90, fontsize=6
        )
    axes.invert_yaxis()
    axes.set_xlabel("flow-warped error × the source's own")
    axes.legend(fontsize=6)
    figure.savefig(folder / "ratio.png", dpi=120)
    plt.close(figure)

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for name in names:
        cost = mean("cpu_seconds")(table[name])
        if cost is not None and means[name] is not None:
            axes.plot(1000 * cost, means[name], "o", color="0.2")
            axes.annotate(
                name, (1000 * cost, means[name]), fontsize=7, xytext=(4, 3), textcoords="offset points"
            )
    axes.set_xlabel("CPU milliseconds per frame")
    axes.set_ylabel("flow-warped error × the source's own")
    figure.savefig(folder / "cost.png", dpi=120)
    plt.close(figure)

    drifts = {
        name: cell for name, cells in table.items() for cell in cells.values() if "drift_colours" in cell
    }
    if drifts:
        figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
        for name, cell in drifts.items():
            rounds = len(cell["drift_colours"]) + 1
            minutes = [cell["drift_minutes"] * (number + 2) / rounds for number in range(rounds - 1)]
            axes.plot(minutes, cell["drift_colours"], label=name)
        axes.axhline(1.0, linestyle="--", linewidth=1, color="0.4")
        axes.set_xlabel("minutes")
        axes.set_ylabel("ΔE against the first round")
        axes.legend(fontsize=6)
        figure.savefig(folder / "drift.png", dpi=120)
        plt.close(figure)
