"""Two engines on the same inputs, through Polygraphy's comparator."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from toonstream.engines.engine import Network, NetworkSource, TensorSpec
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.errors import EngineError

__all__ = ["Difference", "against_onnxruntime", "compare_networks"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one output of a network is from the reference's.

    Attributes:
        output: the name of the tensor.
        error: max |difference| / max |reference's|. passed: it is within the tolerance.
    """

    output: str
    error: float
    passed: bool


def against_onnxruntime(
    source: NetworkSource, network: Network, inputs: Mapping[str, Tensor], *, tolerance: float
) -> list[Difference]:
    """Compare a network with what ONNX Runtime makes of its file.

    Raises:
        EngineError: Polygraphy or ONNX Runtime is not installed, or there is no ONNX file.
    """
    return compare_networks(OnnxRuntimeEngine().load(source), network, inputs, tolerance=tolerance)


def compare_networks(
    reference: Network, network: Network, inputs: Mapping[str, Tensor], *, tolerance: float
) -> list[Difference]:
    """Run two networks on the same inputs and compare every output.

    Args:
        reference: what is right.
        network: what is judged.
        inputs: by name.
        tolerance: the largest error that passes, as in `Difference.error`.

    Raises:
        EngineError: Polygraphy is not installed.
    """
    try:
        from polygraphy.comparator import Comparator, SimpleCompareFunc  # type: ignore[import-untyped]
        from polygraphy.logger import G_LOGGER  # type: ignore[import-untyped]
    except ImportError:
        raise EngineError("Polygraphy is not installed; run `pip install 'polygraphy>=0.53'`") from None
    named = (network, "engine"), (reference, "reference")
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        runs = Comparator.run(
            [_runner(each, reference.inputs, name) for each, name in named],
            data_loader=[OrderedDict(inputs)],
        )
        scales = {name: _largest(value) for name, value in runs[1][1][0].items()}
        allowed = {name: tolerance * scale for name, scale in scales.items()}
        verdict = Comparator.compare_accuracy(
            runs, compare_func=SimpleCompareFunc(atol=allowed, rtol=0.0, check_error_stat="max")
        )
    (compared,) = verdict[0].values()
    return [
        Difference(output=name, error=result.max_absdiff / scales[name], passed=bool(result))
        for name, result in compared[0].items()
    ]


def _largest(value: Any) -> float:
    return max(float(torch.as_tensor(value).abs().max()), 1e-12)


def _runner(network: Network, inputs: tuple[TensorSpec, ...], name: str) -> Any:
    """Make a network a runner of Polygraphy's that is given these inputs, whatever it computes in."""
    from polygraphy.backend.base import BaseRunner  # type: ignore[import-untyped]
    from polygraphy.common import TensorMetadata  # type: ignore[import-untyped]
    from polygraphy.datatype import DataType  # type: ignore[import-untyped]

    class Runner(BaseRunner):  # type: ignore[misc]
        """A network that Polygraphy can run."""

        def get_input_metadata_impl(self) -> Any:
            metadata = TensorMetadata()
            for spec in inputs:
                shape = [axis if isinstance(axis, int) else None for axis in spec.shape]
                metadata.add(spec.name, DataType.from_dtype(spec.dtype), shape)
            return metadata

        def infer_impl(self, feed_dict: Mapping[str, Tensor]) -> Any:
            self.inference_time = 0.0  # this is about what comes out, not when
            made = network(feed_dict)
            return OrderedDict((tensor, value.float().cpu()) for tensor, value in made.items())

    return Runner(name=name)
