"""Our own renderer: the base of each style, the attributes a prompt may ask for, and the ink on top.

Everything works on float32 RGB in [0, 1], channels last, and is deterministic: what a caption says
is what the picture shows, which is how the network learns what the words mean.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["GRADES", "STYLES", "Attributes", "Grade", "compose", "flatten", "grade", "ink"]

STYLES = ("hosoda", "shinkai", "hayao", "ink", "flat")

Image = NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Grade:
    """The fixed look of a teacher's style, put back after its flickering tint was taken out."""

    gamma: float
    contrast: float
    saturation: float
    shadows: tuple[float, float, float]
    lights: tuple[float, float, float]


GRADES = {
    "hosoda": Grade(
        gamma=0.86, contrast=1.02, saturation=1.10, shadows=(0.00, 0.00, 0.01), lights=(0.01, 0.01, 0.00)
    ),
    "shinkai": Grade(
        gamma=1.00, contrast=1.24, saturation=1.60, shadows=(-0.06, -0.01, 0.12), lights=(0.00, 0.02, 0.05)
    ),
    "hayao": Grade(
        gamma=0.78, contrast=0.88, saturation=0.95, shadows=(0.05, 0.07, 0.00), lights=(0.06, 0.04, -0.08)
    ),
}


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What a prompt asks for beyond the style; the defaults are what it gets when it asks for nothing.

    Attributes:
        line: darkness of the outline, in [0, 1].
        line_width: 1 as extracted, 2 thickened.
        colours: steps of light left after smoothing and posterising; 0 leaves all.
        saturation: factor on chroma.
        warmth: from -1 (cool) to 1 (warm).
        night: whether daylight is turned into night.
    """

    line: float = 0.72
    line_width: int = 1
    colours: int = 0
    saturation: float = 1.0
    warmth: float = 0.0
    night: bool = False


def _luma(image: Image) -> Image:
    return np.asarray(image @ _LUMA, dtype=np.float32)[..., None]


def _colour(red: float, green: float, blue: float) -> Image:
    return np.array((red, green, blue), dtype=np.float32)


def grade(image: Image, look: Grade) -> Image:
    """Apply a style's fixed look to an image (H, W, 3) in [0, 1]."""
    luma = _luma(image)
    chroma = image - luma
    toned = np.clip((luma**look.gamma - 0.5) * look.contrast + 0.5, 0.0, 1.0)
    tint = (1.0 - toned) * _colour(*look.shadows) + toned * _colour(*look.lights)
    return np.asarray(np.clip(toned + chroma * look.saturation + tint, 0.0, 1.0), dtype=np.float32)


def smooth(image: Image, *, rounds: int, colour_reach: float) -> Image:
    """Flatten areas and keep their borders: a bilateral filter, `rounds` times over."""
    for _ in range(rounds):
        image = np.asarray(cv2.bilateralFilter(image, 7, colour_reach, 5.0), dtype=np.float32)
    return image


def _staircase(value: Image, levels: int, softness: float) -> Image:
    """Quantise values in [0, 1] to `levels` steps whose edges are `softness` of a step wide."""
    scaled = value * levels
    base = np.floor(scaled)
    edge = np.clip((scaled - base - 0.5) / softness + 0.5, 0.0, 1.0)
    return np.asarray(np.clip((base + edge) / levels, 0.0, 1.0), dtype=np.float32)


def _posterise(image: Image, levels: int, *, softness: float = 0.12) -> Image:
    luma = _luma(image)
    chroma = image - luma
    steps = np.round(chroma * 9.0) / 9.0
    return np.asarray(np.clip(_staircase(luma, levels, softness) + 0.75 * steps + 0.25 * chroma, 0.0, 1.0))


def _poster(image: Image, tones: int) -> Image:
    """A few tones of strong colour. Steps that are sharper, and without the contrast, are not learned."""
    smoothed = smooth(image, rounds=3, colour_reach=0.2)
    luma = _luma(smoothed)
    bold = np.asarray((luma - 0.5) * 1.3 + 0.5 + (smoothed - luma) * 1.3, dtype=np.float32)
    return _posterise(np.clip(bold, 0.0, 1.0), tones, softness=0.4)


def flatten(source: Image, *, rounds: int = 4) -> Image:
    """The `flat` style: large areas of one colour, in a few steps of light; `rounds` of smoothing first."""
    return _posterise(smooth(source, rounds=rounds, colour_reach=0.14), 6)


def ink(flat: Image) -> Image:
    """The `ink` style: black on paper with one grey wash, from the `flat` rendering of a frame."""
    luma = _luma(flat)
    black = np.clip((luma - 0.16) / 0.08, 0.0, 1.0)
    wash = np.clip((luma - 0.38) / 0.10, 0.0, 1.0)
    tone = 0.06 + 0.66 * black + 0.24 * wash * black
    return np.asarray(tone * _colour(1.0, 0.985, 0.95), dtype=np.float32)


def compose(base: Image, outline: Image, attributes: Attributes) -> Image:
    """Put the attributes and the outline on a style's base.

    Args:
        base: (H, W, 3) float32 in [0, 1], the style's rendering without outline.
        outline: (H, W) float32 in [0, 1], 1 where the line is darkest.
        attributes: what the caption says.
    """
    image = base
    if attributes.colours:
        image = _poster(image, attributes.colours)
    luma = _luma(image)
    image = luma + (image - luma) * attributes.saturation
    if attributes.warmth:
        image = image + attributes.warmth * _colour(0.085, 0.015, -0.11)
    if attributes.night:
        luma = np.clip(_luma(image), 0.0, 1.0)
        chroma = image - luma
        image = 0.42 * luma**1.25 + 0.5 * chroma + _colour(-0.01, 0.015, 0.085) * (0.4 + luma)
    if attributes.line_width > 1:
        thick = cv2.GaussianBlur(cv2.dilate(outline, np.ones((3, 3), np.uint8)), (3, 3), 0)
        outline = np.asarray(thick, dtype=np.float32)
    shade = 1.0 - attributes.line * outline[..., None]
    return np.asarray(np.clip(image, 0.0, 1.0) * shade, dtype=np.float32)
