"""What one frame's toon looks like where another frame is: what deflickering and keyframes have in common.

Two ways to find out. By optical flow, which is quick, and knows where it fails; and by PatchMatch, as in
FastBlend, which takes seconds where flow takes milliseconds, and fills in from elsewhere what the other frame
hides.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Toon
from toonstream.stream.temporal.flow import Effort, Flow, flow, trusted, warp
from toonstream.stream.temporal.patchmatch import Compare, PatchMatchSettings, patch_match

__all__ = ["FlowMatcher", "Matcher", "PatchMatcher", "Picture", "Remapped", "as_levels"]

Picture = NDArray[np.float32]

_DIFFERENT = 24.0  # levels of 255: guides, or styles, that are this far apart count for a half
_SHARP = cv2.INTER_CUBIC  # linear interpolation takes twice as much of the sharpness away
_PAIRS = 8  # matched at once, where each is for itself: the memory of a GPU has an end
_SOFT = 5  # pixels: side of the neighbourhood that is trusted, or agrees, together


@dataclass(frozen=True, kw_only=True, eq=False)
class Remapped:
    """Toons brought to where a frame is.

    Attributes:
        styles: (N, H, W, 3) float32, levels of 255, and a little beyond where an edge was interpolated.
        weights: (N, H, W) float32 in [0, 1], how far they can be relied on.
    """

    styles: Picture
    weights: Picture


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
    """Matches by optical flow, both ways, and relies on what the two ways agree on.

    Args:
        remembered: flows kept, for pairs that come again the other way round.
        effort: of the flow.
    """

    def __init__(self, *, remembered: int = 24, effort: Effort = "medium") -> None:
        self._flows: OrderedDict[tuple[int, int], Flow] = OrderedDict()
        self._remembered = remembered
        self._effort: Effort = effort

    def remap(
        self,
        target: Frame,
        sources: Sequence[Toon],
        *,
        compare: Compare = "own",
        own: NDArray[np.uint8] | None = None,
    ) -> Remapped:
        """See `Matcher`. With "mean", toons count for less where they are far from the mean of all."""
        styles, weights = [], []
        for toon in sources:
            there = self._flow(target, toon.source)
            found = trusted(there, self._flow(toon.source, target)).astype(np.float32)
            guide = warp(toon.source.image.astype(np.float32), there)
            styles.append(warp(toon.toon.image.astype(np.float32), there, interpolation=_SHARP))
            weights.append(_soft(found) * _agreement(guide, target.image))
        remapped = Remapped(styles=np.stack(styles), weights=np.stack(weights).astype(np.float32))
        if compare != "mean":
            return remapped
        mean = blended(remapped, own)
        agreement = [_agreement(style, mean) for style in remapped.styles]
        return Remapped(styles=remapped.styles, weights=remapped.weights * np.stack(agreement))

    def _flow(self, source: Frame, target: Frame) -> Flow:
        key = source.index, target.index
        known = self._flows.pop(key, None)
        if known is None:
            known = flow(source.image, target.image, effort=self._effort)
        self._flows[key] = known
        while len(self._flows) > self._remembered:
            self._flows.popitem(last=False)
        return known


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
        return Remapped(styles=styles, weights=np.ones(styles.shape[:3], np.float32))

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
    """The weighted mean, with the frame's own toon at full weight: (H, W, 3) float32 in [0, 255]."""
    weights = remapped.weights[..., None]
    total, weight = (weights * remapped.styles).sum(axis=0), weights.sum(axis=0)
    if own is not None:
        total, weight = total + own, weight + 1.0
    return np.asarray(total / np.maximum(weight, 1e-6), dtype=np.float32)


def as_levels(picture: Picture) -> NDArray[np.uint8]:
    """Round (H, W, 3) to uint8 RGB."""
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _soft(mask: Picture) -> Picture:
    """Let pixels go with those around them: one by one, trusted and not, they would be specks."""
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), _SOFT / 2), dtype=np.float32)


def _agreement(one: NDArray[np.float32], other: NDArray[np.uint8] | NDArray[np.float32]) -> Picture:
    """1 where two pictures are the same, and less the farther their colours are apart, (H, W)."""
    difference = cv2.blur(np.square(one - other).mean(axis=-1), (_SOFT, _SOFT))
    return np.asarray(1.0 / (1.0 + difference / _DIFFERENT**2), dtype=np.float32)
