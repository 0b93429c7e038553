"""Optical flow of the source, and which of it can be trusted.

Flows are arrays (H, W, 2) float32, in pixels, the horizontal part first: the point that `source` shows at
pixel (x, y) lies in `target` at (x + flow[y, x, 0], y + flow[y, x, 1]). So what looks like `target` is
brought to where `source` has it by `warp(target, flow(source, target))`.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Flow", "FlowFunction", "flow", "trusted", "warp"]

Flow = NDArray[np.float32]
FlowFunction = Callable[[NDArray[np.uint8], NDArray[np.uint8]], Flow]

Number = TypeVar("Number", np.uint8, np.float32)
Effort = Literal["ultrafast", "fast", "light", "medium"]

_PRESETS: dict[Effort, int] = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "light": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}
_LIGHT_SCALE = 1  # the pictures that flow is found on in the end are halved so many times, not twice
_RELATIVE = 0.01  # of the two flows' lengths that they may disagree by
_ABSOLUTE = 0.5  # pixels that they may disagree by on top
_LEAST_SIDE = 16  # pixels; below, and for longer shapes, DIS fails
_LONGEST = 2.5  # long side over short side


def flow(source: NDArray[np.uint8], target: NDArray[np.uint8], *, effort: Effort = "medium") -> Flow:
    """Where each pixel of `source` lies in `target`, by OpenCV's DIS.

    Args:
        source: (H, W) grey or (H, W, 3) RGB, uint8.
        target: same shape.
        effort: DIS's preset, or `light`: as fine as `medium` finds it, and not refined any further. Of one
            core at 256x256 pixels, `medium` takes about 6 ms, `light` 2 ms, `fast` 1 ms.

    Returns:
        (H, W, 2) float32, in pixels: see the module's docstring.
    """
    height, width = source.shape[:2]
    search = cv2.DISOpticalFlow.create(_PRESETS[effort])
    if effort == "light":
        search.setFinestScale(_LIGHT_SCALE)
    start: Any = None  # OpenCV's types want an array here, OpenCV itself does not
    found = search.calc(_padded(_grey(source)), _padded(_grey(target)), start)
    return np.ascontiguousarray(found[:height, :width], dtype=np.float32)


def trusted(forward: Flow, backward: Flow) -> NDArray[np.bool_]:
    """Which pixels of the source the target shows, too, by the forward-backward check.

    A pixel is occluded where ‖forward + backward there‖ > 0.01 (‖forward‖ + ‖backward there‖) + 0.5 pixels,
    with `backward there` the backward flow at the place that the forward flow leads to; and where that place
    is outside the picture.

    Args:
        forward: flow(source, target), (H, W, 2) float32 in pixels.
        backward: flow(target, source), same shape.

    Returns:
        (H, W) bool, over the pixels of the source: False where they are occluded.
    """
    height, width = forward.shape[:2]
    there = warp(backward, forward)
    disagreement = _norm(forward + there)
    length = _norm(forward) + _norm(there)
    column, row = cv2.split(_places(forward))
    inside = (column > -0.5) & (column < width - 0.5) & (row > -0.5) & (row < height - 0.5)
    return np.asarray((disagreement <= _RELATIVE * length + _ABSOLUTE) & inside)


def warp(
    image: NDArray[Number],
    flow: Flow,
    *,
    interpolation: int = cv2.INTER_LINEAR,
    out: NDArray[Number] | None = None,
) -> NDArray[Number]:
    """Fetch every pixel from where the flow leads to: result(x, y) = image(x + flow_x, y + flow_y).

    Args:
        image: the flow's target, or what looks like it: (H, W) or (H, W, C), uint8 or float32.
        flow: flow(source, target), (H, W, 2) float32 in pixels.
        interpolation: OpenCV's constant, bilinear by default.
        out: where to put the result: contiguous, of the image's shape and dtype.

    Returns:
        The image as the source has it, of the same shape and dtype. Beyond the border, the border's pixels.
    """
    nothing: Any = None  # OpenCV's types want an array here, OpenCV itself does not
    moved = cv2.remap(image, _places(flow), nothing, interpolation, dst=out, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, dtype=image.dtype).reshape(image.shape)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.ascontiguousarray(grey, dtype=np.uint8)


def _padded(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the border until DIS takes the shape: small and very long pictures are none to it."""
    height, width = grey.shape
    least = max(_LEAST_SIDE, math.ceil(max(height, width) / _LONGEST))
    below, right = max(0, least - height), max(0, least - width)
    if not (below or right):
        return grey
    return np.asarray(cv2.copyMakeBorder(grey, 0, below, 0, right, cv2.BORDER_REPLICATE), dtype=np.uint8)


def _norm(flow: Flow) -> NDArray[np.float32]:
    """Lengths, (H, W) float32; several times faster than numpy's."""
    return np.asarray(cv2.magnitude(*cv2.split(flow)), dtype=np.float32)


def _places(flow: Flow) -> NDArray[np.float32]:
    """Columns and rows, (H, W, 2) float32, that a flow leads to."""
    return np.asarray(flow + _grid(*flow.shape[:2]), dtype=np.float32)


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> NDArray[np.float32]:
    """Each pixel's own column and row, (H, W, 2)."""
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    grid = np.dstack([columns, rows])
    grid.setflags(write=False)
    return grid
