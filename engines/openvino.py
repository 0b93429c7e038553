"""OpenVINO: the engine for CPUs.

A network is compiled for the shapes it is called with, so that how a shape is computed does not depend on
what was run before it. A stream has few shapes (one, and those of the last window; a live one a few more for
each size that it may be drawn at), so a few compiled forms are kept, the latest used.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from toonstream.engines.compiled import CompiledStore, content_checksum
from toonstream.engines.engine import NetworkSource, TensorSpec
from toonstream.engines.onnx_file import onnx_file
from toonstream.errors import EngineError

__all__ = ["OpenVinoEngine", "OpenVinoNetwork"]

_KEPT_SHAPES = 16  # a live stream's sizes, and what each is called with at the start of a window and within
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "i64": torch.int64}

Precision = Literal["auto", "float32", "bfloat16"]
_Shapes: TypeAlias = tuple[tuple[int, ...], ...]  # of all inputs, in order


class OpenVinoEngine:
    """Runs networks with OpenVINO on the CPU.

    Args:
        precision: what to compute in. `auto` is bfloat16 where the CPU has instructions for it, else float32.
            Tensors in and out are float32 all the same.
        compiled: where compiled networks are kept from run to run; None keeps none. Networks whose weights
            were replaced are not kept.
        at_once: networks that will run at a time, each on its share of the cores.

    Raises:
        EngineError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(
        self, *, precision: Precision = "auto", compiled: CompiledStore | None = None, at_once: int = 1
    ) -> None:
        try:
            import openvino
        except ImportError:
            raise EngineError(
                "OpenVINO is not installed; run `pip install openvino`, or use another engine"
            ) from None
        self._core = openvino.Core()
        if precision == "auto":
            capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            precision = "bfloat16" if "BF16" in capabilities else "float32"
        self.precision = precision
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        }
        if at_once > 1:
            # Not pinned: each would be, and all to the same first cores.
            share = max(1, _cores() // at_once)
            self._options |= {"INFERENCE_NUM_THREADS": str(share), "ENABLE_CPU_PINNING": "NO"}
        self._compiled = compiled
        self._machine = {
            "version": openvino.get_version(),
            "device": self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            "capabilities": sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
            "cores": _cores(),
            "options": self._options,
        }

    def load(self, source: NetworkSource) -> "OpenVinoNetwork":
        """Read a network's ONNX file; it is compiled when it is first called.

        Raises:
            EngineError: there is no ONNX file, or OpenVINO cannot read it.
        """
        path = onnx_file(source)
        try:
            model = self._core.read_model(path)
        except RuntimeError as error:
            raise EngineError(
                f"OpenVINO cannot read {source.onnx}: {_first_line(error)}; use --engine torch"
            ) from None
        _put(source.weights, model)
        network = OpenVinoNetwork(source.name, self._core, model, self._options)
        if self._compiled is not None and not source.weights:
            with suppress(OSError):  # what cannot be told from others is not kept
                key = {**self._machine, "network": path.name, "content": _checksum(path)}
                network.keep_in(self._compiled, key)
        return network


class OpenVinoNetwork:
    """A network that OpenVINO has read. Not to be called by two threads at a time; another may prepare."""

    def __init__(self, name: str, core: Any, model: Any, options: Mapping[str, str]) -> None:
        self._name = name
        self._core = core
        self._model = model
        self._options = options
        self._store: CompiledStore | None = None
        self._key: Mapping[str, object] = {}
        self._requests: OrderedDict[_Shapes, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()  # on the requests
        self.inputs = tuple(_spec(port) for port in model.inputs)
        self.outputs = tuple(_spec(port) for port in model.outputs)

    def keep_in(self, store: CompiledStore, key: Mapping[str, object]) -> None:
        """Look in a store before compiling, and keep there what was compiled; the key lacks the shapes."""
        self._store, self._key = store, key

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Compile for tensors of these shapes, on any thread, while others run.

        Raises:
            EngineError: OpenVINO refuses the network or these shapes.
        """
        self._request(self._shapes(tensors))

    def shapes_given(self, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Say what shapes the outputs have for tensors of these shapes, without compiling.

        Raises:
            EngineError: OpenVINO refuses these shapes.
        """
        model = self._reshaped(self._shapes(tensors))
        return {spec.name: tuple(port.shape) for spec, port in zip(self.outputs, model.outputs, strict=True)}

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, on CPU tensors.

        Raises:
            EngineError: OpenVINO refuses the network or these shapes.
        """
        from openvino import Tensor as Shared

        given = [tensors[spec.name].to(spec.dtype).contiguous() for spec in self.inputs]
        request = self._request(tuple(tuple(tensor.shape) for tensor in given))
        # Both sides work in torch's memory: nothing is copied, and what is given out is the caller's alone.
        for index, tensor in enumerate(given):
            request.set_input_tensor(index, Shared(tensor.numpy(), shared_memory=True))
        made = {}
        for index, (spec, port) in enumerate(zip(self.outputs, request.model_outputs, strict=True)):
            made[spec.name] = torch.empty(tuple(port.shape), dtype=spec.dtype)
            request.set_output_tensor(index, Shared(made[spec.name].numpy(), shared_memory=True))
        request.infer()
        return made

    def _shapes(self, tensors: Mapping[str, Tensor]) -> _Shapes:
        return tuple(tuple(tensors[spec.name].shape) for spec in self.inputs)

    def _request(self, shapes: _Shapes) -> Any:
        """Give the inference request for these input shapes, made now if there is none yet."""
        with self._lock:
            waiting = self._requests.get(shapes)
            if waiting is None:
                made: Future[Any] = Future()
                self._requests[shapes] = made
            else:
                self._requests.move_to_end(shapes)
        if waiting is not None:  # another thread may still be at it
            return waiting.result()
        try:
            made.set_result(self._compile(shapes).create_infer_request())
        except BaseException as error:
            made.set_exception(error)
            with self._lock:
                self._requests.pop(shapes, None)
            raise
        with self._lock:
            if len(self._requests) > _KEPT_SHAPES:
                self._requests.popitem(last=False)
        return made.result()

    def _compile(self, shapes: _Shapes) -> Any:
        key = {**self._key, "shapes": shapes}
        kept = self._store.find(key) if self._store is not None else None
        if kept is not None:
            try:
                return self._core.import_model(kept, "CPU", self._options)
            except RuntimeError:
                pass  # whatever is wrong with it, the network itself is there
        model = self._reshaped(shapes)
        try:
            compiled = self._core.compile_model(model, "CPU", self._options)
        except RuntimeError as error:
            raise self._refusal(shapes, error) from None
        if self._store is not None:
            self._store.keep(key, _exported(compiled))
        return compiled

    def _reshaped(self, shapes: _Shapes) -> Any:
        from openvino import PartialShape

        model = self._model.clone()
        try:
            model.reshape({index: PartialShape(list(shape)) for index, shape in enumerate(shapes)})
        except RuntimeError as error:
            raise self._refusal(shapes, error) from None
        return model

    def _refusal(self, shapes: _Shapes, error: RuntimeError) -> EngineError:
        return EngineError(
            f"OpenVINO refuses {self._name} for shapes {shapes}: {_first_line(error)}; use --engine torch"
        )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _checksum(path: Path) -> str:
    """Of an ONNX file, and of whatever lies beside it: there are the weights."""
    return content_checksum(file for file in path.parent.iterdir() if file.is_file())


def _exported(compiled: Any) -> bytes:
    exported = compiled.export_model()
    return exported.getvalue() if hasattr(exported, "getvalue") else bytes(exported)


def _put(weights: Mapping[str, Tensor], model: Any) -> None:
    """Put weights in place of the model's own; each is a constant of the same name."""
    if not weights:
        return
    from openvino import opset13

    constants = {
        node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    for name, tensor in weights.items():
        other = opset13.constant(tensor.numpy(), name=name)
        for reader in constants[name].output(0).get_target_inputs():
            reader.replace_source_output(other.output(0))


def _spec(port: Any) -> TensorSpec:
    name = port.get_any_name()
    axes = enumerate(port.get_partial_shape())
    shape = tuple(f"{name}.{index}" if axis.is_dynamic else axis.get_length() for index, axis in axes)
    return TensorSpec(name=name, dtype=_DTYPES[port.get_element_type().get_type_name()], shape=shape)


def _first_line(error: Exception) -> str:
    """Give the first line that says something: OpenVINO's errors open with the names of its source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("Exception from")), "unknown error")
