"""Soft edges: holistically-nested edge detection (Xie and Tu 2015)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["HolisticEdges"]


class HolisticEdges(nn.Module):
    """Maps pictures (B, 3, H, W) in [0, 1] to their edges (B, 1, H, W), white on black.

    The layers are named as in `ControlNetHED.pth`, a network without batch norms that learned the mean it
    takes off the picture (in [0, 255]). Each level of resolution has an opinion; the edge is the sigmoid of
    their mean.

    Args:
        widths: channels of each level.
        layers: convolutions of each level.
    """

    def __init__(
        self, *, widths: Sequence[int] = (64, 128, 256, 512, 512), layers: Sequence[int] = (2, 2, 3, 3, 3)
    ) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        levels = zip((3, *widths), widths, layers, strict=False)
        for number, (before, width, count) in enumerate(levels, start=1):
            self.add_module(f"block{number}", _Level(before, width, count))

    def forward(self, image: Tensor) -> Tensor:
        """Find the edges."""
        features = image * 255.0 - self.norm
        total = torch.zeros_like(image[:, :1])
        levels = list(self.children())
        for index, level in enumerate(levels):
            if index:
                features = functional.max_pool2d(features, 2)
            features, opinion = level(features)
            total = total + functional.interpolate(
                opinion, size=image.shape[-2:], mode="bilinear", align_corners=False
            )
        return torch.sigmoid(total / len(levels))


class _Level(nn.Module):
    def __init__(self, before: int, width: int, count: int) -> None:
        super().__init__()
        widths = [before, *[width] * (count - 1)]
        self.convs = nn.Sequential(*(nn.Conv2d(channels, width, 3, padding=1) for channels in widths))
        self.projection = nn.Conv2d(width, 1, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        for convolution in self.convs:
            features = functional.relu(convolution(features))
        return features, self.projection(features)
