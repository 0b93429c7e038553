"""Gaussian noise that belongs to a key, not to a generator's history.

A counter-based generator (Philox) gives each (seed, frame, step) a stream of its own, so a frame's noise is
the same however the stream was cut, restarted or resumed, in every process and on every device.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["frame_noise"]

_KEY_BITS = 128


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
