"""Where the parts that keep a stream consistent take hold of the denoiser."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Fusion", "ReferenceMemory"]


class Fusion(Protocol):
    """Lets frames share what they look like, between two denoising steps.

    Indices are those of the stream, and never come twice. At every step frames come in order, each once, and
    with the same neighbours however the stream is run; what earlier frames looked like at a step is for the
    fusion to keep, as much of it as it needs.
    """

    def arrive(self, index: int, image: NDArray[np.uint8]) -> None:
        """A frame has come in, before it is denoised.

        Args:
            index: of the frame.
            image: its source at the size it is rendered at, (H, W, 3) RGB. Latents cover it from the upper
                left corner on, and what it was padded by, to the right and below.
        """
        ...

    def fuse(self, indices: Sequence[int], step: int, x0: Tensor) -> Tensor:
        """Change what frames would look like.

        Args:
            indices: of consecutive frames that have been run at a step and are about to climb.
            step: of the scheduler, 0 the noisiest.
            x0: their clean latents as predicted at this step, (n, C, h, w) float32, not to be written to.

        Returns:
            Of the same shape. `x0` itself where nothing changes: then the result is the plain stream's, bit
            for bit.
        """
        ...

    def cut(self) -> None:
        """A scene has ended: forget it."""
        ...


class ReferenceMemory(Protocol):
    """Keeps of frames that are done with a step what later windows attend to at that step.

    Indices are those of the stream, and never come twice.
    """

    def inputs(self, step: int, frames: range, latent_size: tuple[int, int]) -> Mapping[str, Tensor]:
        """What the UNet is to be given beside its usual inputs.

        Args:
            step: of the window that is about to run, 0 the noisiest.
            frames: indices of its frames.
            latent_size: (h, w) of their latents.

        Returns:
            By the UNet's input, (sides, …): the negative prompt's side first, with guidance only.
        """
        ...

    def keep(self, step: int, frames: range, outputs: Mapping[str, Tensor]) -> None:
        """Take what the UNet has given beside its usual output; same conventions as `inputs`.

        Frames that are in several windows come several times.
        """
        ...

    def climbed(self, step: int, indices: Sequence[int]) -> None:
        """Frames have been run at a step for the last time; the last `keep` of that step had them.

        Called after every `keep`, before the next one of the same step. Frames come in order, each once a
        step.
        """
        ...

    def cut(self) -> None:
        """A scene has ended: forget its frames."""
        ...
