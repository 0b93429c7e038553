"""The light outline extractor: flow-guided difference of Gaussians (FDoG) on luminance.

Kang et al. 2007 and Winnemöller et al. 2012 with the two filters separated the cheap way round: an
isotropic difference of Gaussians first, then a line integral of its response along the edge tangents.
A few milliseconds a frame on one core, so it runs live; it is also what the shipped network was
trained with.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["OutlineExtractor"]

_SIGMA_RATIO = 1.6  # of the two Gaussians; 1.6 makes their difference closest to a Laplacian
_REFERENCE_SIDE = 256  # pixels; `sigma` is stated for a frame whose short side is this long
_MAX_SCALE = 3.0  # lines get no wider than this times the reference, however large the frame


@dataclass(frozen=True, kw_only=True)
class OutlineExtractor:
    """Draws the outline of a frame, white lines on black, as the outline ControlNet expects it.

    Attributes:
        sigma: width of the lines looked for, in pixels at a short side of 256; larger frames scale it.
        sharpness: slope of the soft threshold (φ in XDoG).
        threshold: response below which there is no line, in luminance in [0, 1] (ε in XDoG).
        reach: how many samples the line integral takes on each side along the tangent.
    """

    sigma: float = 0.9
    sharpness: float = 55.0
    threshold: float = 0.006
    reach: int = 3

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Extract the outline.

        Args:
            image: (H, W, 3) uint8 RGB in [0, 255].

        Returns:
            (H, W) uint8 in [0, 255]: 0 where there is no line, 255 where it is darkest.
        """
        height, width = image.shape[:2]
        scale = min(max(min(height, width) / _REFERENCE_SIDE, 1.0), _MAX_SCALE)
        sigma = self.sigma * scale
        # In place wherever it can be: fresh memory costs as much as what is computed in it.
        luminance = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        luminance /= 255.0
        narrow = _blur(luminance, sigma)
        wide = _blur(luminance, sigma * _SIGMA_RATIO)
        wide -= narrow
        line = _along_tangents(wide, narrow, step=scale, reach=self.reach, spread=2.0 * sigma)
        line -= self.threshold
        np.maximum(line, 0.0, out=line)
        line *= self.sharpness
        np.tanh(line, out=line)
        line *= 255.0
        line += 0.5
        return line.astype(np.uint8)


def _blur(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), dtype=np.float32)


def _along_tangents(
    response: NDArray[np.float32], luminance: NDArray[np.float32], *, step: float, reach: int, spread: float
) -> NDArray[np.float32]:
    """Average `response` (H, W) along the smoothed edge tangents of `luminance` (H, W)."""
    gradient_x = np.asarray(cv2.Sobel(luminance, cv2.CV_32F, 1, 0), dtype=np.float32)
    gradient_y = np.asarray(cv2.Sobel(luminance, cv2.CV_32F, 0, 1), dtype=np.float32)
    xy = gradient_x * gradient_y
    gradient_x *= gradient_x
    gradient_y *= gradient_y
    for product in (gradient_x, gradient_y, xy):
        cv2.GaussianBlur(product, (0, 0), spread, dst=product)
    xy *= 2.0
    gradient_x -= gradient_y
    angle = np.arctan2(xy, gradient_x, out=xy)
    angle *= 0.5
    angle += np.float32(np.pi / 2)
    tangent_x = np.cos(angle, out=gradient_x)
    tangent_x *= np.float32(step)
    tangent_y = np.sin(angle, out=gradient_y)
    tangent_y *= np.float32(step)
    height, width = luminance.shape
    column, row = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    total = response.copy()
    place_x, place_y, moved = xy, np.empty_like(response), np.empty_like(response)
    weights = 1.0
    for sample in range(1, reach + 1):
        weight = float(np.exp(-0.5 * (sample / max(reach * 0.6, 0.5)) ** 2))
        for sign in (-sample, sample):
            np.multiply(tangent_x, sign, out=place_x)
            np.multiply(tangent_y, sign, out=place_y)
            place_x += column
            place_y += row
            cv2.remap(
                response, place_x, place_y, cv2.INTER_LINEAR, dst=moved, borderMode=cv2.BORDER_REPLICATE
            )
            moved *= weight
            total += moved
            weights += weight
    total /= weights
    return total
