"""What every network of the stream is: a module of tensors, whose names and shapes are declared."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from toonstream.engines.engine import TensorSpec

__all__ = [
    "CHUNK_TOKENS",
    "TIMESTEP",
    "InPlaceOf",
    "TensorModule",
    "axis_length",
    "embedded_time",
    "random_inputs",
    "spec",
]

TIMESTEP = "timestep"  # the input that says how noisy the others are
CHUNK_TOKENS = 77  # that a CLIP text encoder takes at once: start, 75 of a prompt, end

_AXIS = re.compile(r"(?P<factor>\d*)(?P<name>[a-z]+)(?:/(?P<divisor>\d+))?")
_TIMESTEPS = 1000


class TensorModule(nn.Module):
    """A module that takes tensors in the order of `inputs` and returns a tuple in the order of `outputs`.

    A free axis is named by what it counts: "batch", "frames", "tokens" (text), "h" and "w" (latent pixels),
    or a multiple or a fraction of one: "8h" (pixels), "h/2" (one level down).

    Inputs that are named in `exact` stay in float32, whatever the network computes in.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    exact: tuple[str, ...] = (TIMESTEP,)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return tuple(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return tuple(tensor.name for tensor in self.outputs)


class InPlaceOf(nn.Module):
    """A module that stands for another one and uses its layers, under the same names.

    Args:
        original: the other one.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self._original = [original]  # in a list, so that its parameters are not registered twice

    @property
    def original(self) -> nn.Module:
        """The module that this one stands for."""
        return self._original[0]


def spec(name: str, *shape: int | str, dtype: torch.dtype = torch.float32) -> TensorSpec:
    """Declare a tensor."""
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def axis_length(axis: int | str, sizes: Mapping[str, int]) -> int:
    """Length of an axis such as 3, "h", "8h" or "h/2", where `sizes` gives "h"."""
    if isinstance(axis, int):
        return axis
    match = _AXIS.fullmatch(axis)
    if match is None:
        raise ValueError(f"{axis!r} names no axis")
    return int(match["factor"] or 1) * sizes[match["name"]] // int(match["divisor"] or 1)


def embedded_time(network: Any, timestep: Tensor, dtype: torch.dtype) -> Tensor:
    """Embed timesteps (B,) with the layers of a diffusers network: (B, C), in what the network computes in.

    Their sines are taken in float32.
    """
    waves: Tensor = network.time_proj(timestep)
    if waves.dtype != dtype:  # not asked of an exported graph, which is in float32 throughout
        waves = waves.to(dtype)
    embedding: Tensor = network.time_embedding(waves)
    return embedding


def random_inputs(
    inputs: tuple[TensorSpec, ...], sizes: Mapping[str, int], *, vocabulary: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Make inputs for a trial run: normal noise, timesteps in [0, 1000), token ids below `vocabulary`.

    Args:
        inputs: what to make.
        sizes: length of each axis that is named there: batch, frames, h, w; tokens are 77 unless given.
        vocabulary: how many token ids there are.
        seed: the same seed gives the same inputs.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = {"tokens": CHUNK_TOKENS, **sizes}
    made = {}
    for tensor in inputs:
        shape = [axis_length(axis, lengths) for axis in tensor.shape]
        if tensor.dtype == torch.int64:
            made[tensor.name] = torch.randint(vocabulary, shape, generator=generator)
        elif tensor.name == TIMESTEP:
            made[tensor.name] = torch.rand(shape, generator=generator) * _TIMESTEPS
        else:
            made[tensor.name] = torch.randn(shape, generator=generator)
    return made
