"""A reference picture, such as a character or style sheet: read, and run through the networks once.

What the UNet's layers have of it at each step is what frames attend to, see `reference`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.engines.parking import HostMemory
from toonstream.errors import InputError
from toonstream.stream.controlnets import ControlNets
from toonstream.stream.evaluate import Evaluator, InFlight, Window
from toonstream.stream.noise import frame_noise
from toonstream.stream.schedulers import Scheduler
from toonstream.stream.temporal.reference import empty_inputs, feature_channels

__all__ = ["ReferencePicture", "read_picture"]

_LATENT_PIXEL = 8  # pixels, along each axis
_KEY = 2**63 - 1  # of the picture's noise: no frame's
_WHITE = 255
_MOST = {"uint8": 255, "uint16": 65535}
_OPAQUE = 4  # channels of a picture that says how opaque it is


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Read a picture: (H, W, 3) uint8 RGB, upright; on white where it is transparent.

    Raises:
        InputError: it is not there, or is no picture.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give a picture such as sheet.png") from None
    try:
        upright = cv2.imdecode(content, cv2.IMREAD_COLOR_RGB) if len(content) else None
        as_stored = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if len(content) else None
    except cv2.error as error:
        raise InputError(f"{path} cannot be read as a picture ({error.err}); take a smaller one") from None
    if upright is None:
        raise InputError(f"{path} is not a picture; give a PNG, JPEG or WebP file")
    image = np.asarray(upright, dtype=np.uint8)
    if as_stored is None or as_stored.ndim != 3 or as_stored.shape[2] != _OPAQUE:
        return image
    opaque = as_stored[:, :, 3:].astype(np.float32) / _MOST.get(as_stored.dtype.name, 1)
    if opaque.shape[:2] != image.shape[:2]:  # the file says that it is to be turned
        return image
    return np.asarray(np.round(image * opaque + _WHITE * (1 - opaque)), dtype=np.uint8)


class ReferencePicture:
    """Runs a picture through the networks as if it were a frame, and gives what is to be remembered of it.

    Args:
        image: (H, W, 3) uint8 RGB of any size; the middle of it is taken, in the shape of the frames.
        hints: draws the hints of a picture (H, W, 3) uint8 RGB: by ControlNet (3, H, W) float32 in [0, 1].
        networks: `vae_encoder`, and what `Evaluator` wants; `unet` is one with the inputs of `ReferenceUnet`.
        scheduler: of the stream.
        scales: how much each ControlNet weighs, by name.
        guidance: scale of classifier-free guidance.
        text: what the picture is to be seen with, (sides, 77, D); its device is where tensors are.
        seed: of the picture's noise.
        scale, shift: the rolling window's latents are (encoder's latents - shift) * scale.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        *,
        hints: Callable[[NDArray[np.uint8]], Mapping[str, Tensor]],
        networks: Mapping[str, Network],
        scheduler: Scheduler,
        scales: Mapping[str, float],
        guidance: float,
        text: Tensor,
        seed: int = 0,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        self._image = image
        self._hints = hints
        self._networks = networks
        self._scheduler = scheduler
        self._text = text
        self._seed = seed
        self._scale = scale
        self._shift = shift
        self._seen: list[Mapping[str, Tensor]] = []
        self._controlnets = ControlNets(
            networks, scheduler=scheduler, scales=scales, sides=len(text), device=text.device
        )
        self._evaluator = Evaluator(
            networks["unet"],
            self._controlnets,
            scheduler=scheduler,
            guidance=guidance,
            device=text.device,
            reference=_Recorder(networks["unet"], len(text), text.device, self._seen),
        )

    def __call__(self, latent_size: tuple[int, int]) -> Sequence[Mapping[str, Tensor]]:
        """Give the picture's features at every step, for frames of this latent (h, w).

        Returns:
            For each step, output name → (sides, 1, h, w, C).
        """
        height, width = latent_size
        image = _cropped(self._image, (_LATENT_PIXEL * width, _LATENT_PIXEL * height))
        pixels = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1.0
        encoded = self._networks["vae_encoder"]({"image": pixels})["latents"].to(self._text.device)
        clean = (encoded - self._shift) * self._scale
        noise = frame_noise(tuple(clean.shape[1:]), seed=self._seed, frame=_KEY).to(clean)
        embeddings = self._controlnets.embed(self._hints(image))
        host = HostMemory(self._text.device)
        self._seen.clear()
        for step in range(self._scheduler.steps):
            frame = InFlight(
                key=_KEY,
                seed=self._seed,
                text=self._text,
                embeddings={name: host.park(embedding) for name, embedding in embeddings.items()},
                latents=host.park(self._scheduler.noised(clean, noise, step)[0]),
            )
            self._evaluator.run([Window(indices=range(1), frames=[frame], step=step, weights=(1.0,))])
        return tuple(self._seen)


class _Recorder:
    """A `ReferenceMemory` that remembers nothing, and writes down what was seen."""

    def __init__(
        self, unet: Network, sides: int, device: torch.device, seen: list[Mapping[str, Tensor]]
    ) -> None:
        self._channels = feature_channels(unet)
        self._sides = sides
        self._device = device
        self._seen = seen

    def inputs(self, step: int, frames: range, latent_size: tuple[int, int]) -> Mapping[str, Tensor]:
        return empty_inputs(self._channels, self._sides, 1, latent_size, self._device)

    def keep(self, step: int, frames: range, outputs: Mapping[str, Tensor]) -> None:
        self._seen.append(outputs)

    def climbed(self, step: int, indices: Sequence[int]) -> None:
        """Nothing."""

    def cut(self) -> None:
        """Nothing."""


def _cropped(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize a picture so that it covers (width, height), and cut off what sticks out on both sides."""
    height, width = image.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    grown = max(size[0], round(width * scale)), max(size[1], round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(image, grown, interpolation=method)
    left, top = (grown[0] - size[0]) // 2, (grown[1] - size[1]) // 2
    return np.ascontiguousarray(resized[top : top + size[1], left : left + size[0]], dtype=np.uint8)
