"""Scene cuts, found as frames arrive: no look-ahead, and under a millisecond a frame.

Two pictures of one scene agree once brightness and a shift are taken out; two pictures on either side of a
cut do not. So thumbnails are compared by their correlation, which a change of exposure leaves alone, first in
place and then at the shift where they fit best, which is what a whip pan needs. A frame with next to no
contrast (a flash, a fade through black) says nothing: it belongs to the scene before it, and the frame after
it is compared with the last one that did say something.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame

__all__ = ["CutDetector", "CutSettings", "Scenes"]

_WIDTH, _HEIGHT = 64, 36
_MARGIN = 12  # thumbnail pixels that a pan may move the picture by, from one frame to the next
_BINS = 8

Thumbnail = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """When two frames are of two scenes.

    Attributes:
        correlation: below it the pictures differ, in [-1, 1], after the best shift.
        overlap: below it the colours differ too: the shared part of the two colour histograms, in [0, 1].
        contrast: standard deviation of the lightness, in [0, 255], below which a frame says nothing.
    """

    correlation: float = 0.5
    overlap: float = 0.9
    contrast: float = 6.0


class CutDetector:
    """Tells, frame by frame, where a new scene begins.

    Args:
        settings: when two frames are of two scenes.
    """

    def __init__(self, settings: CutSettings | None = None) -> None:
        self._settings = settings or CutSettings()
        self._reference: Thumbnail | None = None

    def push(self, image: NDArray[np.uint8]) -> bool:
        """Take the next frame, (H, W, 3) uint8 RGB; True if it is the first of a new scene.

        The first frame of a stream is not a cut.
        """
        thumbnail = np.asarray(
            cv2.resize(image, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA), dtype=np.float32
        )
        if _lightness(thumbnail).std() < self._settings.contrast:
            return False
        before, self._reference = self._reference, thumbnail
        return before is not None and not self._alike(before, thumbnail)

    def _alike(self, before: Thumbnail, after: Thumbnail) -> bool:
        return (
            _correlation(_lightness(before), _lightness(after)) >= self._settings.correlation
            or _shifted_correlation(_lightness(before), _lightness(after)) >= self._settings.correlation
            or _histogram_overlap(before, after) >= self._settings.overlap
        )


class Scenes:
    """Conditions with the scenes numbered, from 0: what comes after needs no eye for cuts of its own.

    Args:
        conditions: what prepares a frame.
        cuts: tells where scenes begin.
    """

    def __init__(self, conditions: Callable[[Frame], Conditioned], cuts: CutDetector | None = None) -> None:
        self._conditions = conditions
        self._cuts = cuts or CutDetector()
        self._scene = 0

    def __call__(self, frame: Frame) -> Conditioned:
        """Prepare the next frame."""
        conditioned = self._conditions(frame)
        self._scene += self._cuts.push(conditioned.frame.image)
        return replace(conditioned, scene=self._scene)


def _lightness(thumbnail: Thumbnail) -> Thumbnail:
    return np.asarray(thumbnail.mean(axis=-1), dtype=np.float32)


def _correlation(one: Thumbnail, other: Thumbnail) -> float:
    return float(cv2.matchTemplate(one, other, cv2.TM_CCOEFF_NORMED)[0, 0])


def _shifted_correlation(before: Thumbnail, after: Thumbnail) -> float:
    """The best correlation of the middle of `after` with any place of `before`, and the other way round."""
    found = [
        cv2.matchTemplate(whole, part[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN], cv2.TM_CCOEFF_NORMED).max()
        for whole, part in ((before, after), (after, before))
    ]
    return float(min(found))


def _histogram_overlap(before: Thumbnail, after: Thumbnail) -> float:
    """The share of the colours, brightness taken out, that two thumbnails have in common."""
    histograms = []
    for thumbnail in (before, after):
        levels = thumbnail / np.maximum(thumbnail.mean(), 1.0) * 96.0
        counts = cv2.calcHist(
            [np.clip(levels, 0, 255).astype(np.uint8)], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3
        )
        histograms.append(counts / counts.sum())
    return float(np.minimum(*histograms).sum())
