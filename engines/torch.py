"""torch: the reference engine, and the one that runs on every GPU.

On a GPU it computes in half precision, channels last, with xformers' memory-efficient attention where that is
installed (torch's scaled-dot-product attention otherwise), and every call is one recorded CUDA graph.
"""

import importlib.util
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from toonstream.engines.engine import NetworkSource, TensorSpec
from toonstream.engines.installed import with_export
from toonstream.engines.memory import gpu_too_old, out_of_memory
from toonstream.engines.replay import Buffered, GraphRecorder, Record, Step
from toonstream.errors import EngineError

__all__ = ["TorchEngine", "TorchNetwork"]

_PREFIX = "network."  # what every wrapper puts before the names of its weights
# What an xformers that does not go with this torch, or this GPU, raises when it is tried.
_UNUSABLE = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)

_log = logging.getLogger(__name__)


class TorchEngine:
    """Runs networks as torch modules.

    Args:
        device: where to run; None is the first GPU, or the CPU where there is none.
        dtype: what to compute in; None is float16 on a GPU and float32 on the CPU. Tensors out stay as
            declared, and so may those in.
        graphs: record CUDA graphs; None is yes on a GPU.

    Raises:
        EngineError: the GPU is too old.
    """

    name = "torch"

    def __init__(
        self,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        graphs: bool | None = None,
    ) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self.device.type == "cuda"
        if on_gpu and (reason := gpu_too_old()):
            raise EngineError(reason)
        self.dtype = dtype or (torch.float16 if on_gpu else torch.float32)
        self.graphs = on_gpu if graphs is None else graphs
        self._memory_efficient = on_gpu

    @property
    def per_shape(self) -> bool:
        """Where it records graphs."""
        return self.graphs

    @property
    def precision(self) -> str:
        """What it computes in, such as "float16"."""
        return str(self.dtype).removeprefix("torch.")

    def load(self, source: NetworkSource) -> "TorchNetwork":
        """Build a network's module (this imports diffusers or transformers).

        Raises:
            ModelError: its weights are missing or do not fit.
            EngineError: the GPU's memory is too small for it, or what builds it is not installed.
        """
        with with_export(f"{source.name} in torch"):
            module = source.build()
        _put(source, module)
        with out_of_memory(source.name):
            if self._memory_efficient:
                self._memory_efficient = use_memory_efficient_attention(module)
            record = GraphRecorder() if self.graphs else None
            return TorchNetwork(source.name, module, self.device, self.dtype, record=record)


class TorchNetwork:
    """A torch module with named tensors. Its inputs are declared as what it computes in; it takes any.

    Args:
        name: the network's role, for errors.
        module: a `TensorModule`, or what declares its tensors as one. What it names in `exact` it is given as
            declared, whatever it computes in.
        device: where it runs.
        dtype: what it computes in.
        record: makes a call with known shapes faster; None calls the module as it is.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        device: torch.device,
        dtype: torch.dtype,
        *,
        record: Record | None = None,
    ) -> None:
        self.outputs: tuple[TensorSpec, ...] = module.outputs
        self._name = name
        module = module.eval().to(device, dtype, memory_format=torch.channels_last)
        exact = getattr(module, "exact", ())
        self.inputs = tuple(
            replace(spec, dtype=dtype) if spec.dtype.is_floating_point and spec.name not in exact else spec
            for spec in module.inputs
        )
        self._device = device
        self._prepare = partial(_step, module, self.outputs)
        self._buffered = (
            None
            if record is None
            else Buffered(
                self.inputs, device=device, prepare=partial(_recorded_step, record, module, self.outputs)
            )
        )

    @torch.no_grad()  # not inference_mode: its tensors would forbid their new owner to change them
    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; tensors may be anywhere, and are given out on the engine's device.

        Raises:
            EngineError: the GPU's memory is too small for these shapes.
        """
        with out_of_memory(self._name):
            if self._buffered is not None:
                return self._buffered(tensors)
            given = {spec.name: tensors[spec.name].to(self._device, spec.dtype) for spec in self.inputs}
            return dict(self._prepare(given)())


def _step(module: nn.Module, outputs: tuple[TensorSpec, ...], given: Mapping[str, Tensor]) -> Step:
    def step() -> Mapping[str, Tensor]:
        made = module(*given.values())
        return {
            spec.name: tensor.to(spec.dtype).contiguous() for spec, tensor in zip(outputs, made, strict=True)
        }

    return step


def _recorded_step(
    record: Record, module: nn.Module, outputs: tuple[TensorSpec, ...], given: Mapping[str, Tensor]
) -> Step:
    return record(_step(module, outputs, given))


def use_memory_efficient_attention(module: nn.Module) -> bool:
    """Let diffusers' networks in a module attend through xformers; gives False where that cannot be used."""
    if importlib.util.find_spec("xformers") is None:
        return False
    parts: Iterable[Any] = module.children()
    for part in parts:
        switch = getattr(part, "enable_xformers_memory_efficient_attention", None)
        if switch is None:
            continue
        try:
            switch()  # tries it, too
        except torch.cuda.OutOfMemoryError:
            raise
        except _UNUSABLE as error:
            part.disable_xformers_memory_efficient_attention()
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            _log.warning("xformers does not work here, torch's own attention does: %s", reason)
            return False
    return True


def _put(source: NetworkSource, module: nn.Module) -> None:
    """Put weights in place of the module's own."""
    state = module.state_dict()  # shares its tensors with the module
    with torch.no_grad():
        for name, tensor in source.weights.items():
            own = state.get(_PREFIX + name, state.get(name))
            if own is None:
                raise EngineError(
                    f"{source.name} has no weight {name}; the weights belong to another network"
                )
            own.copy_(tensor)
