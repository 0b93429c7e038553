"""What one frame's toon looks like where another frame is: what deflickering and keyframes have in common.

Two ways to find out. By optical flow, which is quick, and knows where it fails; and by PatchMatch, as in
FastBlend, which takes seconds where flow takes milliseconds, and fills in from elsewhere what the other frame
hides.

Where toons are only blended with others, flow is found on frames of half the size: that takes a quarter,
and what it takes away of their sharpness, `blended` keeps.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.flow import Effort, Flow, flow, trusted, warp
from toonstream.stream.temporal.patchmatch import Compare, PatchMatchSettings, patch_match

__all__ = ["FlowMatcher", "Matcher", "PatchMatcher", "Picture", "Remapped", "as_levels", "blended"]

Picture = NDArray[np.float32]
Level = TypeVar("Level", np.uint8, np.float32)

_DIFFERENT = 24.0  # levels of 255: guides, or styles, that are this far apart count for a half
_SHARP = cv2.INTER_CUBIC  # linear interpolation takes twice as much of the sharpness away
_DETAIL, _DETAIL_SIZE = 0.7, (3, 3)  # pixels: what is finer than that blur is the own toon's
_FLOW_SIDE = 128  # pixels of the short side that flow is found at where it would be less
_MEAN = np.full((1, 3), 1 / 3)  # of three colours
_MOST_FLOWS = 128  # kept: at 512x512 pixels 64 megabytes
_PAIRS = 8  # matched at once, where each is for itself: the memory of a GPU has an end
_SOFT = 5  # pixels: side of the neighbourhood that is trusted, or agrees, together


@dataclass(frozen=True, kw_only=True, eq=False)
class Remapped:
    """Toons brought to where a frame is.

    Attributes:
        styles: (N, H, W, 3) float32, levels of 255, and a little beyond where an edge was interpolated.
        weights: (N, H, W) float32 in [0, 1], how far they can be relied on.
        whole: they are made of whole patches, and as sharp as toons are; else they are moved by parts of
            pixels, which takes the finest details away.
    """

    styles: Picture
    weights: Picture
    whole: bool = False


class Matcher(Protocol):
    """Brings toons to where a frame is."""

    def remap(
        self,
        target: Frame,
        sources: Sequence[Toon],
        *,
        compare: Compare = "own",
        own: NDArray[np.uint8] | None = None,
    ) -> Remapped:
        """Bring the toons of some frames to where `target` is.

        Args:
            target: the frame; of the size of the sources and their toons.
            sources: frames around it, with their toons; at least one.
            compare: "own": each toon by itself; "mean": where they agree; "others": where each agrees with
                the rest of them.
            own: the target's toon, one more to agree with, (H, W, 3) RGB.
        """
        ...


class FlowMatcher:
    """Matches by optical flow, both ways, and relies on what the two ways agree on and the colours bear out.

    Args:
        reach: frames that are matched lie at most so many frames apart; what is found of a frame is kept
            until it is out of reach. 0 keeps next to nothing.
        effort: of the flow.
        scale: of the size of toons, that flow is found at; more where that would be too little to tell things
            apart.
    """

    def __init__(self, *, reach: int = 1, effort: Effort = "light", scale: float = 0.5) -> None:
        self._flows: _Kept[Flow] = _Kept(min(_MOST_FLOWS, 4 * reach * (reach + 1)))
        self._small: _Kept[_Small] = _Kept(2 * reach + 3)
        self._effort: Effort = effort
        self._scale = scale

    def remap(
        self,
        target: Frame,
        sources: Sequence[Toon],
        *,
        compare: Compare = "own",
        own: NDArray[np.uint8] | None = None,
    ) -> Remapped:
        """See `Matcher`. With "mean", toons count for less where they are far from the mean of all."""
        height, width = sources[0].toon.image.shape[:2]
        styles = np.empty((len(sources), height, width, 3), np.float32)
        weights = np.empty((len(sources), height, width), np.float32)
        for toon, style, weight in zip(sources, styles, weights, strict=True):
            there, weight[:] = self._match(target, toon.source, (width, height))
            warp(toon.toon.image.astype(np.float32), there, interpolation=_SHARP, out=style)
        remapped = Remapped(styles=styles, weights=weights)
        if compare != "mean":
            return remapped
        mean = blended(remapped, own)
        agreement = [_agreement(style, mean) for style in remapped.styles]
        return Remapped(styles=remapped.styles, weights=remapped.weights * np.stack(agreement))

    def _match(self, target: Frame, source: Frame, size: tuple[int, int]) -> tuple[Flow, Picture]:
        """The flow from target to source at `size` (width, height), and how far each pixel can be trusted."""
        small = _flow_size(*size, self._scale)
        here, there = self._shrunk(target, small), self._shrunk(source, small)
        found = self._flow(here, there)
        seen = trusted(found, self._flow(there, here)).astype(np.float32)
        weight = _soft(seen) * _agreement(warp(there.image, found), here.image)
        if small == size:
            return found, weight
        scale = np.array([size[0] / small[0], size[1] / small[1]], np.float32)
        return _enlarged(found, size) * scale, _enlarged(weight, size)

    def _shrunk(self, frame: Frame, size: tuple[int, int]) -> "_Small":
        return self._small.get((frame.index, size), lambda: _Small.of(frame, size))

    def _flow(self, source: "_Small", target: "_Small") -> Flow:
        return self._flows.get(
            (source.key, target.key), lambda: flow(source.grey, target.grey, effort=self._effort)
        )


class PatchMatcher:
    """Matches by PatchMatch.

    Args:
        device: what it runs on.
        seed: of its random numbers.
        settings: how hard it looks.
    """

    def __init__(
        self, *, device: torch.device, seed: int = 0, settings: PatchMatchSettings | None = None
    ) -> None:
        self._device = device
        self._seed = seed
        self._settings = settings or PatchMatchSettings()

    def remap(
        self,
        target: Frame,
        sources: Sequence[Toon],
        *,
        compare: Compare = "own",
        own: NDArray[np.uint8] | None = None,
    ) -> Remapped:
        """See `Matcher`. What a toon should look like is part of what patches are compared by."""
        together = len(sources) if compare != "own" else _PAIRS  # of which each is for itself
        styles = np.concatenate(
            [
                self._styles(target, sources[begin : begin + together], compare, own)
                for begin in range(0, len(sources), together)
            ]
        )
        return Remapped(styles=styles, weights=np.ones(styles.shape[:3], np.float32), whole=True)

    def _styles(
        self, target: Frame, sources: Sequence[Toon], compare: Compare, own: NDArray[np.uint8] | None
    ) -> Picture:
        matched = patch_match(
            self._tensor([target.image]).expand(len(sources), -1, -1, -1),
            self._tensor([toon.source.image for toon in sources]),
            self._tensor([toon.toon.image for toon in sources]),
            keys=[(target.index, toon.source.index) for toon in sources],
            seed=self._seed,
            compare=compare,
            own=None if own is None else self._tensor([own])[0],
            settings=self._settings,
        )
        return np.asarray(matched.style.to("cpu").numpy())

    def _tensor(self, images: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
        return torch.from_numpy(np.stack(images)).to(self._device, torch.float32)


def blended(remapped: Remapped, own: NDArray[np.uint8] | None = None) -> Picture:
    """The weighted mean, with the frame's own toon at full weight: (H, W, 3) float32 in [0, 255].

    Where toons were warped, the own one keeps its finest details: the others have lost some. Where they are
    whole it is the plain mean, as FastBlend has it.
    """
    if own is None:
        weights = remapped.weights[..., None]
        total, weight = (weights * remapped.styles).sum(axis=0), weights.sum(axis=0)
        return np.asarray(total / np.maximum(weight, 1e-6), dtype=np.float32)
    kept = own.astype(np.float32)
    share = remapped.weights / (1.0 + remapped.weights.sum(axis=0))
    mean = kept.copy()
    for style, part in zip(remapped.styles, share, strict=True):
        apart = cv2.subtract(style, kept)
        coarse = apart if remapped.whole else cv2.GaussianBlur(apart, _DETAIL_SIZE, _DETAIL)
        cv2.accumulateProduct(coarse, cv2.merge([part, part, part]), mean)
    return mean


def as_levels(picture: Picture) -> NDArray[np.uint8]:
    """Round (H, W, 3) to uint8 RGB."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Small:
    """A frame at the size that flow is found at.

    Attributes:
        key: says which frame and which size.
        image: (h, w, 3) uint8 RGB. grey: (h, w) uint8.
    """

    key: Hashable
    image: NDArray[np.uint8]
    grey: NDArray[np.uint8]

    @classmethod
    def of(cls, frame: Frame, size: tuple[int, int]) -> "_Small":
        """Shrink a frame to (width, height)."""
        image = frame.image
        if image.shape[1::-1] != size:
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
        return cls(key=(frame.index, size), image=image, grey=grey)


V = TypeVar("V")


class _Kept(Generic[V]):
    """Keeps what was asked for last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Give what is kept, or make it."""
        value = self._values.pop(key) if key in self._values else make()
        self._values[key] = value
        while len(self._values) > self._most:
            self._values.popitem(last=False)
        return value


def _flow_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """What flow is found at for toons of this size."""
    scale = min(1.0, max(scale, _FLOW_SIDE / min(width, height)))
    return round(width * scale), round(height * scale)


def _enlarged(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _soft(mask: Picture) -> Picture:
    """Let pixels go with those around them: one by one, trusted and not, they would be specks."""
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), _SOFT / 2), dtype=np.float32)


def _agreement(one: NDArray[Level], other: NDArray[Level]) -> Picture:
    """1 where two pictures are the same, and less the farther their colours are apart, (H, W)."""
    difference = cv2.absdiff(one, other)
    squares = cv2.transform(cv2.multiply(difference, difference, dtype=cv2.CV_32F), _MEAN)
    return np.asarray(1.0 / (1.0 + cv2.blur(squares, (_SOFT, _SOFT)) / _DIFFERENT**2), dtype=np.float32)
