"""A network in a TensorRT engine: torch tensors in and out, without leaving the GPU.

Written against what both flavours document; what needs a GPU could not be run where this was written. The
bookkeeping is tested with a stand-in for the runtime.
"""

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toonstream.engines.engine import TensorSpec
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


def _current_stream() -> int:
    return torch.cuda.current_stream().cuda_stream


class TensorRtNetwork:
    """A deserialised engine. Not to be called by two threads at a time.

    Every set of shapes has an execution context of its own, with its addresses bound once, and its runs are
    one recorded CUDA graph.

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

        def step() -> Mapping[str, Tensor]:
            if not context.execute_async_v3(self._stream()):
                raise EngineError(f"{self._name}: the GPU refused the engine; use --engine torch")
            return outputs

        step()  # kernels for these shapes are compiled now, which is nothing that could be recorded
        # TensorRT-RTX says whether it can be; the full TensorRT's engines can.
        capturable = getattr(context, "is_stream_capturable", lambda stream: True)
        recorded = self._record(step) if capturable(self._stream()) else step
        self._keep_kernels()
        return recorded

    def _keep_kernels(self) -> None:
        if self._cache is None or self._kernels is None:
            return
        partial = self._kernels.with_suffix(f".{secrets.token_hex(4)}.partial")
        with suppress(OSError):  # a full disk, an engine that was pruned: then they are compiled again
            try:
                partial.write_bytes(self._cache.serialize())
                partial.replace(self._kernels)
            finally:
                partial.unlink(missing_ok=True)


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
    """Make TensorRT-RTX's options and its cache of compiled kernels; None and None for the full TensorRT."""
    options: Any = engine.create_runtime_config() if hasattr(engine, "create_runtime_config") else None
    if not hasattr(options, "create_runtime_cache"):
        return None, None
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
