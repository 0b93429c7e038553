"""How a network runs on a GPU: through buffers that stay in place, so that a call is one recorded graph.

For every set of input shapes there is one `_Call`: buffers for the inputs, and a step that runs the network
on them. A stream has few shapes (one, and those of its last window): a few calls are kept, the latest used.
"""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from toonstream.engines.engine import TensorSpec

__all__ = ["Buffered", "GraphRecorder", "Record", "Step"]

_KEPT_SHAPES = 4
_WARM_UPS = 2  # runs before a recording: libraries choose their kernels and take their workspaces in them
# One recording at a time in a process: each begins by waiting for the whole GPU, which may not be done while
# another thread records, and all are made on one stream.
_RECORDING = threading.Lock()

Step = Callable[[], Mapping[str, Tensor]]
"""Runs a network on buffers it knows, and gives its outputs, which the next run may overwrite."""


class Record(Protocol):
    """Makes a faster step of a step, such as a `GraphRecorder`."""

    def __call__(self, step: Step, may: Callable[[], bool] = ..., /) -> Step:
        """Run a step, and record it where it `may` be; else give the step itself.

        `may` is asked when the step has been run, on the stream that it would be recorded on.
        """
        ...


def _always() -> bool:
    return True


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    inputs: Mapping[str, Tensor]
    step: Step


class Buffered:
    """Calls a network through buffers. Not to be called by two threads at a time.

    Args:
        inputs: names and element types that the network computes with.
        device: where it does.
        prepare: given buffers that hold inputs, makes the step that runs the network on them. It must not
            hold on to whoever holds this: a GPU's memory is to be free at once when a network goes.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        *,
        device: torch.device,
        prepare: Callable[[Mapping[str, Tensor]], Step],
    ) -> None:
        self._inputs = inputs
        self._device = device
        self._prepare = prepare
        self._calls: OrderedDict[tuple[tuple[int, ...], ...], _Call] = OrderedDict()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; tensors may be anywhere and of any element type. What is given out is the caller's."""
        shapes = tuple(tuple(tensors[spec.name].shape) for spec in self._inputs)
        if shapes in self._calls:
            self._calls.move_to_end(shapes)
            call = self._calls[shapes]
            _fill(call.inputs, tensors)
        else:
            if len(self._calls) == _KEPT_SHAPES:  # before the next one takes memory
                _finish(self._device)  # what a run works with is not to go before it is over
                self._calls.popitem(last=False)
            # Whoever calls next may be in inference mode or not: buffers that were made in it could not be
            # filled outside.
            with torch.inference_mode(mode=False):
                buffers = {
                    spec.name: torch.empty(shape, dtype=spec.dtype, device=self._device)
                    for spec, shape in zip(self._inputs, shapes, strict=True)
                }
            _fill(buffers, tensors)
            call = _Call(inputs=buffers, step=self._prepare(buffers))
            self._calls[shapes] = call
        return {name: tensor.clone() for name, tensor in call.step().items()}


def _finish(device: torch.device) -> None:
    """Wait until the GPU has done all that it was asked for here; not for all of it, see `_RECORDING`."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _fill(buffers: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, buffer in buffers.items():
        buffer.copy_(tensors[name], non_blocking=True)


class GraphRecorder:
    """Records the steps of one network as CUDA graphs, on the current device.

    They share their memory: only one of them runs at a time, and what it gives is copied before another does.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, step: Step, may: Callable[[], bool] = _always, /) -> Step:
        """Record a step; gives the step itself where it may not be, or, with a warning, where that fails."""
        with _RECORDING:
            return self._record(step, may)

    def _record(self, step: Step, may: Callable[[], bool]) -> Step:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Another engine may serve from another thread meanwhile; what that one does is no part of this graph.
        recording = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        current, side = torch.cuda.current_stream(), recording.capture_stream
        assert side is not None
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step()
            recordable = may()
        current.wait_stream(side)
        if not recordable:
            return step
        try:
            with recording:
                made = step()
        except torch.cuda.OutOfMemoryError:
            torch.cuda.set_stream(current)  # where a recording fails, it leaves its own
            raise
        except RuntimeError as error:
            torch.cuda.set_stream(current)
            reason = str(error).partition("\n")[0]
            warnings.warn(f"this network runs without a CUDA graph: {reason}", RuntimeWarning, stacklevel=2)
            return step

        return _Replay(graph=graph, made=made, step=step)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Replay:
    """A recorded step. It holds on to the step itself, in whose memory the graph works."""

    graph: Any
    made: Mapping[str, Tensor]
    step: Step

    def __call__(self) -> Mapping[str, Tensor]:
        self.graph.replay()
        return self.made
