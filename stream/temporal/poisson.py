"""Pictures from their gradients: the screened Poisson equation, by cosine transforms.

What is to look like one picture in one place and like another beside it is joined by its differences from
pixel to pixel, not by its values: then no seam shows where the two meet.
"""

import math

import torch
from torch import Tensor

__all__ = ["ScreenedPoisson"]


class ScreenedPoisson:
    """Finds the picture u that minimises Σ ‖∇u − g‖² + λ Σ (u − v)².

    Differences are from a pixel to the next, and there are none across the border. Solved exactly by the
    cosine transform (DCT-II), written as a product with a matrix for each axis.

    Args:
        size: (h, w) of the pictures.
        screening: λ, above 0: how closely values are held to, against differences. What is larger than about
            2π/√λ pixels follows the values, what is smaller the differences.
        device: of the pictures.
    """

    def __init__(self, size: tuple[int, int], *, screening: float, device: torch.device) -> None:
        self._screening = screening
        down, across = (_cosines(side) for side in size)
        self._down, self._across = down.float().to(device), across.float().to(device)
        laplacian = _eigenvalues(size[0])[:, None] + _eigenvalues(size[1])
        self._inverse = (1.0 / (screening + laplacian)).float().to(device)

    def __call__(self, values: Tensor, across: Tensor, down: Tensor) -> Tensor:
        """Solve for each channel.

        Args:
            values: v, (..., h, w) float32.
            across: g from each pixel to the one on its right, (..., h, w - 1).
            down: g from each pixel to the one below it, (..., h - 1, w).

        Returns:
            u, (..., h, w).
        """
        right = self._screening * values
        right[..., :-1] -= across
        right[..., 1:] += across
        right[..., :-1, :] -= down
        right[..., 1:, :] += down
        spectrum = self._down @ right @ self._across.T * self._inverse
        return self._down.T @ spectrum @ self._across


def _cosines(side: int) -> Tensor:
    """The DCT-II as an orthonormal matrix, (frequency, place) float64."""
    frequency = torch.arange(side, dtype=torch.float64)
    matrix = torch.cos(math.pi / side * frequency[:, None] * (frequency + 0.5)) * math.sqrt(2 / side)
    matrix[0] /= math.sqrt(2)
    return matrix


def _eigenvalues(side: int) -> Tensor:
    """Of the negative second difference with free ends, (side,) float64."""
    return 2 - 2 * torch.cos(math.pi / side * torch.arange(side, dtype=torch.float64))
