"""The two halves of an autoencoder, tiny or full."""

from typing import Any

from torch import Tensor, nn

from toonstream.export.networks.base import TensorModule, spec
from toonstream.export.networks.patches import from_patches, to_patches

__all__ = ["VaeDecoder", "VaeEncoder"]


class VaeEncoder(TensorModule):
    """The encoder of a diffusers `AutoencoderTiny` or `AutoencoderKL`.

    The full one gives a distribution, of which this is the mean: the same picture has the same latents.
    One that takes more than three channels takes square patches of pixels, laid into channels.

    Input: `image` (B, 3, H, W) in [-1, 1]. Output: `latents` (B, C, h, w), h = H/8, unscaled.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = _half(network, without="decoder")
        self.inputs = (spec("image", "batch", 3, "8h", "8w"),)
        self.outputs = (spec("latents", "batch", network.config.latent_channels, "h", "w"),)
        self._full = hasattr(network, "quant_conv")

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Encode images."""
        encoded = self.network.encoder(to_patches(image, self.network.config.in_channels))
        if not self._full:
            return (encoded,)
        if self.network.quant_conv is not None:
            encoded = self.network.quant_conv(encoded)
        mean, _ = encoded.chunk(2, 1)
        return (mean,)


class VaeDecoder(TensorModule):
    """The decoder of a diffusers `AutoencoderTiny` or `AutoencoderKL`.

    Input: `latents` (B, C, h, w). Output: `image` (B, 3, 8h, 8w), nominally in [-1, 1], not clipped.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = _half(network, without="encoder")
        self.inputs = (spec("latents", "batch", network.config.latent_channels, "h", "w"),)
        self.outputs = (spec("image", "batch", 3, "8h", "8w"),)

    def forward(self, latents: Tensor) -> tuple[Tensor]:
        """Decode latents."""
        if getattr(self.network, "post_quant_conv", None) is not None:
            latents = self.network.post_quant_conv(latents)
        return (from_patches(self.network.decoder(latents)),)


def _half(network: Any, *, without: str) -> Any:
    """Let go of the half that is not run, so that it takes no memory."""
    setattr(network, without, nn.Identity())
    return network
