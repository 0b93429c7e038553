"""What the ControlNets see of a frame; made once per frame."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toonstream.errors import ModelError
from toonstream.export.outline import OutlineExtractor
from toonstream.stream.frame import Frame
from toonstream.stream.sizes import padded_size

__all__ = ["Conditioned", "Conditions", "as_image"]

_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)  # what a byte is in a hint


@dataclass(frozen=True, kw_only=True, eq=False)
class Conditioned:
    """A frame at the size it is rendered at, and its hints.

    Attributes:
        frame: the source frame, resized to the output's size.
        hints: name → (3, H, W) float32 in [0, 1], padded up to what the networks take; for hints that a
            network draws, the picture that it is to draw from.
        scene: number of the scene, see `Scenes`; nothing is shared between frames of two scenes.
    """

    frame: Frame
    hints: Mapping[str, Tensor]
    scene: int = 0


class Conditions:
    """Resizes, pads and draws the hints of one frame after another. Keeps nothing between frames.

    Args:
        names: the hints wanted: `outline`, `colour`, and any of `annotated`.
        size: (width, height) in pixels that frames are rendered at.
        multiple: the networks take sides that are multiples of this many pixels.
        annotated: hints that a network of the model draws, see `Stylizer`.

    Raises:
        ModelError: a hint that cannot be drawn.
    """

    def __init__(
        self, names: Iterable[str], *, size: tuple[int, int], multiple: int, annotated: Iterable[str] = ()
    ) -> None:
        painters: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
            "outline": OutlineExtractor(),
            "colour": lambda image: image,
        }
        painters |= dict.fromkeys(annotated, painters["colour"])
        unknown = sorted(set(names) - set(painters))
        if unknown:
            raise ModelError(
                f"no hint is drawn for {unknown[0]!r}; put an annotator into annotators/{unknown[0]} of the "
                f"model folder, or use {', '.join(painters)}"
            )
        self._painters = {name: painters[name] for name in names}
        self._size = size
        width, height = padded_size(size, multiple)
        self._right, self._bottom = width - size[0], height - size[1]

    def __call__(self, frame: Frame) -> Conditioned:
        """Prepare one frame of any size."""
        image = _resized(frame.image, self._size)
        padded = np.asarray(
            cv2.copyMakeBorder(image, 0, self._bottom, 0, self._right, cv2.BORDER_REPLICATE), dtype=np.uint8
        )
        hints = {name: _as_hint(paint(padded)) for name, paint in self._painters.items()}
        return Conditioned(frame=replace(frame, image=image), hints=hints)


def as_image(picture: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Turn a decoded (3, H, W) picture in [-1, 1] into (height, width, 3) uint8 RGB, padding cropped off."""
    width, height = size
    levels = picture[:, :height, :width].add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0)
    planes = levels.to("cpu", torch.uint8).contiguous().numpy()
    return np.asarray(cv2.merge(list(planes)), dtype=np.uint8)


def _resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    shrinks = size[0] * size[1] < width * height
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.asarray(resized, dtype=np.uint8)


def _as_hint(image: NDArray[np.uint8]) -> Tensor:
    """(H, W) or (H, W, 3) uint8 → (3, H, W) float32 in [0, 1]."""
    hint = np.empty((3, *image.shape[:2]), np.float32)
    if image.ndim == 2:
        hint[:] = cv2.LUT(image, _LEVELS)
    else:
        for plane, levels in zip(hint, cv2.split(image), strict=True):
            cv2.LUT(levels, _LEVELS, dst=plane)
    return torch.from_numpy(hint)
