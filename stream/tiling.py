"""Large frames through the autoencoder in tiles, where memory does not suffice for the whole.

Tiles of one shape, so that an engine compiles one, overlap and are blended linearly. At the edge of a tile a
convolution sees padding where the whole has pixels: there the tile does not count. An autoencoder with group
norms, which are over all pixels, also takes each tile for a picture of its own: tiles are as few and as large
as memory allows.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toonstream.engines.engine import Network, NetworkAround
from toonstream.export.configs import patch_side, pixels_per_latent
from toonstream.export.shapes import SMALLEST_TILE

__all__ = ["Cost", "Tiled", "available_memory", "choose_tile", "tile_starts"]

_OVERLAP = 16  # latent pixels that neighbouring tiles share, at least
_MARGIN = 4  # of these, how many along a tile's edge do not count: they may be off by more than they vary
_LIVE = 5  # feature maps of full resolution and full width that are in memory at a time, as measured
_SHARE = 0.5  # of the memory there is that the autoencoder may take
_UNKNOWN = 4 << 30  # bytes taken to be there where the machine does not say


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What memory an autoencoder takes.

    Attributes:
        pixel: bytes for each pixel of the picture.
        pair: bytes for each pair of latent pixels, where each attends to all.
        factor: pixels per latent pixel, along each axis.
    """

    pixel: int
    pair: int = 0
    factor: int = 8

    @classmethod
    def of(cls, config: Mapping[str, Any], *, itemsize: int = 4) -> "Cost":
        """Estimate it.

        Args:
            config: the autoencoder's `config.json`, tiny or full.
            itemsize: bytes of a number.
        """
        tiny = config.get("decoder_block_out_channels")
        widths = tiny or config["block_out_channels"]
        # The full one's next level arrives at full resolution with all its channels.
        widest = widths[-1] if tiny else widths[min(1, len(widths) - 1)]
        patch = patch_side(config.get("out_channels", 3))
        attends = not tiny and config.get("mid_block_add_attention", True)
        return cls(
            pixel=_LIVE * itemsize * max(3, widest // patch**2),  # the picture itself is of three
            pair=2 * itemsize if attends else 0,  # before and after the softmax
            factor=pixels_per_latent(config),
        )

    def bytes(self, height: int, width: int) -> int:
        """For a picture of so many latent pixels."""
        area = height * width
        return area * self.factor**2 * self.pixel + area**2 * self.pair


def choose_tile(height: int, width: int, *, cost: Cost, available: int) -> tuple[int, int]:
    """Choose the largest tile that memory allows.

    Args:
        height: of the frame, in latent pixels.
        width: likewise.
        cost: of the autoencoder.
        available: bytes that it may take.

    Returns:
        (height, width) in latent pixels: the frame's own where it fits; never less than is sensible, even
        where that does not fit.
    """
    parts, tile = [1, 1], [height, width]
    while cost.bytes(*tile) > available:
        # The longer side of those that may still shrink is cut into one more part.
        side = max((0, 1), key=lambda axis: tile[axis] if tile[axis] > SMALLEST_TILE else 0)
        if tile[side] <= SMALLEST_TILE:
            break
        parts[side] += 1
        length = (height, width)[side]
        even = -(-(length + (parts[side] - 1) * _OVERLAP) // parts[side])
        tile[side] = max(even, SMALLEST_TILE)
    return tile[0], tile[1]


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles begin that cover `length` evenly, overlapping enough; all in latent pixels."""
    if tile >= length:
        return [0]
    gaps = -(-(length - tile) // max(1, tile - _OVERLAP))
    return [index * (length - tile) // gaps for index in range(gaps + 1)]


def available_memory(device: torch.device) -> int:
    """Bytes that are free where `device` computes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names: Mapping[str, int] = getattr(os, "sysconf_names", {})
        if "SC_AVPHYS_PAGES" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return _UNKNOWN


class Tiled(NetworkAround):
    """A half of an autoencoder that takes large frames in tiles; any engine's.

    Args:
        network: latents → image, or image → latents.
        cost: what memory it takes.
        memory: bytes that are free for it and everything else.
    """

    def __init__(self, network: Network, *, cost: Cost, memory: int) -> None:
        super().__init__(network)
        self._cost = cost
        self._available = int(memory * _SHARE)
        (taken,), (given,) = network.inputs, network.outputs
        self._taken, self._given = taken.name, given.name
        decodes = taken.name == "latents"
        self._unit_in, self._unit_out = (1, cost.factor) if decodes else (cost.factor, 1)

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once on the whole, or once on each tile."""
        frames = tensors[self._taken]
        batch, _, *sides = frames.shape
        height, width = (side // self._unit_in for side in sides)
        tile = choose_tile(height, width, cost=self._cost, available=self._available // batch)
        if tile == (height, width):
            return self._network(tensors)
        rows, columns = tile_starts(height, tile[0]), tile_starts(width, tile[1])
        total: Tensor | None = None
        across, down = _weights(columns, tile[1], self._unit_out), _weights(rows, tile[0], self._unit_out)
        for top, down_weights in zip(rows, down, strict=True):
            for left, across_weights in zip(columns, across, strict=True):
                part = frames[
                    ...,
                    top * self._unit_in : (top + tile[0]) * self._unit_in,
                    left * self._unit_in : (left + tile[1]) * self._unit_in,
                ]
                made = self._network({self._taken: part})[self._given]
                if total is None:
                    size = (height * self._unit_out, width * self._unit_out)
                    total = made.new_zeros(*made.shape[:2], *size)
                weights = (down_weights[:, None] * across_weights).to(made)
                y, x = top * self._unit_out, left * self._unit_out
                total[..., y : y + made.shape[-2], x : x + made.shape[-1]] += made * weights
        assert total is not None
        return {self._given: total}


def _weights(starts: Sequence[int], tile: int, unit: int) -> list[Tensor]:
    """Weigh the pixels of each tile along one axis; at every pixel the weights of all tiles sum to 1."""
    length = (starts[-1] + tile) * unit
    weights, total = [], torch.zeros(length)
    for index, start in enumerate(starts):
        weight = torch.ones(tile * unit)
        if index:
            rise = _rise(starts[index - 1] + tile - start, unit)
            weight[: len(rise)] = rise
        if index + 1 < len(starts):
            fall = _rise(start + tile - starts[index + 1], unit).flip(0)
            weight[-len(fall) :] = torch.minimum(weight[-len(fall) :], fall)
        total[start * unit : (start + tile) * unit] += weight
        weights.append(weight)
    return [
        weight / total[start * unit : (start + tile) * unit]
        for start, weight in zip(starts, weights, strict=True)
    ]


def _rise(shared: int, unit: int) -> Tensor:
    """Weights from 0 to 1 over so many latent pixels, the same backwards when taken from 1."""
    margin = _MARGIN * unit
    places = torch.arange(shared * unit) + 0.5
    return ((places - margin) / (shared * unit - 2 * margin)).clamp(0.0, 1.0)
