"""Where the latents of one frame lie in another, by the optical flow of the source.

Latents are eight times smaller than pictures, and what a decoder makes of them depends on where a line lies
within a latent pixel: latents are moved by whole pixels only. And they know the picture's border, from which
convolutions saw zeros. So a correspondence says of each place how much of the other frame's latents is of use
there: nothing where the source's flow cannot be trusted, nothing near a border that has moved, and the less
the further the motion is from whole latent pixels.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toonstream.stream.temporal.flow import Flow, FlowFunction, flow, trusted, warp

__all__ = ["Correspondence", "Correspondences", "fast_flow"]

_LATENT_PIXEL = 8  # pixels, along each axis
_FLOW_SIDE = 128  # pixels of the short side that flow is searched at
_BORDER = 2  # latent pixels that are changed by the picture's border
_STILL = 0.25  # latent pixels of motion from which on the border's latents are of no use
_LITTLE = 1e-6  # what a pixel that is not trusted weighs
_PHASE = 0.5  # latent pixels off a whole number, along either axis, at which latents are of no use


def fast_flow(source: NDArray[np.uint8], target: NDArray[np.uint8]) -> Flow:
    """DIS at the effort that pays here: a tenth of a latent pixel more or less makes no difference."""
    return flow(source, target, effort="fast")


@dataclass(frozen=True, kw_only=True, eq=False)
class Correspondence:
    """Where each latent pixel of one frame lies in another.

    Attributes:
        flow: (h, w, 2) float32, in latent pixels, from the one frame to the other; see `flow.flow`.
        seen: (h, w) float32 in [0, 1], the share of the latent pixel that the other frame shows, too.
    """

    flow: Flow
    seen: NDArray[np.float32]

    def then(self, further: "Correspondence") -> "Correspondence":
        """Where the pixels lie in a third frame, `further` leading on from the other one."""
        return Correspondence(
            flow=self.flow + warp(further.flow, self.flow), seen=self.seen * warp(further.seen, self.flow)
        )

    def use(self, device: torch.device) -> Tensor:
        """How much of the other frame's latents is of use, (h, w) float32 in [0, 1]."""
        height, width = self.seen.shape
        off = np.abs(self.flow - np.round(self.flow)).max(axis=-1)
        row, column = np.mgrid[:height, :width].astype(np.float32)
        inside = _inside(column, width) & _inside(row, height)
        inside &= _inside(column + self.flow[..., 0], width) & _inside(row + self.flow[..., 1], height)
        moved = np.abs(self.flow).max(axis=-1)
        kept = np.where(inside, 1.0, np.clip(1 - moved / _STILL, 0, 1))
        use = self.seen * kept * np.clip(1 - off / _PHASE, 0, 1)
        return torch.from_numpy(use.astype(np.float32)).to(device)

    def bring(self, latents: Tensor) -> Tensor:
        """The other frame's latents (C, h, w) where this one has them: each the nearest as it is.

        Not interpolated: a little motion that the flow finds in one frame and not in the next, as it does
        where nothing is to be seen, would change what the decoder makes of them: flat areas would flicker.
        """
        height, width = self.seen.shape
        column, row = np.rint(cv2.split(self.flow)).astype(np.int64)
        column = (column + np.arange(width)).clip(0, width - 1)
        row = (row + np.arange(height)[:, None]).clip(0, height - 1)
        places = torch.from_numpy(row * width + column).to(latents.device)
        return latents.flatten(-2)[:, places]


class Correspondences:
    """Finds them between neighbouring frames as frames come in, and chains them between others.

    Args:
        multiple: pixels that pictures are padded to multiples of before they become latents.
        search: finds the flow from a grey picture to another.
    """

    def __init__(self, *, multiple: int, search: FlowFunction = fast_flow) -> None:
        self._multiple = multiple
        self._search = search
        self._last: NDArray[np.uint8] | None = None
        self._back: dict[int, Correspondence] = {}  # from a frame to the one before it
        self._forth: dict[int, Correspondence] = {}  # from the one before it to a frame

    def __len__(self) -> int:
        """Pairs of frames that are known."""
        return len(self._back)

    def arrive(self, index: int, image: NDArray[np.uint8]) -> None:
        """Take in the next frame: (H, W, 3) uint8 RGB, at the size it is rendered at."""
        grey, cell = _small(image, self._multiple)
        before, self._last = self._last, grey
        if before is None:
            return
        back, forth = self._search(grey, before), self._search(before, grey)
        self._back[index] = _by_cell(back, trusted(back, forth), cell)
        self._forth[index] = _by_cell(forth, trusted(forth, back), cell)

    def between(self, one: int, other: int) -> Correspondence:
        """From frame `one` to frame `other`, another one, over the frames between them."""
        if other < one:
            steps = [self._back[index] for index in range(one, other, -1)]
        else:
            steps = [self._forth[index] for index in range(one + 1, other + 1)]
        found = steps[0]
        for step in steps[1:]:
            found = found.then(step)
        return found

    def forget(self, *, through: int) -> None:
        """Frames up to and with `through` are done with."""
        for known in (self._back, self._forth):
            for index in [index for index in known if index <= through]:
                del known[index]

    def cut(self) -> None:
        """The next frame is of another scene."""
        self._last = None
        self._back.clear()
        self._forth.clear()


def _inside(place: NDArray[np.float32], side: int) -> NDArray[np.bool_]:
    """Which places are away from the border."""
    return np.asarray((place > _BORDER - 0.01) & (place < side - 1 - _BORDER + 0.01))


def _small(image: NDArray[np.uint8], multiple: int) -> tuple[NDArray[np.uint8], int]:
    """A grey picture with a whole number of pixels to a latent pixel, and that number."""
    height, width = image.shape[:2]
    below, right = -height % multiple, -width % multiple
    grey = cv2.copyMakeBorder(
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 0, below, 0, right, cv2.BORDER_REPLICATE
    )
    latent_height, latent_width = grey.shape[0] // _LATENT_PIXEL, grey.shape[1] // _LATENT_PIXEL
    cell = min(_LATENT_PIXEL, max(1, math.ceil(_FLOW_SIDE / min(latent_height, latent_width))))
    size = (latent_width * cell, latent_height * cell)
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), cell


def _by_cell(flow: Flow, seen: NDArray[np.bool_], cell: int) -> Correspondence:
    """The mean flow of the trusted pixels of each latent pixel, or of all where none is, and their share."""
    height, width = seen.shape[0] // cell, seen.shape[1] // cell
    share = seen.astype(np.float32)
    weight = share + np.float32(_LITTLE)
    x, y = cv2.split(flow)
    x, y, share = (
        np.asarray(cv2.resize(values, (width, height), interpolation=cv2.INTER_AREA), dtype=np.float32)
        for values in (x * weight, y * weight, share)
    )
    return Correspondence(flow=np.dstack([x, y]) / ((share + _LITTLE) * cell)[..., None], seen=share)
