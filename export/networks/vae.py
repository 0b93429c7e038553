"""The two halves of a tiny autoencoder."""

from typing import Any

from torch import Tensor

from toonstream.export.networks.base import TensorModule, spec

__all__ = ["VaeDecoder", "VaeEncoder"]


class VaeEncoder(TensorModule):
    """The encoder of a diffusers `AutoencoderTiny`.

    Input: `image` (B, 3, H, W) in [-1, 1]. Output: `latents` (B, C, h, w), h = H/8, unscaled.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.inputs = (spec("image", "batch", 3, "8h", "8w"),)
        self.outputs = (spec("latents", "batch", network.config.latent_channels, "h", "w"),)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Encode images."""
        return (self.network.encoder(image),)


class VaeDecoder(TensorModule):
    """The decoder of a diffusers `AutoencoderTiny`.

    Input: `latents` (B, C, h, w). Output: `image` (B, 3, 8h, 8w), nominally in [-1, 1], not clipped.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.inputs = (spec("latents", "batch", network.config.latent_channels, "h", "w"),)
        self.outputs = (spec("image", "batch", 3, "8h", "8w"),)

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """Decode latents."""
        return (self.network.decoder(latents),)
