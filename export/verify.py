"""Every ONNX file against torch.

`toonstream export MODEL --verify` runs both on random inputs at three shapes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.torch import TorchEngine
from toonstream.export.checkpoints import Model, Precision, in_precision, open_model
from toonstream.export.networks.base import random_inputs

__all__ = ["SHAPES", "TOLERANCES", "Comparison", "compare", "shapes_for", "verify_model"]

SHAPES = (
    {"batch": 1, "frames": 1, "h": 8, "w": 8, "tokens": 77, "remembered": 1},
    {"batch": 2, "frames": 3, "h": 8, "w": 16, "tokens": 154, "remembered": 2},
    {"batch": 1, "frames": 5, "h": 20, "w": 12, "tokens": 77, "remembered": 4},
)
# Relative. Float32 in another order stays well below; float16 rounds every tensor, and noise is a hard test.
TOLERANCES: Mapping[Precision, float] = {"float32": 1e-4, "float16": 2e-2}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far one output of a network is from torch's.

    Attributes:
        network: its name in the stream.
        output: the name of the tensor.
        error: the largest over all shapes of max |difference| / max |torch's|; infinite if
            that is no number.
        tolerance: the largest error that passes.
    """

    network: str
    output: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether it is within the tolerance."""
        return self.error <= self.tolerance


def verify_model(model_dir: Path, *, precision: Precision = "float32") -> Iterator[Comparison]:
    """Compare every network of a model folder, ONNX Runtime against torch in float32, one after the other.

    Only one form of one network is in memory at a time.

    Args:
        model_dir: the folder, exported.
        precision: which of its ONNX files to compare.

    Raises:
        ModelError: the folder is not a complete model.
        EngineError: an ONNX file is missing, or ONNX Runtime is not installed.
    """
    model = in_precision(open_model(model_dir), precision)
    engine = OnnxRuntimeEngine()
    for name, source in model.sources.items():
        runs = _reference_runs(TorchEngine(device=torch.device("cpu")).load(source), shapes_for(model))
        for output, error in _errors(engine.load(source), runs).items():
            yield Comparison(network=name, output=output, error=error, tolerance=TOLERANCES[precision])


def shapes_for(model: Model) -> tuple[Mapping[str, int], ...]:
    """Give three shapes that the networks of a model can take."""
    unit = model.size_multiple // model.vae_scale_factor
    return tuple(
        {**shape, "h": -(-shape["h"] // unit) * unit, "w": -(-shape["w"] // unit) * unit} for shape in SHAPES
    )


def compare(
    reference: Network, network: Network, shapes: Sequence[Mapping[str, int]] = SHAPES
) -> dict[str, float]:
    """Give the largest relative error of each output of `network` over all shapes.

    Args:
        reference: a network whose free axes are named as in `shapes` (the torch engine's).
        network: the one to judge.
        shapes: lengths of batch, frames, tokens, h and w (latent pixels).
    """
    return _errors(network, _reference_runs(reference, shapes))


_Run = tuple[dict[str, Tensor], dict[str, Tensor]]  # what went in, what came out


def _reference_runs(reference: Network, shapes: Sequence[Mapping[str, int]]) -> list[_Run]:
    runs = []
    for seed, sizes in enumerate(shapes):
        inputs = random_inputs(reference.inputs, sizes, seed=seed)
        runs.append((inputs, reference(inputs)))
    return runs


def _errors(network: Network, runs: Sequence[_Run]) -> dict[str, float]:
    errors: dict[str, float] = {}
    for inputs, expected in runs:
        actual = network(inputs)
        for name, tensor in expected.items():
            error = _relative_error(actual[name], tensor)
            errors[name] = max(errors.get(name, 0.0), math.inf if math.isnan(error) else error)
    return errors


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    expected = expected.cpu().float()
    return float((actual.cpu().float() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
