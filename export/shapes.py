"""Which shapes a stream calls its networks with: (min, opt, max) for every input of every network.

An engine that is built ahead has to be told. What is free in a network is named by its axes ("batch",
"frames", "h", "w", "tokens"), and how long those get follows from how the stream runs:

    envelope = Envelope(size=(512, 512), window=16, stride=8, sides=2, steps=10)
    for name, source in model.sources.items():
        triples = envelope.triples(name, declared_inputs(source.onnx))  # {"sample": Triple(…), …}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from toonstream.engines.engine import TensorSpec
from toonstream.engines.shapes import Triple
from toonstream.errors import ModelError, SettingError
from toonstream.export.networks.base import axis_length

__all__ = ["SMALLEST_TILE", "Envelope", "Triple", "declared_inputs"]

SMALLEST_TILE = 48  # latent pixels along a side of the autoencoder's tiles, where a frame has as many
_LATENT_PIXEL = 8  # pixels, along each axis
_CHUNK = 77  # tokens that a text encoder takes at once
_PER_FRAME = ("vae_", "hint_", "annotator_")  # networks that see frames apart from their windows


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """What a stream may ask of its networks, and what it asks most of the time.

    Attributes:
        size: usual (width, height) in pixels, multiples of the model's `size_multiple`.
        smallest: the least width and the least height, each on its own; None is `size`.
        largest: the most width and the most height; None is `size`.
        window, stride: frames a window has, and from one window to the next.
        widest: the most frames that a window has; None is `window`.
        sides: 2 where guidance may be above 1, else 1.
        steps: denoising steps; matters where `skewed`.
        skewed: whether the windows of an arrival are one batch.
        chunks: the most chunks of 77 tokens that a prompt has.
        remembered: the most frames and pictures that frames attend to; usual, too.
        batch: the most frames that the autoencoder, hint embeddings and annotators get at once.

    Raises:
        SettingError: a size or a count makes no sense.
    """

    size: tuple[int, int]
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    window: int
    stride: int
    widest: int | None = None
    sides: int = 1
    steps: int = 1
    skewed: bool = False
    chunks: int = 1
    remembered: int = 1
    batch: int = 1

    def __post_init__(self) -> None:
        for side, name in enumerate(("width", "height")):
            low, usual, high = (
                (limit or self.size)[side] for limit in (self.smallest, self.size, self.largest)
            )
            if not 0 < low <= usual <= high:
                raise SettingError(f"{name} {usual} is not between {low} and {high}: give sizes that rise")
            if low % _LATENT_PIXEL or usual % _LATENT_PIXEL or high % _LATENT_PIXEL:
                raise SettingError(
                    f"{name}s {low}, {usual}, {high}: give multiples of {_LATENT_PIXEL} pixels"
                )
        counts = (self.window, self.stride, self.sides, self.steps, self.chunks, self.remembered, self.batch)
        if min(counts) < 1 or not self.stride <= self.window <= self.most_frames or self.sides > 2:
            raise SettingError(
                "take a window, a stride up to it, 1 or 2 sides, and at least one step, chunk and frame"
            )

    @property
    def most_frames(self) -> int:
        """The most frames that a window has."""
        return self.window if self.widest is None else self.widest

    def covers(self, *, size: tuple[int, int], window: int) -> bool:
        """Whether a stream of frames of this padded (width, height), and such windows, stays within it."""
        limits = zip(self.smallest or self.size, size, self.largest or self.size, strict=True)
        return window <= self.most_frames and all(low <= side <= high for low, side, high in limits)

    def axes(self, network: str) -> Mapping[str, Triple]:
        """Give the (min, opt, max) of every axis that may be free in a network, each as a shape of one axis.

        Args:
            network: its name in the stream, such as `unet` or `hint_outline`.
        """
        smallest, largest = self.smallest or self.size, self.largest or self.size
        if network.startswith("vae_"):  # takes large frames in tiles
            tile = SMALLEST_TILE * _LATENT_PIXEL
            smallest = min(smallest[0], tile), min(smallest[1], tile)
        sides = {
            axis: _axis(*(size[side] // _LATENT_PIXEL for size in (smallest, self.size, largest)))
            for side, axis in enumerate(("w", "h"))
        }
        return {
            "batch": self._batch(network),
            # A short clip's window, and the last one, have less.
            "frames": _axis(1, self.window, self.most_frames),
            "tokens": _axis(_CHUNK, _CHUNK, _CHUNK * self.chunks),
            # A reference picture is looked at with nothing to attend to.
            "remembered": _axis(1, self.remembered, self.remembered),
            **sides,
        }

    def _batch(self, network: str) -> Triple:
        levels = self.steps if self.skewed else 1
        if network in ("unet", "unet_reference"):
            return _axis(self.sides, self.sides * levels, self.sides * levels)
        if network.startswith("controlnet_"):
            # The frames that are new in a window: all of the first one's, a stride of the others'.
            most = self.most_frames + (levels - 1) * self.stride
            return _axis(
                self.sides, self.sides * levels * self.stride, self.sides * max(most, levels * self.stride)
            )
        if network.startswith(_PER_FRAME):
            return _axis(1, 1, self.batch)
        return _axis(1, 1, self.sides * self.chunks)  # the text encoder

    def triples(self, network: str, inputs: Iterable[TensorSpec]) -> dict[str, Triple]:
        """Give the shapes of each input of a network, by the input's name.

        Args:
            network: its name in the stream.
            inputs: as its ONNX file (`declared_inputs`) or its torch module declares them.

        Raises:
            ModelError: an input has a free axis that the stream knows nothing of.
        """
        axes = self.axes(network)
        ends = [{name: triple[end][0] for name, triple in axes.items()} for end in range(3)]
        try:
            return {
                tensor.name: Triple(*(tuple(axis_length(axis, end) for axis in tensor.shape) for end in ends))
                for tensor in inputs
            }
        except (KeyError, ValueError) as error:
            raise ModelError(f"{network} has an axis that no stream sets: {error}; export it again") from None


def _axis(low: int, usual: int, high: int) -> Triple:
    return Triple((low,), (usual,), (high,))


def declared_inputs(path: Path) -> tuple[TensorSpec, ...]:
    """Read the inputs of an ONNX file, their free axes by name; weights are not read.

    Raises:
        ModelError: it is not there, or is no ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as error:
        raise ModelError(f"{path} is not readable as ONNX ({error}); export the model again") from None
    dtypes = {
        onnx.TensorProto.FLOAT: torch.float32,
        onnx.TensorProto.FLOAT16: torch.float16,
        onnx.TensorProto.INT64: torch.int64,
    }
    return tuple(
        TensorSpec(
            name=value.name,
            dtype=dtypes[value.type.tensor_type.elem_type],
            shape=tuple(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim),
        )
        for value in graph.input
    )
