"""Square patches of pixels, laid into channels: for networks that take so a picture at the latents' size."""

import torch.nn.functional as F
from torch import Tensor

from toonstream.export.configs import patch_side

__all__ = ["from_patches", "to_patches"]


def to_patches(image: Tensor, channels: int) -> Tensor:
    """(B, 3, H, W) → (B, channels, H / p, W / p) for a network that takes so many; 3 leave it as it is."""
    side = patch_side(channels)
    return F.pixel_unshuffle(image, side) if side > 1 else image


def from_patches(patches: Tensor) -> Tensor:
    """(B, channels, h, w) → (B, 3, p h, p w)."""
    side = patch_side(patches.shape[1])
    return F.pixel_shuffle(patches, side) if side > 1 else patches
