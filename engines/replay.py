"""How a network runs on a GPU: through buffers that stay in place, so that a call is one recorded graph.

For every set of input shapes there is one `_Call`: buffers for the inputs, and a step that runs the network
on them. A stream has few shapes (one, and those of its last window): a few calls are kept, the latest used.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from toonstream.engines.engine import TensorSpec

__all__ = ["Buffered", "Step", "record_graph"]

_KEPT_SHAPES = 4
_WARM_UPS = 2  # runs before a recording: libraries choose their kernels and take their workspaces in them

Step = Callable[[], Mapping[str, Tensor]]
"""Runs a network on buffers it knows, and gives its outputs, which the next run may overwrite."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    inputs: Mapping[str, Tensor]
    step: Step


class Buffered:
    """Calls a network through buffers. Not to be called by two threads at a time.

    Args:
        inputs: names and element types that the network computes with.
        device: where it does.
        prepare: given buffers that hold inputs, makes the step that runs the network on them.
        record: makes a faster step of a step, such as `record_graph`.
    """

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        *,
        device: torch.device,
        prepare: Callable[[Mapping[str, Tensor]], Step],
        record: Callable[[Step], Step],
    ) -> None:
        self._inputs = inputs
        self._device = device
        self._prepare = prepare
        self._record = record
        self._calls: OrderedDict[tuple[tuple[int, ...], ...], _Call] = OrderedDict()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; tensors may be anywhere and of any element type. What is given out is the caller's."""
        shapes = tuple(tuple(tensors[spec.name].shape) for spec in self._inputs)
        if shapes in self._calls:
            self._calls.move_to_end(shapes)
            call = self._calls[shapes]
            self._fill(call.inputs, tensors)
        else:
            if len(self._calls) == _KEPT_SHAPES:  # before the next one takes memory
                self._calls.popitem(last=False)
            buffers = {
                spec.name: torch.empty(shape, dtype=spec.dtype, device=self._device)
                for spec, shape in zip(self._inputs, shapes, strict=True)
            }
            self._fill(buffers, tensors)
            call = _Call(inputs=buffers, step=self._record(self._prepare(buffers)))
            self._calls[shapes] = call
        return {name: tensor.clone() for name, tensor in call.step().items()}

    def _fill(self, buffers: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        for name, buffer in buffers.items():
            buffer.copy_(tensors[name], non_blocking=True)


def record_graph(step: Step) -> Step:
    """Record a step as a CUDA graph, on the current device."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Another engine may serve from another thread meanwhile; what that one does is no part of this graph.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        made = step()

    def replay() -> Mapping[str, Tensor]:
        graph.replay()
        return made

    return replay
