"""The graph of the UNet that attends to the past: exported once, into the cache, and the same everywhere."""

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from toonstream.engines.build import BuildJob, run_build
from toonstream.engines.engine import NetworkSource
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.torch import TorchEngine
from toonstream.engines.weights import read_weights, replace_weights
from toonstream.errors import ModelError
from toonstream.export import reference
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.export.networks.base import random_inputs
from toonstream.export.reference import with_reference
from toonstream.export.shapes import Envelope, declared_inputs
from toonstream.export.verify import TOLERANCES, compare, shapes_for


@pytest.fixture(scope="module")
def caching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TOONSTREAM_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def source(model: Model, caching: Path) -> NetworkSource:
    return with_reference(model, engine="onnxruntime").sources["unet_reference"]


@pytest.fixture(scope="module")
def half(model: Model, caching: Path) -> NetworkSource:
    return with_reference(model, engine="tensorrt-rtx").sources["unet_reference"]


def test_every_engine_computes_what_torch_computes(model: Model, source: NetworkSource) -> None:
    torch_network = TorchEngine(device=torch.device("cpu")).load(source)
    for engine in (OnnxRuntimeEngine(), OpenVinoEngine(precision="float32")):
        errors = compare(torch_network, engine.load(source), shapes_for(model)[1:])
        assert len(errors) == 4  # the output, and three layers
        assert max(errors.values()) < TOLERANCES["float32"], (engine.name, errors)


def test_the_half_precision_graph_too(model: Model, source: NetworkSource, half: NetworkSource) -> None:
    errors = compare(
        TorchEngine(device=torch.device("cpu")).load(source),
        OnnxRuntimeEngine().load(half),
        shapes_for(model)[:2],
    )
    assert max(errors.values()) < TOLERANCES["float16"], errors
    assert half.onnx != source.onnx


def test_it_builds_into_an_engine(model: Model, half: NetworkSource, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert half.onnx is not None
    envelope = Envelope(size=(64, 64), largest=(96, 64), window=4, stride=2, sides=2, remembered=3)
    shapes = envelope.triples("unet_reference", declared_inputs(half.onnx))
    assert shapes["remembered_bias"] == ((2, 1), (2, 3), (2, 3))
    assert shapes["remembered_0_at_4"].max == (2, 3, 2, 3, 32)
    job = BuildJob(label="tiny", flavour="tensorrt-rtx", onnx=half.onnx, shapes=shapes, capability=(8, 9))
    run_build(job, tmp_path / "engine")
    assert (tmp_path / "engine").stat().st_size > 0


def test_the_bias_is_never_spread_over_queries(source: NetworkSource, tmp_path: Path) -> None:
    """LVCD's code makes it (T, 1, N, 2N); here one number per key reaches the logits."""
    assert source.onnx is not None
    folder = Path(shutil.copytree(source.onnx.parent, tmp_path / "graph"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    made_by = {name: node for node in model.graph.node for name in node.output}
    sums = [made_by[node.input[0]] for node in model.graph.node if node.op_type == "Softmax"]
    sums = [node for node in sums if node.op_type == "Add"]
    biases = [node.input[1] for node in sums if made_by[node.input[0]].op_type == "MatMul"]
    assert len(biases) == 3
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in biases)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    sizes = {"batch": 2, "frames": 3, "h": 16, "w": 16, "remembered": 5}
    inputs = random_inputs(TorchEngine(device=torch.device("cpu")).load(source).inputs, sizes)
    for made in session.run(biases, {name: tensor.numpy() for name, tensor in inputs.items()}):
        assert made.shape == (2 * 3, 1, 1, (1 + 5) * 4 * 4)


def test_it_is_exported_once_and_holds_no_weights(
    model: Model, source: NetworkSource, caching: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert source.onnx is not None
    folder = source.onnx.parent
    assert folder.parent == caching / "graphs"
    assert sorted(path.name for path in folder.iterdir()) == [
        "diffusion_pytorch_model.safetensors", "model.onnx",
    ]  # fmt: skip
    assert not list((model.path / "unet").glob("reference*"))

    def again(*_: object, **__: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr("toonstream.export.onnx.export_network", again)
    assert with_reference(model, engine="openvino").sources["unet_reference"].onnx == source.onnx
    torch_only = with_reference(model, engine="torch").sources["unet_reference"]
    assert torch_only.onnx is None
    # Other layers are another graph; other weights have another place.
    others = replace(model, defaults=replace(model.defaults, reference_layers=("up",)))
    with pytest.raises(AssertionError, match="exported again"):
        with_reference(others, engine="openvino")
    (model.path / "unet" / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(AssertionError, match="exported again"):
        with_reference(model, engine="openvino")
    assert not [path for path in (caching / "graphs").iterdir() if path.name.startswith(".")]


def test_an_assembled_model_has_it_beside_its_weights(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path))
    folder = Path(shutil.copytree(model.path, tmp_path / "models" / "tiny-0123"))
    said: list[str] = []
    exported: list[tuple[Path, Path]] = []
    monkeypatch.setattr(
        "toonstream.export.onnx.export_network",
        lambda module, path, weights, precision: exported.append((path, weights)),
    )
    path = (
        with_reference(open_model(folder), engine="openvino", say=said.append).sources["unet_reference"].onnx
    )
    assert path is not None
    assert path.parent == folder / "unet"
    assert exported == [(path, folder / "unet" / "diffusion_pytorch_model.safetensors")]
    assert said == ["tiny: exporting unet_reference, once"]
    assert not (tmp_path / "graphs").exists()


def test_weights_that_were_put_in_are_put_in_here_too(model: Model, source: NetworkSource) -> None:
    plain = model.sources["unet"]
    weights = {name: weight * 0.5 for name, weight in read_weights(plain, ["conv_out.weight"]).items()}
    changed = replace(model, sources={**model.sources, "unet": replace_weights(plain, weights)})
    found = with_reference(changed, engine="onnxruntime").sources["unet_reference"]
    assert found.weights.keys() == {"conv_out.weight"}
    torch_network = TorchEngine(device=torch.device("cpu")).load(found)
    inputs = random_inputs(torch_network.inputs, shapes_for(model)[0])
    networks = (torch_network, *(OnnxRuntimeEngine().load(which) for which in (found, source)))
    made = [network(inputs)["output"] for network in networks]
    torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-4)
    assert (made[0] - made[2]).abs().max() > 0.1


def test_a_cache_that_cannot_be_written_to_is_said(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="name another folder in TOONSTREAM_CACHE"):
        with_reference(model, engine="onnxruntime")


def test_of_two_processes_the_first_ones_stays(
    model: Model, source: NetworkSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path))
    graphs = tmp_path / "graphs"

    def meanwhile(module: object, path: Path, weights: Path, precision: str) -> None:
        """Another process has finished, and this one has too."""
        key = reference._key(model, model.path / "unet" / weights.name, "float32")
        shutil.copytree(source.onnx.parent, graphs / f"tiny-{key}")  # type: ignore[union-attr]
        path.write_bytes(b"late")

    monkeypatch.setattr("toonstream.export.onnx.export_network", meanwhile)
    found = with_reference(model, engine="onnxruntime").sources["unet_reference"].onnx
    assert found is not None
    assert found.read_bytes() != b"late"
    assert list(graphs.iterdir()) == [found.parent]


def test_the_cache_is_bounded_and_the_latest_used_stay(
    model: Model, source: NetworkSource, caching: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path))
    graphs = tmp_path / "graphs"
    now, hour, megabyte = time.time(), 3600.0, 1 << 20
    ages = {"old": 9, "older": 12, ".left-by-a-killed-process": 2, ".of-another-process": 0.5, "oldest": 99}
    for name, hours in ages.items():
        (graphs / name).mkdir(parents=True)
        (graphs / name / "weights").write_bytes(bytes(megabyte))
        os.utime(graphs / name, (now - hours * hour,) * 2)

    def left(limit: int) -> set[str]:
        reference._prune(graphs, limit=limit, now=now)
        return {folder.name for folder in graphs.iterdir()}

    assert left(limit=100 * megabyte) == {"old", "older", "oldest", ".of-another-process"}
    assert left(limit=3 * megabyte) == {"old", "older", ".of-another-process"}
    os.utime(graphs / "older", (now, now))  # was used again
    assert left(limit=2 * megabyte) == {"older", ".of-another-process"}
    assert left(limit=0) == {"older", ".of-another-process"}  # which may both be at work

    # Making one prunes, and using one counts.
    shutil.rmtree(graphs)
    assert source.onnx is not None
    (graphs / "old").mkdir(parents=True)
    os.utime(graphs / "old", (0, 0))
    monkeypatch.setattr(reference, "_LIMIT", -1)
    monkeypatch.setattr(
        "toonstream.export.onnx.export_network",
        lambda module, path, weights, precision: path.write_bytes(b"graph"),
    )
    found = with_reference(model, engine="onnxruntime").sources["unet_reference"].onnx
    assert found is not None
    assert list(graphs.iterdir()) == [found.parent]
    os.utime(found.parent, (0, 0))
    with_reference(model, engine="onnxruntime")
    assert found.parent.stat().st_mtime > now - 1


def test_the_shipped_model_carries_no_graph_of_it() -> None:
    assert not list(shipped_model().rglob("reference*"))
    assert "unet_reference" not in open_model(shipped_model()).sources
