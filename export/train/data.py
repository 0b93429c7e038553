"""What `prepare` wrote → batches: degraded sources and their outlines in, clean drawings out."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toonstream.export.outline import OutlineExtractor
from toonstream.export.train.captions import Caption, draw_caption, draw_captions
from toonstream.export.train.render import compose, ink

__all__ = ["Batch", "Pictures", "prefetch"]

Image = NDArray[np.float32]
Picture = NDArray[np.uint8]

_HELD_OUT_PHOTOS = 32  # at most; never trained on, drawn on the sample sheets
_BASES = ("hosoda", "shinkai", "hayao", "flat")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Training pairs; B samples of F frames each.

    Attributes:
        colour: (B, F, 3, S, S) float32 in [0, 1], the degraded source.
        outline: (B, F, 3, S, S) float32 in [0, 1], its outline.
        target: (B, F, 3, S, S) float32 in [-1, 1].
        captions: B prompts.
        flow: (B, F - 1, 2, S, S) float32, in pixels: where each pixel of frame f + 1 was in frame f.
        steady: (B, F - 1, 1, S, S) float32, 1 where that flow can be trusted.
    """

    colour: Tensor
    outline: Tensor
    target: Tensor
    captions: list[str]
    flow: Tensor
    steady: Tensor


class Pictures:
    """The prepared arrays, and how samples are cut from them."""

    def __init__(self, folder: Path) -> None:
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("source", *_BASES)}
        done = np.load(folder / "done.npy", mmap_mode="r").astype(bool)
        groups: list[str] = json.loads((folder / "groups.json").read_text())
        rows = np.flatnonzero(done)
        photos = [int(row) for row in rows if groups[row] == "photo"]
        kept = len(photos) - min(_HELD_OUT_PHOTOS, len(photos) // 4)
        self.photos, self.held_out = photos[:kept], photos[kept:]
        self.sequences: list[list[int]] = []
        scenes = [int(row) for row in rows if groups[row] == "scene"]
        for name in dict.fromkeys(group for group in groups if group not in {"photo", "scene"}):
            members = [index for index, group in enumerate(groups) if group == name and done[index]]
            if len(members) > 1:
                self.sequences.append(members)
        self.stills = self.photos + scenes + [row for sequence in self.sequences for row in sequence[::3]]

    def batch(self, random: np.random.Generator, *, size: int, side: int) -> Batch:
        """`size` samples, an even number: each picture comes twice running, with a caption of its own."""
        captions = [caption for _ in range(size // 2) for caption in draw_captions(random)]
        seeds = np.repeat(random.integers(2**63, size=size // 2), 2)
        clips = [
            [self._still(caption, np.random.default_rng(seed), side)]
            for caption, seed in zip(captions, seeds, strict=True)
        ]
        return _stack(clips, captions, random)

    def samples(self, size: int) -> Batch:
        """The first held-out photos, whole and as they are."""
        random = np.random.default_rng(0)
        still = np.array([[1.0, 0, 0], [0, 1.0, 0]])
        rows = self.held_out[:size]
        captions = [draw_caption(random) for _ in rows]
        clips = [
            [_frame(self._layers(row, caption), still, 256, zoom=1.0)]
            for row, caption in zip(rows, captions, strict=True)
        ]
        return _stack(clips, captions, random)

    def clips(self, random: np.random.Generator, *, size: int, frames: int, side: int, real: float) -> Batch:
        """`size` clips of `frames` frames, a share `real` of them filmed, the others moved photos."""
        captions = [draw_caption(random) for _ in range(size)]
        clips = []
        for caption in captions:
            filmed = bool(self.sequences) and random.random() < real
            take = self._filmed if filmed else self._moved
            clips.append(take(caption, random, frames, side))
        return _stack(clips, captions, random)

    def _layers(self, row: int, caption: Caption) -> dict[str, Picture]:
        """The source, and the bases of the styles that the caption names."""
        styles = {"flat" if style == "ink" else style for style in caption.styles}
        return {name: self._arrays[name][row] for name in ("source", *sorted(styles))}

    def _still(self, caption: Caption, random: np.random.Generator, side: int) -> dict[str, Image]:
        row = self.stills[random.integers(len(self.stills))]
        zoom = random.uniform(1.0, 2.0) if random.random() < 0.4 else 1.0
        return _frame(self._layers(row, caption), _placement(random, side, zoom), side, zoom=zoom)

    def _moved(
        self, caption: Caption, random: np.random.Generator, frames: int, side: int
    ) -> list[dict[str, Image]]:
        """A photo under a camera that pans, zooms and turns: the drawing moves with it."""
        layers = self._layers(self.photos[random.integers(len(self.photos))], caption)
        zoom = random.uniform(1.05, 1.9)
        start = _placement(random, side, zoom)
        speed = random.choice([0.0, 0.6, 2.0, 5.0]) * random.normal(size=2)
        turn, growth = 0.006 * random.normal(), 0.006 * random.normal()
        clip = []
        for number in range(frames):
            angle, scale = turn * number, 1.0 + growth * number
            c, s = scale * np.cos(angle), scale * np.sin(angle)
            middle = side / 2
            shift_x = middle - c * middle + s * middle + speed[0] * number
            shift_y = middle - s * middle - c * middle + speed[1] * number
            motion = np.array([[c, -s, shift_x], [s, c, shift_y], [0, 0, 1]])
            transform = (motion @ np.vstack([start, [0, 0, 1]]))[:2]
            clip.append(_frame(layers, transform, side, zoom=zoom))
        return clip

    def _filmed(
        self, caption: Caption, random: np.random.Generator, frames: int, side: int
    ) -> list[dict[str, Image]]:
        sequence = self.sequences[random.integers(len(self.sequences))]
        first = random.integers(max(1, len(sequence) - frames + 1))
        rows = (sequence[first:] + sequence[::-1])[:frames]
        zoom = random.uniform(1.0, 1.5)
        transform = _placement(random, side, zoom)
        return [_frame(self._layers(row, caption), transform, side, zoom=zoom) for row in rows]


def _placement(random: np.random.Generator, side: int, zoom: float) -> NDArray[np.float64]:
    """An affine map (2, 3) from a prepared picture to a random crop of it, `zoom` times larger.

    It goes by whole pixels: what is not enlarged stays as sharp as it is.
    """
    spare = np.maximum(256 * zoom - side, 0.0)
    left, top = np.round(random.uniform(0.0, 1.0, 2) * spare)
    if random.random() < 0.5:
        return np.array([[-zoom, 0, 256 * zoom - left - 1], [0, zoom, -top]])
    return np.array([[zoom, 0, -left], [0, zoom, -top]])


def _frame(
    layers: dict[str, Picture], transform: NDArray[np.float64], side: int, *, zoom: float
) -> dict[str, Image]:
    """Cut a frame out of a prepared picture and its drawings; `zoom` goes along, for the outline's width."""
    frame = {"zoom": np.array(zoom, np.float32)}
    for name, picture in layers.items():
        moved = cv2.warpAffine(
            picture, transform, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        frame[name] = np.asarray(moved, dtype=np.float32) / np.float32(255)
    return frame


def _outline(image: Image, zoom: float) -> Image:
    extract = OutlineExtractor(sigma=0.9 * float(zoom))
    return extract((np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)).astype(np.float32) / 255.0


def _target(frame: dict[str, Image], caption: Caption) -> Image:
    outline = _outline(frame["source"], float(frame["zoom"]))
    base = np.zeros_like(frame["source"])
    for style, weight in caption.styles.items():
        base += weight * (ink(frame["flat"]) if style == "ink" else frame[style])
    return compose(base, outline, caption.attributes)


def _stack(
    clips: list[list[dict[str, Image]]], captions: list[Caption], random: np.random.Generator
) -> Batch:
    flows = [_flow(before["source"], after["source"]) for clip in clips for before, after in pairwise(clip)]
    side = clips[0][0]["source"].shape[0]
    flow = np.stack(flows) if flows else np.zeros((0, side, side, 3), np.float32)
    colours, outlines, targets = [], [], []
    for clip, caption in zip(clips, captions, strict=True):
        noise = random.uniform(0.0, 0.03) if random.random() < 0.6 else 0.0
        flicker = 0.012 * float(random.random() < 0.4)
        blur = random.random() < 0.15
        for frame in clip:
            source = frame["source"]
            degraded = cv2.GaussianBlur(source, (0, 0), 0.8) if blur else source
            degraded = degraded * (1.0 + flicker * random.normal()) + noise * random.standard_normal(
                source.shape, dtype=np.float32
            )
            degraded = np.clip(degraded, 0.0, 1.0).astype(np.float32)
            colours.append(degraded)
            outlines.append(_outline(degraded, float(frame["zoom"])))
            targets.append(_target(frame, caption))
    shape = (len(clips), len(clips[0]))
    outline = torch.from_numpy(np.stack(outlines))[:, None].expand(-1, 3, -1, -1).unflatten(0, shape)
    flow_and_mask = torch.from_numpy(flow).permute(0, 3, 1, 2).unflatten(0, (shape[0], shape[1] - 1))
    return Batch(
        colour=_tensor(colours, shape),
        outline=outline,
        target=_tensor(targets, shape) * 2.0 - 1.0,
        captions=[caption.text for caption in captions],
        flow=flow_and_mask[:, :, :2],
        steady=flow_and_mask[:, :, 2:],
    )


def _flow(before: Image, after: Image) -> Image:
    """DIS flow from `after` back to `before` and its trust by forward-backward check, as (S, S, 3)."""
    grey = [cv2.cvtColor((image * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY) for image in (before, after)]
    zero = np.zeros((*grey[0].shape, 2), np.float32)
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    backward = np.asarray(search.calc(grey[1], grey[0], zero.copy()))
    forward = np.asarray(search.calc(grey[0], grey[1], zero.copy()))
    row, column = np.mgrid[: grey[0].shape[0], : grey[0].shape[1]].astype(np.float32)
    there = cv2.remap(forward, column + backward[..., 0], row + backward[..., 1], cv2.INTER_LINEAR)
    error = np.linalg.norm(backward + there, axis=-1)
    length = np.linalg.norm(backward, axis=-1) + np.linalg.norm(there, axis=-1)
    return np.dstack([backward, error < 0.01 * length + 0.5]).astype(np.float32)


def _tensor(images: list[Image], shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().unflatten(0, shape)


def prefetch(make: Callable[[int], Batch], first: int, last: int) -> Iterator[Batch]:
    """Batches `first` to `last` of `make`, the next two made in a thread meanwhile."""
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(max_workers=1) as thread:
        for number in range(first, last):
            waiting.append(thread.submit(make, number))
            if len(waiting) > 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
