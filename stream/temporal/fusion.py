"""Synchronized multi-frame diffusion (SMFD): frames agree on what they show before each denoising step.

What a frame would look like (its predicted clean latents, x0) is shared along the optical flow of the source.
In the first half of the steps (with a single one, at that) each becomes the mean of itself and of the frame
before, as that was left after the step, where both show the same: so all frames so far have a say, and none
waits for another. In the second half nothing is averaged, which would blur: the details of one of those that
take the step together, drawn anew for every step and window, overwrite the others'.

The paper lets each frame agree with all others at once, later ones among them. Measured here, that is less
steady than passing on what was agreed (`bench/consistency.py`): only some frames have a later one that is
there already, so how much is averaged changes from frame to frame; and the further frames lie apart, the
less they lie well upon one another in latent pixels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toonstream.stream.temporal.correspondence import Correspondences, fast_flow
from toonstream.stream.temporal.poisson import ScreenedPoisson
from toonstream.stream.temporal.raft import load_raft

__all__ = ["SynchronizedFusion", "make_fusion"]

_SEAM = 0.1  # screening in consensus: values reach 20 latent pixels beyond where they come from
_DETAIL = 1.0  # screening in refinement: up to 6 latent pixels are details
_KEY_BITS = 128


class SynchronizedFusion:
    """Fuses the frames of one stream; a `hooks.Fusion`.

    It keeps one frame per step, and the flow between those frames that are in flight.

    Args:
        correspondences: where frames lie in one another; fresh.
        strength: from 0 (nothing is shared) to 1 (all frames count alike).
        steps: denoising steps (T).
        seed: of the draws.
    """

    def __init__(
        self, correspondences: Correspondences, *, strength: float, steps: int, seed: int = 0
    ) -> None:
        self._correspondences = correspondences
        self._strength = strength
        self._steps = steps
        self._seed = seed
        self._last: dict[int, tuple[int, Tensor]] = {}  # step → the frame that took it last, its x0
        self._poisson: dict[float, ScreenedPoisson] = {}

    def arrive(self, index: int, image: NDArray[np.uint8]) -> None:
        """A frame has come in: (H, W, 3) uint8 RGB, at the size it is rendered at."""
        if self._strength > 0:
            self._correspondences.arrive(index, image)

    def fuse(self, indices: Sequence[int], step: int, x0: Tensor) -> Tensor:
        """Share x0 (n, C, h, w) of frames that take a step together; see `hooks.Fusion.fuse`."""
        if self._strength == 0:
            return x0
        frames = dict(zip(indices, x0, strict=True))
        if step in self._last:
            index, latents = self._last[step]
            frames[index] = latents
        if step < (self._steps + 1) // 2:
            for index in indices:  # in order, so that what was agreed on is passed on
                frames[index] = self._consensus(index, frames)
        else:
            donor = _draw(sorted(frames), seed=self._seed, step=step, window=indices[0])
            frames |= {index: self._refined(index, donor, frames) for index in indices if index != donor}
        self._last[step] = (indices[-1], frames[indices[-1]].clone())
        if step + 1 == self._steps:
            self._correspondences.forget(through=indices[-1])
        return torch.stack([frames[index] for index in indices])

    def cut(self) -> None:
        """A scene has ended: forget it."""
        self._last.clear()
        self._correspondences.cut()

    def _consensus(self, index: int, frames: dict[int, Tensor]) -> Tensor:
        """The mean of a frame and the one before where they show the same, joined by its differences."""
        own = frames[index]
        if index - 1 not in frames:
            return own
        found = self._correspondences.between(index, index - 1)
        brought, weight = found.bring(frames[index - 1]), self._strength * found.use(own.device)
        share = weight / (1.0 + weight)
        # A difference counts as far as both its pixels do.
        across = torch.minimum(share[:, 1:], share[:, :-1])
        down = torch.minimum(share[1:], share[:-1])
        return self._solve(
            torch.lerp(own, brought, share),
            torch.lerp(own.diff(dim=-1), brought.diff(dim=-1), across),
            torch.lerp(own.diff(dim=-2), brought.diff(dim=-2), down),
            screening=_SEAM,
        )

    def _refined(self, index: int, donor: int, frames: dict[int, Tensor]) -> Tensor:
        """A frame with the details of another where both show the same."""
        own = frames[index]
        found = self._correspondences.between(index, donor)
        brought, use = found.bring(frames[donor]), self._strength * found.use(own.device)
        across = torch.minimum(use[:, 1:], use[:, :-1])
        down = torch.minimum(use[1:], use[:-1])
        return self._solve(
            own,
            torch.lerp(own.diff(dim=-1), brought.diff(dim=-1), across),
            torch.lerp(own.diff(dim=-2), brought.diff(dim=-2), down),
            screening=_DETAIL,
        )

    def _solve(self, values: Tensor, across: Tensor, down: Tensor, *, screening: float) -> Tensor:
        if screening not in self._poisson:
            size = (values.shape[-2], values.shape[-1])
            self._poisson[screening] = ScreenedPoisson(size, screening=screening, device=values.device)
        return self._poisson[screening](values, across, down)


def make_fusion(
    strength: float, *, steps: int, seed: int = 0, multiple: int, raft: Path | None = None
) -> SynchronizedFusion | None:
    """The fusion of one stream, or None where nothing is shared.

    Args:
        strength: see `SynchronizedFusion`, and so for `steps` and `seed`.
        steps: denoising steps.
        seed: of the draws.
        multiple: pixels that pictures are padded to multiples of before they become latents.
        raft: a checkpoint to find the flow by, see `raft.load_raft`; None for DIS.

    Raises:
        ModelError: the checkpoint is no use.
    """
    if strength == 0:
        return None
    search = fast_flow if raft is None else load_raft(raft)
    correspondences = Correspondences(multiple=multiple, search=search)
    return SynchronizedFusion(correspondences, strength=strength, steps=steps, seed=seed)


def _draw(frames: Sequence[int], *, seed: int, step: int, window: int) -> int:
    """One of the frames, each as likely: the same one whenever a window is run again."""
    # The second word sets these draws apart from the noise, which is keyed alike.
    philox = np.random.Philox(key=seed % (1 << _KEY_BITS), counter=[0, 1, step, window])
    return frames[int(np.random.Generator(philox).integers(len(frames)))]
