"""A network in a TensorRT engine: torch tensors in and out, without leaving the GPU.

Written against what both flavours document; what needs a GPU could not be run where this was written. The
bookkeeping is tested with a stand-in for the runtime.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toonstream.engines.engine import TensorSpec
from toonstream.engines.keeping import keep
from toonstream.engines.memory import LOWER, out_of_memory
from toonstream.engines.replay import Buffered, GraphRecorder, Record, Step
from toonstream.errors import EngineError

__all__ = ["TensorRtNetwork"]

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "BOOL": torch.bool,
}

_log = logging.getLogger(__name__)


def _current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream


class TensorRtNetwork:
    """A deserialised engine. Not to be called by two threads at a time.

    Every set of shapes has an execution context of its own, with its addresses bound once, and its runs are
    one recorded CUDA graph. The contexts work in the same memory, as much as the largest of them needs.

    Args:
        name: the network's role, for errors.
        engine: TensorRT's `ICudaEngine`.
        device: where its buffers are.
        kernels: a file where TensorRT-RTX keeps the kernels that it compiles for this GPU when an engine
            first runs; None keeps them nowhere.
        stream: gives the CUDA stream that torch is working on.
        record: makes a call with known shapes faster; None records CUDA graphs.
    """

    def __init__(
        self,
        name: str,
        engine: Any,
        *,
        device: torch.device,
        kernels: Path | None = None,
        stream: Callable[[], int] = _current_stream,
        record: Record | None = None,
    ) -> None:
        self._name = name
        tensors = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.inputs = tuple(_spec(engine, tensor) for tensor in tensors if _is(engine, tensor, "INPUT"))
        self.outputs = tuple(_spec(engine, tensor) for tensor in tensors if _is(engine, tensor, "OUTPUT"))
        contexts = _Contexts(
            name,
            engine,
            self.outputs,
            device=device,
            kernels=kernels,
            stream=stream,
            record=record or GraphRecorder(),
        )
        self._buffered = Buffered(self.inputs, device=device, prepare=contexts.prepare)

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; tensors may be anywhere, and are given out on the engine's device.

        Raises:
            EngineError: the engine was not built for these shapes, or the GPU's memory is too small.
        """
        with out_of_memory(self._name):
            return self._buffered(tensors)


class _Contexts:
    """Makes the execution contexts of an engine; see `TensorRtNetwork`."""

    def __init__(
        self,
        name: str,
        engine: Any,
        outputs: tuple[TensorSpec, ...],
        *,
        device: torch.device,
        kernels: Path | None,
        stream: Callable[[], int],
        record: Record,
    ) -> None:
        self._name = name
        self._engine = engine
        self._outputs = outputs
        self._device = device
        self._kernels = kernels
        self._stream = stream
        self._record = record
        self._options, self._cache = _runtime_options(engine, kernels)
        self._workspace: Tensor | None = None
        self._said = False  # that runs are not recorded

    def prepare(self, inputs: Mapping[str, Tensor]) -> Step:
        """Bind buffers in a context of their own, and record its runs where it can be recorded."""
        context = (
            self._engine.create_execution_context()
            if self._options is None
            else self._engine.create_execution_context(self._options)
        )
        if context is None:
            raise EngineError(f"{self._name}: not enough GPU memory for the engine's workspace; {LOWER}")
        for name, buffer in inputs.items():
            if not context.set_input_shape(name, tuple(buffer.shape)):
                low, _, high = self._engine.get_tensor_profile_shape(name, 0)
                raise EngineError(
                    f"{self._name}: {name} is {list(buffer.shape)}, and the engine was built for "
                    f"{list(low)} to {list(high)}; build one for this size with toonstream engines build"
                )
            context.set_tensor_address(name, buffer.data_ptr())
        context.infer_shapes()
        outputs = {}
        for spec in self._outputs:
            shape = tuple(context.get_tensor_shape(spec.name))
            outputs[spec.name] = torch.empty(shape, dtype=spec.dtype, device=self._device)
            context.set_tensor_address(spec.name, outputs[spec.name].data_ptr())
        step = _Run(
            name=self._name,
            context=context,
            outputs=outputs,
            workspace=None if self._options is None else self._lend_workspace(context),
            stream=self._stream,
            beneath=(self._engine, self._options, self._cache),
        )
        # It is run a few times first: kernels for these shapes are compiled then, which cannot be recorded.
        recorded = self._record(step, partial(self._may_be_recorded, context))
        self._keep_kernels()
        return _beside(step, self._device) if recorded is step else recorded

    def _lend_workspace(self, context: Any) -> Tensor:
        """Give a context memory to work in. They all share it: no two of them run at the same time."""
        size = context.update_device_memory_size_for_shapes() or self._engine.device_memory_size_v2
        if self._workspace is None or len(self._workspace) < size:
            self._workspace = torch.empty(size, dtype=torch.uint8, device=self._device)
        context.set_device_memory(self._workspace.data_ptr(), len(self._workspace))
        return self._workspace

    def _may_be_recorded(self, context: Any) -> bool:
        """Ask TensorRT-RTX on the stream that torch is working on; the full TensorRT's engines can be."""
        ask = getattr(context, "is_stream_capturable", None)
        if ask is None or ask(self._stream()):
            return True
        if not self._said:
            _log.warning("%s: TensorRT-RTX runs it without a CUDA graph, which is slower", self._name)
            self._said = True
        return False

    def _keep_kernels(self) -> None:
        if self._cache is None or self._kernels is None:
            return
        kernels = self._cache.serialize()
        if kernels is None:  # it cannot: then they are compiled again
            return
        keep(self._kernels, kernels)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """A run of a context that is bound to buffers.

    Attributes:
        name: the network's role, for errors.
        context: to run. outputs: what it writes to. workspace: what it works in, None where it has its own.
        stream: gives the CUDA stream that torch is working on.
        beneath: what the context was made of, which is not to go before it.
    """

    name: str
    context: Any
    outputs: Mapping[str, Tensor]
    workspace: Tensor | None
    stream: Callable[[], int]
    beneath: tuple[Any, ...]

    def __call__(self) -> Mapping[str, Tensor]:
        if not self.context.execute_async_v3(self.stream()):
            raise EngineError(f"{self.name}: the GPU refused the engine; use --engine torch")
        return self.outputs


def _beside(step: Step, device: torch.device) -> Step:
    """Run a step on a stream of its own: on torch's default one TensorRT waits for the whole GPU each time.

    What it gives must stay in place.
    """
    if device.type != "cuda":
        return step
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run() -> Mapping[str, Tensor]:
        current = torch.cuda.current_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            made = step()
        current.wait_stream(side)
        return made

    return run


def _spec(engine: Any, name: str) -> TensorSpec:
    axes = enumerate(engine.get_tensor_shape(name))
    return TensorSpec(
        name=name,
        dtype=_DTYPES[engine.get_tensor_dtype(name).name],
        shape=tuple(f"{name}.{index}" if axis < 0 else axis for index, axis in axes),
    )


def _is(engine: Any, name: str, mode: str) -> bool:
    return bool(engine.get_tensor_mode(name).name == mode)


def _runtime_options(engine: Any, kernels: Path | None) -> tuple[Any, Any]:
    """Make the options of contexts, which get their memory from us, and TensorRT-RTX's cache of kernels.

    Both are None for a TensorRT that knows no such options.
    """
    if not hasattr(engine, "create_runtime_config"):
        return None, None
    options: Any = engine.create_runtime_config()
    strategies: Any = type(options.get_execution_context_allocation_strategy())
    options.set_execution_context_allocation_strategy(strategies.USER_MANAGED)
    if not hasattr(options, "create_runtime_cache"):
        return options, None
    # Kernels for a shape are compiled before its first run: a graph must not hold the stopgap ones.
    kind = type(options.dynamic_shapes_kernel_specialization_strategy)
    options.dynamic_shapes_kernel_specialization_strategy = kind.EAGER
    if kernels is None:
        return options, None
    cache = options.create_runtime_cache()
    with suppress(OSError):  # there are none yet
        cache.deserialize(kernels.read_bytes())  # refused, and left empty, where it is of another GPU
    options.set_runtime_cache(cache)
    return options, cache
