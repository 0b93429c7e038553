"""Every ONNX file against torch.

`python -m toonstream.export.verify MODEL_DIR` runs both on random inputs at three shapes.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.torch import TorchEngine
from toonstream.errors import ToonstreamError
from toonstream.export.checkpoints import open_model
from toonstream.export.networks.base import random_inputs

__all__ = ["SHAPES", "TOLERANCE", "Comparison", "compare", "verify_model"]

SHAPES = (
    {"batch": 1, "frames": 1, "h": 8, "w": 8},
    {"batch": 2, "frames": 3, "h": 8, "w": 16},
    {"batch": 1, "frames": 5, "h": 20, "w": 12},
)
TOLERANCE = 1e-4  # relative; float32 in another order stays well below


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How far one output of a network is from torch's.

    Attributes:
        network: its name in the stream.
        output: the name of the tensor.
        error: the largest over all shapes of max |difference| / max |torch's|.
    """

    network: str
    output: str
    error: float


def verify_model(model_dir: Path) -> list[Comparison]:
    """Compare every network of a model folder, ONNX Runtime against torch.

    Raises:
        ModelError: the folder is not a complete model.
        EngineError: an ONNX file is missing, or ONNX Runtime is not installed.
    """
    model = open_model(model_dir)
    reference, engine = TorchEngine(), OnnxRuntimeEngine()
    return [
        Comparison(network=name, output=output, error=error)
        for name, source in model.sources.items()
        for output, error in compare(reference.load(source), engine.load(source)).items()
    ]


def compare(
    reference: Network, network: Network, shapes: Sequence[Mapping[str, int]] = SHAPES
) -> dict[str, float]:
    """Give the largest relative error of each output of `network` over all shapes.

    Args:
        reference: a network whose free axes are named as in `shapes` (the torch engine's).
        network: the one to judge.
        shapes: lengths of batch, frames, h and w (latent pixels).
    """
    errors = dict.fromkeys((output.name for output in reference.outputs), 0.0)
    for seed, sizes in enumerate(shapes):
        inputs = random_inputs(reference.inputs, sizes, seed=seed)
        expected, actual = reference(inputs), network(inputs)
        for name, tensor in expected.items():
            errors[name] = max(errors[name], _relative_error(actual[name], tensor))
    return errors


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.cpu() - expected.cpu()).abs().max() / expected.abs().max().clamp_min(1e-12).cpu())


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify a model folder from the command line; exit 1 if an output is off."""
    parser = argparse.ArgumentParser(
        prog="python -m toonstream.export.verify", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model_dir", type=Path, help="a model folder in diffusers' layout, exported")
    try:
        comparisons = verify_model(parser.parse_args(arguments).model_dir)
    except ToonstreamError as error:
        print(error, file=sys.stderr)
        return 2
    for comparison in comparisons:
        print(f"{comparison.network:22} {comparison.output:14} {comparison.error:.1e}")
    return 0 if all(comparison.error <= TOLERANCE for comparison in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
