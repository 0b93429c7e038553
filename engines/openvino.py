"""OpenVINO: the engine for CPUs.

A network is compiled for the shapes it is called with, so that how a shape is computed does not depend on
what was run before it. A stream has few shapes (one, and those of the last window; a live one a few more for
each size that it may be drawn at), so a few compiled forms are kept, the latest used.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
from torch import Tensor

from toonstream.engines.compiled import CompiledStore
from toonstream.engines.compiling import Compiler, Graph, Port, Precision, Shapes
from toonstream.engines.engine import NetworkSource, TensorSpec
from toonstream.engines.onnx_file import onnx_file

__all__ = ["OpenVinoEngine", "OpenVinoNetwork"]

_KEPT_SHAPES = 16  # a live stream's sizes, and what each is called with at the start of a window and within
_DTYPES = {"f32": torch.float32, "f16": torch.float16, "i64": torch.int64}


class OpenVinoEngine:
    """Runs networks with OpenVINO on the CPU.

    Args:
        precision: what to compute in. `auto` is bfloat16 where the CPU has instructions for it, else float32.
            Tensors in and out are float32 all the same.
        compiled: where compiled networks are kept from run to run; None keeps none. Networks whose weights
            were replaced are not kept.
        at_once: networks that will run at a time, see `Compiler`.
        compiler: one that may have begun already; all of the above is settled with it.

    Raises:
        EngineError: OpenVINO is not installed.
    """

    name = "openvino"
    per_shape = True  # it compiles

    def __init__(
        self,
        *,
        precision: Precision = "auto",
        compiled: CompiledStore | None = None,
        at_once: int = 1,
        compiler: Compiler | None = None,
    ) -> None:
        self._compiler = compiler or Compiler(precision=precision, kept=compiled, at_once=at_once)
        self.precision = self._compiler.precision

    def load(self, source: NetworkSource) -> "OpenVinoNetwork":
        """Read a network's ONNX file; it is compiled when it is first called.

        Raises:
            EngineError: there is no ONNX file, or OpenVINO cannot read it.
        """
        change = partial(_put, source.weights) if source.weights else None
        return OpenVinoNetwork(self._compiler.read(source.name, onnx_file(source), change=change))


class OpenVinoNetwork:
    """A network that OpenVINO has read. Not to be called by two threads at a time; another may prepare.

    Attributes:
        graph: the network, to be compiled for other shapes ahead.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._requests: OrderedDict[Shapes, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()  # on the requests
        self.inputs = tuple(map(_spec, graph.inputs))
        self.outputs = tuple(map(_spec, graph.outputs))

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Compile for tensors of these shapes, on any thread, while others run.

        Raises:
            EngineError: OpenVINO refuses the network or these shapes.
        """
        self._request(self._shapes(tensors))

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

    def _shapes(self, tensors: Mapping[str, Tensor]) -> Shapes:
        return tuple(tuple(tensors[spec.name].shape) for spec in self.inputs)

    def _request(self, shapes: Shapes) -> Any:
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
            made.set_result(self.graph.compiled(shapes).create_infer_request())
        except BaseException as error:
            made.set_exception(error)
            with self._lock:
                self._requests.pop(shapes, None)
            raise
        with self._lock:
            if len(self._requests) > _KEPT_SHAPES:
                self._requests.popitem(last=False)
        return made.result()


def _put(weights: Mapping[str, Tensor], model: Any) -> None:
    """Put weights in place of the model's own; each is a constant of the same name."""
    from openvino import opset13

    constants = {
        node.get_friendly_name(): node for node in model.get_ops() if node.get_type_name() == "Constant"
    }
    for name, tensor in weights.items():
        other = opset13.constant(tensor.numpy(), name=name)
        for reader in constants[name].output(0).get_target_inputs():
            reader.replace_source_output(other.output(0))


def _spec(port: Port) -> TensorSpec:
    return TensorSpec(name=port.name, dtype=_DTYPES[port.kind], shape=port.shape)
