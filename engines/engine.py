"""The one interface over everything that can run a network. To say where networks are takes no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = [
    "Engine",
    "EngineAround",
    "Network",
    "NetworkAround",
    "NetworkSource",
    "Preparing",
    "Stoppable",
    "TensorSpec",
]


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """What a network declares of one of its tensors.

    Attributes:
        name: as in the ONNX file and in the keyword of a call.
        dtype: element type of the tensors passed in or given out.
        shape: one entry per axis; a string names an axis whose length is free.
    """

    name: str
    dtype: "torch.dtype"
    shape: tuple[int | str, ...]


class Network(Protocol):
    """A network that is ready to run: named CPU or GPU tensors in, named tensors out; no hidden state."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def __call__(self, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Run once. The tensors given out belong to the caller; the next call does not change them."""
        ...


class NetworkAround:
    """What networks share that run another one in their own way: they declare what it does."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As declared by the network within."""
        return self._network.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As declared by the network within."""
        return self._network.outputs


@runtime_checkable
class Preparing(Protocol):
    """A network that can be built for shapes ahead of its turn, while others run."""

    def prepare(self, tensors: "Mapping[str, Tensor]") -> None:
        """Build what is needed for tensors of these shapes."""
        ...


@dataclass(frozen=True, kw_only=True)
class NetworkSource:
    """Where an engine gets a network from.

    Attributes:
        name: its role in the stream, such as `unet` or `controlnet_outline`.
        onnx: the exported file, or None where there is none.
        build: makes the torch module (with `input_names` and `output_names`: tensors in, a tuple out).
        weights: what takes the place of some of the network's weights, by name; see `engines.weights`.
    """

    name: str
    onnx: Path | None
    build: "Callable[[], nn.Module]"
    weights: "Mapping[str, Tensor]" = field(default_factory=dict, repr=False, compare=False)


class Engine(Protocol):
    """Loads networks."""

    @property
    def name(self) -> str: ...

    @property
    def per_shape(self) -> bool:
        """Whether the first call with inputs of other shapes takes much longer than those that follow it."""
        ...

    def load(self, source: NetworkSource) -> Network:
        """Make a network ready to run.

        Raises:
            EngineError: the engine refuses it; the message names the way on.
        """
        ...


class EngineAround:
    """What engines share that load by another one: they are called as it is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        """As the engine within is called."""
        return self._engine.name

    @property
    def per_shape(self) -> bool:
        """As the engine within has it."""
        return self._engine.per_shape


@runtime_checkable
class Stoppable(Protocol):
    """An engine whose loading takes long, and can be given up."""

    def close(self) -> None:
        """Give up what is under way, and whatever would come after it."""
        ...
