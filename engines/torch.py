"""torch: the reference engine, and for now the one for GPUs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toonstream.engines.engine import NetworkSource

__all__ = ["TorchEngine", "TorchNetwork"]


class TorchEngine:
    """Runs networks as torch modules.

    Args:
        device: where to run; None is the first GPU, or the CPU where there is none.
        dtype: what to compute in; tensors in and out stay as declared.
    """

    name = "torch"

    def __init__(self, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype

    def load(self, source: NetworkSource) -> "TorchNetwork":
        """Build a network's module (this imports diffusers or transformers).

        Raises:
            ModelError: its weights are missing or do not fit.
        """
        return TorchNetwork(source.build(), self.device, self.dtype)


class TorchNetwork:
    """A torch module with named tensors."""

    def __init__(self, module: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.inputs = module.inputs
        self.outputs = module.outputs
        self._device = device
        self._dtype = dtype
        self._module: nn.Module = module.eval().to(device, dtype, memory_format=torch.channels_last)

    @torch.no_grad()  # not inference_mode: its tensors would forbid their new owner to change them
    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; tensors may be anywhere, and are given out on the engine's device."""
        made = self._module(*(self._take(tensors[spec.name]) for spec in self.inputs))
        return {
            spec.name: tensor.to(spec.dtype).contiguous()
            for spec, tensor in zip(self.outputs, made, strict=True)
        }

    def _take(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype if tensor.is_floating_point() else None)
