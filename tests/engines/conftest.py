"""A small network, as a torch module and as an ONNX file."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from toonstream.engines.engine import NetworkSource, TensorSpec

IMAGE = TensorSpec(name="image", dtype=torch.float32, shape=("batch", 3, "h", "w"))
COUNT = TensorSpec(name="count", dtype=torch.int64, shape=("batch",))
BLURRED = TensorSpec(name="blurred", dtype=torch.float32, shape=("batch", 4, "h", "w"))
TOTAL = TensorSpec(name="total", dtype=torch.float32, shape=("batch",))


class Toy(nn.Module):
    inputs = (IMAGE, COUNT)
    outputs = (BLURRED, TOTAL)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        return self.convolution(image), image.mean((1, 2, 3)) * count


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> NetworkSource:
    path = tmp_path_factory.mktemp("toy") / "toy.onnx"
    axes = {
        spec.name: {index: axis for index, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in (*Toy.inputs, *Toy.outputs)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Toy(),
            (torch.zeros(2, 3, 8, 8), torch.ones(2, dtype=torch.int64)),
            path,
            dynamo=False,
            input_names=["image", "count"],
            output_names=["blurred", "total"],
            dynamic_axes=axes,
        )
    return NetworkSource(name="toy", onnx=path, build=Toy)
