"""Outlines as a drawer would set them: the generator of Informative Drawings (Chan et al. 2022)."""

from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["InformativeDrawings"]


class InformativeDrawings(nn.Module):
    """Maps pictures (B, 3, H, W) in [0, 1] to their lines (B, 1, H, W), white on black.

    The layers are named as in `sk_model.pth` of the lineart annotator. The published network draws black on
    white, which ControlNets for lineart see inverted. H and W are multiples of 4.

    Args:
        width: channels at full resolution.
        residual_blocks: blocks at a quarter of it.
    """

    def __init__(self, *, width: int = 64, residual_blocks: int = 3) -> None:
        super().__init__()
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), *_norm(width))
        self.model1 = nn.Sequential(*_down(width), *_down(2 * width))
        self.model2 = nn.Sequential(*(_Residual(4 * width) for _ in range(residual_blocks)))
        self.model3 = nn.Sequential(*_up(4 * width), *_up(2 * width))
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(width, 1, 7), nn.Sigmoid())

    def forward(self, image: Tensor) -> Tensor:
        """Draw."""
        lines: Tensor = self.model4(self.model3(self.model2(self.model1(self.model0(image)))))
        return 1.0 - lines


def _norm(channels: int) -> Iterator[nn.Module]:
    yield nn.InstanceNorm2d(channels)
    yield nn.ReLU()


def _down(channels: int) -> Iterator[nn.Module]:
    """Halve the resolution, double the channels."""
    yield nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
    yield from _norm(2 * channels)


def _up(channels: int) -> Iterator[nn.Module]:
    """Double the resolution, halve the channels."""
    yield nn.ConvTranspose2d(channels, channels // 2, 3, stride=2, padding=1, output_padding=1)
    yield from _norm(channels // 2)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            *_norm(channels),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        change: Tensor = self.conv_block(features)
        return features + change
