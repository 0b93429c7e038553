"""Synchronized multi-frame diffusion (SMFD): frames agree on what they show before each denoising step.

What a frame would look like (its predicted clean latents, x0) is shared along the optical flow of the source
by the frames of a window: those that take a step together, and those before them, as they were left after
that step; no frame waits for another. In the first half of the steps each becomes the mean of all, where
they show the same. In the second half nothing is averaged, which would blur: the details of one of them,
drawn anew for every step and window, overwrite the others'. A step that lies in both halves, as a single one
does, has both: what they agree on, with the details of one.
"""

from collections.abc import Mapping, Sequence
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

    It keeps less than a window of frames per step, and the flow between those that are kept or in flight.

    Args:
        correspondences: where frames lie in one another; fresh.
        strength: from 0 (nothing is shared) to 1 (all frames count alike).
        window: frames that agree with one another (d).
        steps: denoising steps (T).
        seed: of the draws.
    """

    def __init__(
        self, correspondences: Correspondences, *, strength: float, window: int, steps: int, seed: int = 0
    ) -> None:
        self._correspondences = correspondences
        self._strength = strength
        self._window = window
        self._steps = steps
        self._seed = seed
        self._before: dict[int, Mapping[int, Tensor]] = {}  # step → the latest frames that took it, their x0
        self._poisson: dict[float, ScreenedPoisson] = {}

    def arrive(self, index: int, image: NDArray[np.uint8]) -> None:
        """A frame has come in: (H, W, 3) uint8 RGB, at the size it is rendered at."""
        if self._strength > 0:
            self._correspondences.arrive(index, image)

    def fuse(self, indices: Sequence[int], step: int, x0: Tensor) -> Tensor:
        """Share x0 (n, C, h, w) of frames that take a step together; see `hooks.Fusion.fuse`."""
        if self._strength == 0:
            return x0
        predicted = {**self._before.get(step, {}), **dict(zip(indices, x0, strict=True))}
        frames = predicted
        if 2 * step < self._steps:
            frames = predicted | {index: self._consensus(index, predicted) for index in indices}
        if 2 * (step + 1) > self._steps:
            donor = _draw(sorted(frames), seed=self._seed, step=step, window=indices[0])
            frames = frames | {
                index: self._refined(index, frames[index], donor, predicted) for index in indices
            }
        kept = range(indices[-1] + 1 - max(0, self._window - len(indices)), indices[-1] + 1)
        self._before[step] = {index: frames[index].clone() for index in kept if index in frames}
        if step + 1 == self._steps:
            self._correspondences.forget(through=min([*kept, indices[-1]]))
        return torch.stack([frames[index] for index in indices])

    def cut(self) -> None:
        """A scene has ended: forget it."""
        self._before.clear()
        self._correspondences.cut()

    def _consensus(self, index: int, frames: Mapping[int, Tensor]) -> Tensor:
        """The mean of a frame and all others where they show the same, joined by their differences."""
        own = frames[index]
        values, across, down = _Mean(own), _Mean(own.diff(dim=-1)), _Mean(own.diff(dim=-2))
        for other, found in self._correspondences.around(index, frames):
            brought, use = found.bring(frames[other]), self._strength * found.use(own.device)
            values.add(brought, use)
            across.add(brought.diff(dim=-1), _both(use, dim=-1))
            down.add(brought.diff(dim=-2), _both(use, dim=-2))
        return self._solve(values.mean, across.mean, down.mean, screening=_SEAM)

    def _refined(self, index: int, agreed: Tensor, donor: int, frames: Mapping[int, Tensor]) -> Tensor:
        """What was agreed on, with a frame's own details, or another's where both show the same."""
        own = frames[index]
        across, down = own.diff(dim=-1), own.diff(dim=-2)
        if index == donor:
            if agreed is own:
                return own
        else:
            found = self._correspondences.between(index, donor)
            brought, use = found.bring(frames[donor]), self._strength * found.use(own.device)
            across = torch.lerp(across, brought.diff(dim=-1), _both(use, dim=-1))
            down = torch.lerp(down, brought.diff(dim=-2), _both(use, dim=-2))
        return self._solve(agreed, across, down, screening=_DETAIL)

    def _solve(self, values: Tensor, across: Tensor, down: Tensor, *, screening: float) -> Tensor:
        if screening not in self._poisson:
            size = (values.shape[-2], values.shape[-1])
            self._poisson[screening] = ScreenedPoisson(size, screening=screening, device=values.device)
        return self._poisson[screening](values, across, down)


class _Mean:
    """A weighted mean that begins with one tensor (C, h, w), of weight 1."""

    def __init__(self, own: Tensor) -> None:
        self._sum = own
        self._weight = torch.ones_like(own[0])

    def add(self, values: Tensor, weight: Tensor) -> None:
        """Count values (C, h, w) in, each by its weight (h, w)."""
        self._sum = self._sum + values * weight
        self._weight = self._weight + weight

    @property
    def mean(self) -> Tensor:
        """Of all so far, (C, h, w)."""
        return self._sum / self._weight


def _both(use: Tensor, *, dim: int) -> Tensor:
    """How far a difference between neighbours counts: as far as both do."""
    length = use.shape[dim] - 1
    return torch.minimum(use.narrow(dim, 0, length), use.narrow(dim, 1, length))


def make_fusion(
    strength: float, *, window: int, steps: int, seed: int = 0, multiple: int, raft: Path | None = None
) -> SynchronizedFusion | None:
    """The fusion of one stream, or None where nothing is shared.

    Args:
        strength: see `SynchronizedFusion`, and so for `steps` and `seed`.
        window: frames that agree with one another.
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
    return SynchronizedFusion(correspondences, strength=strength, window=window, steps=steps, seed=seed)


def _draw(frames: Sequence[int], *, seed: int, step: int, window: int) -> int:
    """One of the frames, each as likely: the same one whenever a window is run again."""
    # The second word sets these draws apart from the noise, which is keyed alike.
    philox = np.random.Philox(key=seed % (1 << _KEY_BITS), counter=[0, 1, step, window])
    return frames[int(np.random.Generator(philox).integers(len(frames)))]
