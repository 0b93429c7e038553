"""What is read off the configurations of networks, without the networks and without torch."""

import math
from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["MotionNorm", "patch_side", "pixels_per_latent"]

MotionNorm = Literal["joint", "frame"]
"""What the group norms of motion modules are over, see `export.networks.temporal`."""


def patch_side(channels: int) -> int:
    """Pixels along a side of the patches that a network takes or gives as so many channels; 3 are pixels."""
    return math.isqrt(channels // 3)


def pixels_per_latent(config: Mapping[str, Any]) -> int:
    """Pixels per latent pixel, along each axis, by an autoencoder's `config.json`, tiny or full."""
    levels = len(config.get("encoder_block_out_channels") or config["block_out_channels"])
    return int(patch_side(config.get("in_channels", 3)) * 2 ** (levels - 1))
