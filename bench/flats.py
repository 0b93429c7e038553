"""Whether flat areas are flat: a halo beside dark shapes, and a grid of patches: `python bench/flats.py`.

Dark shapes on a plain sky, with the noise of a camera, are drawn in every style of the model. Of the sky it
is told, in L* and b*, how much lighter and yellower it is so many pixels from a shape than far away; and, in
levels of 8 bits, how far neighbouring columns are apart, across the borders of patches and within them.
"""

import argparse
from collections.abc import Sequence
from fractions import Fraction
from typing import get_args

import cv2
import numpy as np
from consistency import Bench, Row
from numpy.typing import NDArray
from tables import Cell, markdown

from toonstream.config import EngineName, Settings
from toonstream.export.assemble import load_model
from toonstream.export.configs import pixels_per_latent
from toonstream.modes import parts_off
from toonstream.stream.frame import Frame
from toonstream.stream.temporal.measure import lab

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SKY, SHAPE = (150, 185, 225), (60, 70, 80)
DEEPER = (20, 10, -10)  # by which the sky changes from top to bottom
NOISE = 2.0  # levels
NEAR = ((2, 4), (4, 6), (6, 9), (9, 16))  # pixels from a shape
FAR = (30, 50)
MODE = "wavefront+shared_noise=1"
FRAMES = 6


def scene(side: int, seed: int) -> tuple[Image, Image]:
    """A picture, and where in it the shapes are: (S, S, 3) and (S, S) uint8."""
    down = np.linspace(0.0, 1.0, side)[:, None, None]
    picture = np.broadcast_to(down * DEEPER + SKY, (side, side, 3)).astype(np.float32)
    shapes = np.zeros((side, side), np.uint8)
    cv2.circle(shapes, (side // 2, side * 6 // 10), side // 5, 1, -1)
    cv2.rectangle(shapes, (side // 12, side * 7 // 10), (side // 4, side), 1, -1)
    picture[shapes > 0] = SHAPE
    noise = np.random.default_rng(seed).normal(0.0, NOISE, picture.shape)
    seen = cv2.GaussianBlur(picture, (0, 0), 0.8) + noise
    return np.asarray(np.clip(seen, 0, 255), dtype=np.uint8), shapes


def excess(toon: Image, source: Image, away: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the toon adds to the source at each distance, against far away: (distances, 3) in L*a*b*."""
    added = lab(toon) - lab(source)
    means = [added[(away > low) & (away <= high)].mean(axis=0) for low, high in (*NEAR, FAR)]
    return np.array(means[:-1]) - means[-1]


def steps(toon: Image, plain: Mask, patch: int) -> tuple[float, float]:
    """Mean difference of neighbouring columns in levels, across the borders of patches and within them."""
    apart = np.abs(np.diff(np.asarray(toon, dtype=np.float64).mean(axis=2), axis=1))
    counts = plain[:, 1:] & plain[:, :-1]
    border = np.arange(1, toon.shape[1]) % patch == 0
    return float(apart[counts & border].mean()), float(apart[counts & ~border].mean())


def main(words: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=256, help="pixels a side (256)")
    parser.add_argument("--model", help="a name from toonstream models, or a folder")
    parser.add_argument("--engine", default="torch", choices=get_args(EngineName))
    options = parser.parse_args(words)
    model = load_model(options.model, engine=options.engine)
    patch = pixels_per_latent(model.vae_config)
    pictures = [scene(options.size, seed) for seed in range(FRAMES)]
    away = cv2.distanceTransform(1 - pictures[0][1], cv2.DIST_L2, 5)
    lines = []
    for style in model.defaults.styles:
        base = Settings(style=style, **parts_off())
        bench = Bench(
            model=model, engine=options.engine, base=base, size=options.size, frames=FRAMES, minutes=0.0
        )
        frames = (
            Frame(index=index, pts=index, time_base=Fraction(1, 24), image=picture)
            for index, (picture, _) in enumerate(pictures)
        )
        toons = [toon.toon.image for toon in bench.draw(Row(name=style, mode=MODE), frames, Cell())]
        halo = np.mean(
            [excess(toon, picture, away) for toon, (picture, _) in zip(toons, pictures, strict=True)], 0
        )
        border, within = np.mean([steps(toon, away > FAR[0], patch) for toon in toons], axis=0)
        shown = [f"{light:+.1f} {yellow:+.1f}" for light, _, yellow in halo]
        lines.append([style, *shown, f"{border:.2f}", f"{within:.2f}"])
    header = ["style", *(f"{low} to {high} px" for low, high in NEAR), "steps across borders", "within"]
    print(markdown(header, lines))


if __name__ == "__main__":
    main()
