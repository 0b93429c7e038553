"""Skipping: a frame that looks like the last one that was drawn has that one's toon, and costs no network.

Frames are compared with the last one that was drawn, not with the one before them, so that what changes
slowly is drawn as soon as it has changed enough: the picture never freezes. They are compared on a small and
slightly blurred picture, on which noise is little, part by part, so that a small thing that moves is not lost
in a large picture that does not.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon

__all__ = ["Skipping", "difference", "thumbnail"]

_LONG_SIDE = 160  # pixels of the small picture
_PART = 8  # of them that a part is wide and high


class Item(Protocol):
    """What a stage takes: a frame, with what belongs to it."""

    @property
    def frame(self) -> Frame:
        """The frame."""
        ...


ItemT = TypeVar("ItemT", bound=Item)
ItemT_contra = TypeVar("ItemT_contra", bound=Item, contravariant=True)


class Stage(Protocol[ItemT_contra]):
    """What draws; every frame that goes in comes out, in order."""

    def push(self, item: ItemT_contra, /) -> Iterable[Toon]:
        """Take the next frame; give the ones that became final."""
        ...

    def finish(self) -> Iterable[Toon]:
        """The stream has ended: give the rest."""
        ...


@dataclass(kw_only=True, eq=False)
class _Drawn(Generic[ItemT]):
    """A frame that is drawn, and its toon as soon as there is one."""

    item: ItemT
    small: NDArray[np.float32]
    toon: Toon | None = None


class Skipping(Generic[ItemT]):
    """Lets a stage draw the frames that differ.

    A stage may need later frames before it gives a toon. Where none that differ come, it is given frames that
    do not, after a while, until the toon is there; what it makes of them is not used.

    Args:
        stage: what draws.
        threshold: frames that differ by no more than this many levels of 255, see `difference`, look alike;
            with 0, those that are the same in every pixel.
        patience: frames in a row that wait for the toon that they will have, before the stage is given some.
        alike: whether two frames that look alike may have the same toon.
    """

    def __init__(
        self,
        stage: Stage[ItemT],
        *,
        threshold: float,
        patience: int,
        alike: Callable[[ItemT, ItemT], bool] = lambda one, other: True,
    ) -> None:
        self._stage = stage
        self._threshold = threshold
        self._patience = patience
        self._alike = alike
        self._latest: _Drawn[ItemT] | None = None
        self._row = 0  # frames like it that have come since
        self._inside: deque[_Drawn[ItemT] | None] = deque()  # what the stage draws; None: it will not be used
        self._waiting: deque[tuple[Frame, _Drawn[ItemT]]] = deque()  # frames, and whose toon they will have

    @property
    def held(self) -> int:
        """Frames that are in and not out."""
        return len(self._waiting)

    def push(self, item: ItemT) -> Iterator[Toon]:
        """Take the next frame; give the ones that became final, in order."""
        small = thumbnail(item.frame.image)
        latest = self._latest
        if latest is not None and self._is_still(latest, item, small):
            self._row += 1
            self._waiting.append((item.frame, latest))
            if latest.toon is None and self._row > self._patience:
                self._inside.append(None)
                yield from self._given(self._stage.push(item))
        else:
            self._row = 0
            self._latest = drawn = _Drawn(item=item, small=small)
            self._waiting.append((item.frame, drawn))
            self._inside.append(drawn)
            yield from self._given(self._stage.push(item))
        yield from self._ready()

    def finish(self) -> Iterator[Toon]:
        """The stream has ended: give the rest."""
        return self._given(self._stage.finish())

    def _is_still(self, latest: _Drawn[ItemT], item: ItemT, small: NDArray[np.float32]) -> bool:
        one, other = latest.item.frame.image, item.frame.image
        if one.shape != other.shape or not self._alike(latest.item, item):
            return False
        if self._threshold > 0.0:
            return difference(latest.small, small) <= self._threshold
        return np.array_equal(one, other)

    def _given(self, toons: Iterable[Toon]) -> Iterator[Toon]:
        for toon in toons:
            drawn = self._inside.popleft()
            if drawn is not None:
                drawn.toon = toon
                yield from self._ready()

    def _ready(self) -> Iterator[Toon]:
        while self._waiting and self._waiting[0][1].toon is not None:
            frame, drawn = self._waiting.popleft()
            assert drawn.toon is not None
            if frame is drawn.item.frame:
                yield drawn.toon
            else:
                yield replace(drawn.toon, source=frame, toon=replace(frame, image=drawn.toon.toon.image))


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The small picture that frames are compared on, of (H, W, 3) uint8 RGB."""
    height, width = image.shape[:2]
    scale = min(1.0, _LONG_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(small, (0, 0), 1.0), dtype=np.float32)


def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """How far two thumbnails are apart in the part where they are farthest, in levels of 255.

    In each part of 8x8 pixels, wherever it may lie, that is the mean of the absolute differences, in the
    channel where they are largest.
    """
    return float(cv2.blur(np.abs(one - other), (_PART, _PART)).max())
