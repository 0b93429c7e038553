"""What holds for every engine."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toonstream.engines.engine import Engine, Network, NetworkSource
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.select import ENGINE_NAMES, available_engines, engine_name, open_engine
from toonstream.engines.tensorrt.flavour import Flavour, apart
from toonstream.engines.torch import TorchEngine
from toonstream.errors import EngineError


def exact(name: str) -> Engine:
    engines: dict[str, Engine] = {
        "openvino": OpenVinoEngine(precision="float32"),
        "onnxruntime": OnnxRuntimeEngine(),
        "torch": TorchEngine(device=torch.device("cpu")),
    }
    return engines[name]


@pytest.fixture(params=["openvino", "onnxruntime", "torch"])
def network(request: pytest.FixtureRequest, toy: NetworkSource) -> Network:
    return exact(request.param).load(toy)


def inputs(batch: int, height: int, width: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    image = torch.randn(batch, 3, height, width, generator=generator)
    return {"image": image, "count": torch.arange(1, batch + 1)}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 16), (2, 17, 3)])
def test_an_engine_computes_what_torch_computes(
    network: Network, toy: NetworkSource, shape: tuple[int, int, int]
) -> None:
    given = inputs(*shape)
    with torch.inference_mode():
        blurred, total = toy.build()(**given)
    made = network(given)
    assert list(made) == ["blurred", "total"]
    torch.testing.assert_close(made["blurred"], blurred, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(made["total"], total, rtol=1e-5, atol=1e-6)


def test_tensors_are_declared(network: Network) -> None:
    assert [(spec.name, spec.dtype) for spec in network.inputs] == [
        ("image", torch.float32),
        ("count", torch.int64),
    ]
    batch, channels, height, width = network.inputs[0].shape
    assert channels == 3
    assert all(isinstance(axis, str) for axis in (batch, height, width))
    assert [spec.name for spec in network.outputs] == ["blurred", "total"]


def test_results_belong_to_the_caller(network: Network) -> None:
    given = inputs(2, 8, 8)
    first = network(given)
    kept = {name: tensor.clone() for name, tensor in first.items()}
    network({"image": torch.zeros(2, 3, 8, 8), "count": torch.zeros(2, dtype=torch.int64)})
    assert all(torch.equal(first[name], kept[name]) for name in kept)
    first["blurred"].zero_()
    assert torch.equal(network(given)["blurred"], kept["blurred"])


def test_inputs_are_left_alone_and_need_no_layout(network: Network) -> None:
    given = inputs(2, 8, 6)
    turned = {**given, "image": given["image"].transpose(2, 3)}
    before = turned["image"].clone()
    made = network(turned)
    assert torch.equal(turned["image"], before)
    straight = network({**given, "image": before.contiguous()})
    assert torch.equal(made["blurred"], straight["blurred"])


def test_the_same_call_gives_the_same_bits_whatever_ran_between(network: Network) -> None:
    given = inputs(1, 16, 16)
    first = network(given)["blurred"]
    for side in range(3, 14):
        network(inputs(1, side, side))
    assert torch.equal(network(given)["blurred"], first)


def test_openvino_keeps_a_bounded_number_of_shapes(
    toy: NetworkSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toonstream.engines.openvino._KEPT_SHAPES", 3)
    network = OpenVinoEngine().load(toy)
    for side in range(1, 6):
        network(inputs(1, side, side))
    assert [shapes[0][-1] for shapes in network._requests] == [3, 4, 5]


def test_openvino_computes_in_bfloat16_when_told(toy: NetworkSource) -> None:
    engine = OpenVinoEngine(precision="bfloat16")
    made = engine.load(toy)(inputs(2, 16, 16))["blurred"]
    expected = exact("torch").load(toy)(inputs(2, 16, 16))["blurred"]
    assert made.dtype == torch.float32
    assert (made - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_network_that_was_not_exported_says_how_to_export_it(name: str, toy: NetworkSource) -> None:
    with pytest.raises(EngineError, match=r"toy has no ONNX file; .*toonstream export"):
        open_engine(name).load(replace(toy, onnx=None))


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_damaged_file_is_named_with_the_way_on(name: str, toy: NetworkSource, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"this is not a graph")
    with pytest.raises(EngineError, match=r"damaged\.onnx.*--engine torch") as error:
        open_engine(name).load(replace(toy, onnx=damaged))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_an_engine_that_is_not_installed_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=f"pip install {name}"):
        open_engine(name)
    report = next(report for report in available_engines() if report.name == name)
    assert (report.version, report.remedy) == (None, f"pip install {name}")


def test_auto_is_openvino_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_engine("auto").name == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_engine().name == "onnxruntime"


def test_auto_is_torch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert open_engine("auto").name == "torch"


@pytest.mark.parametrize(
    ("capability", "full", "meant"),
    [
        ((8, 9), False, "torch+tensorrt-rtx"),
        ((12, 0), True, "torch+tensorrt-rtx"),
        ((9, 0), False, "torch"),  # which TensorRT-RTX is not made for
        ((9, 0), True, "torch+tensorrt"),
        ((7, 0), True, "torch"),
    ],
)
def test_behind_torch_comes_the_tensorrt_that_is_made_for_the_gpu(
    capability: tuple[int, int], full: bool, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX is installed; the full one is, where `full` says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_70"])
    versions = {"tensorrt-rtx": "1.7", "tensorrt": "10.13" if full else None}
    monkeypatch.setattr(Flavour, "version", property(lambda flavour: versions[flavour.name]))
    assert engine_name("auto") == engine_name(meant) == meant
    assert open_engine("auto").name == "torch"
    assert apart(meant) == (meant.partition("+")[0], meant.partition("+")[2] or None)


@pytest.mark.parametrize("name", ["torch+openvino", "openvino+tensorrt-rtx", "torch+"])
def test_nothing_else_comes_behind_anything(name: str) -> None:
    with pytest.raises(EngineError, match="unknown engine"):
        engine_name(name)


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_auto_does_without_the_gpu_where_torch_lacks_what_builds_networks(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a plain install."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))  # that TensorRT-RTX is made for
    monkeypatch.setitem(sys.modules, package, None)
    assert engine_name("auto") == "openvino"
    with pytest.raises(EngineError, match=rf"needs {package}; run `pip install 'toonstream\[export\]'`"):
        open_engine("torch")
    report = next(report for report in available_engines() if report.name == "torch")
    assert report.version is not None
    assert report.remedy == "pip install 'toonstream[export]'"


def test_an_unknown_engine_is_refused_with_the_choices() -> None:
    with pytest.raises(EngineError, match="choose one of auto, openvino, onnxruntime, torch"):
        open_engine("tensorflow")


def test_every_engine_is_reported() -> None:
    reports = available_engines()
    assert [report.name for report in reports] == list(ENGINE_NAMES)
    *others, full = reports
    assert all(report.version and report.remedy is None for report in others)
    assert (full.name, full.remedy) == ("tensorrt", "pip install tensorrt")
    assert "builds for other machines need none" in others[-1].needs
    assert "compute capability 7.5 or newer" in full.needs


def test_engines_that_are_built_ahead_have_to_be_told_shapes() -> None:
    with pytest.raises(EngineError, match="tensorrt-rtx builds for shapes"):
        open_engine("tensorrt-rtx")


def test_openvino_prepares_shapes_ahead(toy: NetworkSource) -> None:
    network = OpenVinoEngine(precision="float32").load(toy)
    given = inputs(1, 8, 8)
    network.prepare(given)
    (request,) = network._requests.values()
    network(given)
    assert list(network._requests.values()) == [request]


def test_openvino_has_the_cores_for_itself() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        open_engine("onnxruntime")
        assert torch.get_num_threads() == 2
        open_engine("openvino")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
