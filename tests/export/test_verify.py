import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from torch import Tensor

from toonstream.engines.engine import TensorSpec
from toonstream.errors import EngineError, ModelError
from toonstream.export import verify
from toonstream.export.checkpoints import Model
from toonstream.export.networks.base import spec


class Tripler:
    """A network that gives three times its input, and is off in its own way."""

    inputs: tuple[TensorSpec, ...] = (spec("x", "batch", 2, "h", "w"),)
    outputs: tuple[TensorSpec, ...] = (spec("y", "batch", 2, "h", "w"),)

    def __init__(self, off: float = 0.0, *, rows: int = 0) -> None:
        self._off, self._rows = off, rows

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        made = 3 * tensors["x"]
        if made.shape[2] > self._rows:
            made[0, 0, 0, 0] += self._off * made.abs().max()
        return {"y": made}


def test_the_largest_error_over_all_shapes_is_given() -> None:
    assert verify.compare(Tripler(), Tripler()) == {"y": 0.0}
    assert verify.compare(Tripler(), Tripler(0.25)) == {"y": pytest.approx(0.25)}
    assert verify.compare(Tripler(), Tripler(0.25, rows=8)) == {
        "y": pytest.approx(0.25)
    }  # the last shape alone
    assert verify.compare(Tripler(), Tripler(0.25, rows=99)) == {"y": 0.0}


def test_what_is_no_number_never_passes() -> None:
    errors = verify.compare(Tripler(), Tripler(math.nan, rows=8))
    assert errors == {"y": math.inf}
    comparison = verify.Comparison(network="unet", output="y", error=errors["y"], tolerance=1e-4)
    assert not comparison.passed


class HalfTripler(Tripler):
    """The same in float16."""

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"y": super().__call__(tensors)["y"].half()}


def test_half_outputs_are_compared_in_full() -> None:
    (error,) = verify.compare(Tripler(), HalfTripler()).values()
    assert 0 < error < 1e-3


def test_shapes_are_multiples_of_what_the_model_asks_for(model: Model, sd15: Model) -> None:
    assert {(shape["h"] % 4, shape["w"] % 4) for shape in verify.shapes_for(model)} == {(0, 0)}
    assert {(shape["h"] % 8, shape["w"] % 8) for shape in verify.shapes_for(sd15)} == {(0, 0)}


def test_a_file_that_computes_something_else_is_found(model: Model, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model.path, tmp_path / "model"))
    path = folder / "vae" / "decoder.onnx"
    graph = onnx.load(path, load_external_data=False)
    (last,) = (node for node in graph.graph.node if node.output[0] == "image")
    last.output[0] = "almost"
    graph.graph.node.append(onnx.helper.make_node("Sin", ["almost"], ["image"]))
    path.write_bytes(graph.SerializeToString())
    found = {comparison.network: comparison for comparison in verify.verify_model(folder)}
    assert [name for name, comparison in found.items() if not comparison.passed] == ["vae_decoder"]


def test_what_is_not_exported_is_said(sd15: Model, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="toonstream export"):
        list(verify.verify_model(sd15.path))
    with pytest.raises(ModelError, match="is not a folder"):
        list(verify.verify_model(tmp_path / "nowhere"))


def test_a_file_for_other_shapes_is_said_to_be_old(model: Model, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model.path, tmp_path / "model"))
    path = folder / "vae" / "encoder.onnx"
    graph = onnx.load(path, load_external_data=False)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    path.write_bytes(graph.SerializeToString())
    with pytest.raises(EngineError, match=r"cannot run vae_encoder on .*; export the model again"):
        list(verify.verify_model(folder))
