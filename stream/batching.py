"""A network whose frames know nothing of one another, called with batches of one size only.

An engine that compiles for shapes then compiles one, and not another for the first frames of a scene and one
more for each way that it can end.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from toonstream.engines.engine import Network, NetworkAround

__all__ = ["EqualBatches"]


class EqualBatches(NetworkAround):
    """Cuts batches into ones of `size`; the last one is filled up with its last frame, and cut back."""

    def __init__(self, network: Network, size: int) -> None:
        super().__init__(network)
        self._size = size

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run as often as it takes; axis 0 of every tensor counts the frames."""
        count = len(next(iter(tensors.values())))
        if count == self._size:
            return self._network(tensors)
        parts = []
        for start in range(0, count, self._size):
            places = torch.arange(start, start + self._size).clamp_(max=count - 1)
            parts.append(
                self._network(
                    {
                        name: tensor.index_select(0, places.to(tensor.device))
                        for name, tensor in tensors.items()
                    }
                )
            )
        return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}
