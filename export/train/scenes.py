"""Drawn scenes with nothing in them but flat areas, so that the networks see what a halo is.

Photos hardly ever have an area whose colour is the same right up to a shape before it, and a rim beside the
shape costs little there. Teachers make rims themselves. So some training pictures are drawn: of every area it
is known where it is, and what a teacher makes of it is evened out over it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Scene", "draw_scene", "even_out"]

_FINE = 4  # pixels are drawn as so many by so many
_SHAPES = (2, 7)  # at least, and fewer than
_DEPTH = 30.0  # levels by which an area's colour changes from one end to the other, at most
_BORDER = 6  # pixels from an area's border where a teacher's rim is over
_ENOUGH = 64  # pixels that a plane is fitted to, at least

Image = NDArray[np.float32]
Picture = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A drawn scene.

    Attributes:
        picture: (S, S, 3) uint8 RGB.
        areas: (A, S, S) uint8, how much of each pixel each area has: 255 is all; they add up to all.
    """

    picture: Picture
    areas: Picture


def draw_scene(random: np.random.Generator, side: int) -> Scene:
    """Draw shapes, one before the other, on a plain ground or two, a little out of focus."""
    fine = side * _FINE
    labels = np.zeros((fine, fine), np.uint8)
    if random.random() < 0.4:
        ends = (random.uniform(0.3, 0.9, 2) * fine).astype(np.int32)
        ground = np.array([[0, ends[0]], [fine, ends[1]], [fine, fine], [0, fine]], np.int32)
        cv2.fillPoly(labels, [ground], 1)
    shapes = int(random.integers(*_SHAPES))
    for label in range(2, 2 + shapes):
        _draw_shape(labels, label, random)
    used = np.unique(labels)
    masks = [np.asarray(labels == label, dtype=np.float32) for label in used]
    shares = np.stack([cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA) for mask in masks])
    blur = random.uniform(0.3, 0.9)
    soft = np.stack([cv2.GaussianBlur(share, (0, 0), blur) for share in shares])
    colours = np.stack([_colours(random, side, dark=bool(label > 1)) for label in used])
    picture = (soft[..., None] * colours).sum(0) / soft.sum(0)[..., None]
    return Scene(
        picture=np.asarray(np.clip(picture, 0, 255) + 0.5, dtype=np.uint8),
        areas=np.asarray(shares * 255 + 0.5, dtype=np.uint8),
    )


def even_out(drawn: Picture, areas: Picture) -> Picture:
    """Give each area of a drawing (S, S, 3) the plane of colours that fits it best away from its border."""
    side = drawn.shape[0]
    row, column = np.mgrid[:side, :side] / side - 0.5
    basis = np.stack([np.ones_like(row), row, column], -1)
    shares = areas.astype(np.float32) / np.float32(255)
    total = np.zeros(drawn.shape, np.float64)
    for share in shares:
        away = cv2.distanceTransform((share > 0.99).astype(np.uint8), cv2.DIST_L2, 5)
        inside = away > min(_BORDER, float(np.sort(away, axis=None)[-_ENOUGH]))
        wide = inside.sum() >= 8 * _ENOUGH
        terms = 3 if wide else 1
        at = inside if inside.any() else share >= share.max()
        fit, *_ = np.linalg.lstsq(basis[at][:, :terms], drawn[at].astype(np.float64), rcond=None)
        total += share[..., None] * (basis[..., :terms] @ fit)
    return np.asarray(np.clip(total / shares.sum(0)[..., None], 0, 255) + 0.5, dtype=np.uint8)


def _draw_shape(labels: Picture, label: int, random: np.random.Generator) -> None:
    """Put an ellipse, a polygon, or a bar on (F, F) labels."""
    fine = labels.shape[0]
    middle = random.uniform(0.05, 0.95, 2) * fine
    size = random.uniform(0.04, 0.3, 2) * fine
    kind = random.integers(3)
    if kind == 0:
        angle = float(random.uniform(0, 180))
        cv2.ellipse(labels, (middle.tolist(), (2 * size).tolist(), angle), label, -1)
    elif kind == 1:
        corners = int(random.integers(3, 8))
        angles = np.sort(random.uniform(0, 2 * np.pi, corners))
        reach = random.uniform(0.5, 1.0, corners)[:, None] * size
        outline = middle + reach * np.stack([np.cos(angles), np.sin(angles)], -1)
        cv2.fillPoly(labels, [outline.astype(np.int32)], label)
    else:
        end = random.uniform(0, 1, 2) * fine
        width = int(random.uniform(0.01, 0.06) * fine)
        cv2.line(labels, middle.astype(int).tolist(), end.astype(int).tolist(), label, width)


def _colours(random: np.random.Generator, side: int, *, dark: bool) -> NDArray[np.float64]:
    """(S, S, 3) in levels: a colour that changes a little in some direction; shapes are dark more often."""
    value = random.uniform(0.05, 0.5) if dark and random.random() < 0.7 else random.uniform(0.3, 1.0)
    hsv = np.array([[[random.uniform(0, 360), random.uniform(0, 0.65) ** 1.5, value]]], np.float32)
    colour = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.float64)[0, 0] * 255
    angle, depth = random.uniform(0, 2 * np.pi), random.uniform(0, _DEPTH)
    row, column = np.mgrid[:side, :side] / side - 0.5
    slope = (row * np.sin(angle) + column * np.cos(angle))[..., None]
    return np.asarray(colour + slope * depth * random.uniform(0.4, 1.0, 3))
