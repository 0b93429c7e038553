"""Gaussian noise that belongs to a key, not to a generator's history.

A counter-based generator (Philox) gives each (seed, frame, step) a stream of its own, so a frame's noise is
the same however the stream was cut, restarted or resumed, in every process and on every device.
"""

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["frame_noise", "mixed_noise"]

_KEY_BITS = 128
_SHARED = 2**63 - 2  # no frame's; counted down, scene by scene


def frame_noise(shape: tuple[int, ...], *, seed: int, frame: int, step: int | None = None) -> Tensor:
    """Standard normal noise of one frame.

    Args:
        shape: of the result, such as (C, h, w).
        seed: any whole number.
        frame: index in the stream, from 0.
        step: the denoising step after which it is added, from 0; None for the noise the frame starts from.

    Returns:
        float32 on the CPU.
    """
    # The generator counts in the first two words, 2^128 draws for each key.
    counter = [0, 0, 0 if step is None else step + 1, frame]
    generator = np.random.Generator(np.random.Philox(key=seed % (1 << _KEY_BITS), counter=counter))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def mixed_noise(
    shape: tuple[int, ...],
    *,
    seed: int,
    frame: int,
    step: int | None = None,
    shared: float = 0.0,
    scene: int = 0,
) -> Tensor:
    """Standard normal noise of one frame, part of which all frames of its scene have in common.

    What frames have in common does not flicker. It belongs to the seed and to the scene's number, and nothing
    of a picture is in it: it is the same in every session, and after a restart.

    Args:
        shape: of the result, such as (C, h, w).
        seed: any whole number.
        frame: see `frame_noise`.
        step: see `frame_noise`.
        shared: part of the variance that is common, 0 (each frame has its own) to 1 (all have the same).
        scene: number of the frame's scene in the stream, from 0.

    Returns:
        float32 on the CPU.
    """
    if shared <= 0.0:
        return frame_noise(shape, seed=seed, frame=frame, step=step)
    common = frame_noise(shape, seed=seed, frame=_SHARED - scene, step=step)
    if shared >= 1.0:
        return common
    own = frame_noise(shape, seed=seed, frame=frame, step=step)
    return common * math.sqrt(shared) + own * math.sqrt(1.0 - shared)
