from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from safetensors import safe_open

from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.torch import TorchEngine
from toonstream.errors import ModelError
from toonstream.export import onnx as export
from toonstream.export import verify
from toonstream.export.checkpoints import Model

NAMES = (
    "text_encoder",
    "vae_encoder",
    "vae_decoder",
    "unet",
    "hint_outline",
    "controlnet_outline",
    "hint_colour",
    "controlnet_colour",
)


def test_onnx_runtime_computes_what_torch_computes(model: Model) -> None:
    comparisons = verify.verify_model(model.path)
    assert {comparison.network for comparison in comparisons} == set(NAMES)
    assert max(comparison.error for comparison in comparisons) < 1e-5


@pytest.mark.parametrize("name", ["unet", "controlnet_outline", "vae_decoder"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.3)])
def test_openvino_computes_what_torch_computes(
    model: Model, name: str, precision: str, tolerance: float
) -> None:
    source = model.sources[name]
    engine = OpenVinoEngine(precision="bfloat16" if precision == "bfloat16" else "float32")
    errors = verify.compare(TorchEngine().load(source), engine.load(source), verify.SHAPES[1:2])
    assert max(errors.values()) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_pointers_into_the_safetensors_file(model: Model, name: str) -> None:
    path = model.onnx_files[name]
    graph = onnx.load(path, load_external_data=False).graph
    (file,) = path.parent.glob("*.safetensors")
    external = [tensor for tensor in graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    with safe_open(file, "np") as weights:
        stored = set(weights.keys())
        assert {tensor.name for tensor in external} <= stored
        for tensor in external:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == file.name
            begin, length = int(place["offset"]), int(place["length"])
            expected = weights.get_tensor(tensor.name)
            assert file.read_bytes()[begin : begin + length] == expected.tobytes()
            assert tuple(tensor.dims) == expected.shape
    inline = sum(len(t.raw_data) for t in graph.initializer if t.data_location != TensorProto.EXTERNAL)
    assert inline < 4096  # constants only
    assert len(external) > 5


def test_every_weight_of_the_unet_is_shared_under_its_own_name(model: Model) -> None:
    graph = onnx.load(model.onnx_files["unet"], load_external_data=False).graph
    with safe_open(model.path / "unet" / "diffusion_pytorch_model.safetensors", "np") as weights:
        missing = set(weights.keys()) - {tensor.name for tensor in graph.initializer}
    assert all(name.endswith("pos_embed.pe") for name in missing)


def test_axes_stay_free_and_opset_is_one_that_tensorrt_takes(model: Model) -> None:
    loaded = onnx.load(model.onnx_files["unet"], load_external_data=False)
    sample = loaded.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in sample] == ["batch", "frames", 4, "h", "w"]
    assert [entry.version for entry in loaded.opset_import if entry.domain == ""] == [20]


def test_export_is_reproducible(model: Model, tmp_path: Path) -> None:
    for name in ("controlnet_outline", "vae_decoder"):
        path = model.onnx_files[name]
        (weights,) = path.parent.glob("*.safetensors")
        again = tmp_path / path.name
        export.export_network(model.sources[name].build(), again, weights)
        assert again.read_bytes() == path.read_bytes()


def test_weights_of_another_network_are_refused(model: Model, tmp_path: Path) -> None:
    other = model.path / "controlnet_colour" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ModelError, match="is not what the network holds"):
        export.export_network(model.sources["controlnet_outline"].build(), tmp_path / "x.onnx", other)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("command", [export.main, verify.main])
def test_commands_say_what_is_wrong(
    command: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(command)
    assert command([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
