import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors import safe_open

from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.torch import TorchEngine
from toonstream.errors import ModelError
from toonstream.export import onnx as export
from toonstream.export import verify
from toonstream.export.checkpoints import Model, Precision, in_precision, open_model
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.schedulers import make_scheduler

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


@pytest.fixture(scope="session")
def half(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny model, exported in float16."""
    folder = tmp_path_factory.mktemp("half") / "model"
    shutil.copytree(model.path, folder, ignore=shutil.ignore_patterns("*.onnx"))
    written = export.export_model(folder, precision="float16")
    opened = in_precision(open_model(folder), "float16")
    assert written == list(opened.onnx_files.values())
    return opened


def load(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def test_onnx_runtime_computes_what_torch_computes(model: Model) -> None:
    comparisons = list(verify.verify_model(model.path))
    assert {comparison.network for comparison in comparisons} == set(NAMES)
    assert max(comparison.error for comparison in comparisons) < 1e-5


def test_float16_computes_nearly_what_torch_computes(half: Model) -> None:
    comparisons = list(verify.verify_model(half.path, precision="float16"))
    assert {comparison.network for comparison in comparisons} == set(NAMES)
    assert all(comparison.passed for comparison in comparisons)
    assert 1e-5 < max(comparison.error for comparison in comparisons) < 5e-3


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [
        ("unet", "float32", 1e-5),
        ("controlnet_outline", "float16", 1e-2),
        ("vae_encoder", "float32", 1e-5),
        ("vae_decoder", "float16", 1e-2),
    ],
)
def test_networks_of_sd15_export(
    sd15: Model, name: str, precision: Precision, tolerance: float, tmp_path: Path
) -> None:
    (weights,) = sd15.onnx_files[name].parent.glob("*.safetensors")
    path, beside = tmp_path / "x.onnx", tmp_path / weights.name
    shutil.copyfile(weights, beside)
    module = sd15.sources[name].build()
    export.export_network(module, path, beside, precision=precision)
    onnx.checker.check_model(str(path))
    source = replace(sd15.sources[name], onnx=path, build=lambda: module)
    shapes = verify.shapes_for(sd15)
    assert [(shape["h"], shape["w"]) for shape in shapes] == [(8, 8), (8, 16), (24, 16)]
    errors = verify.compare(TorchEngine().load(source), OnnxRuntimeEngine().load(source), shapes[:2])
    assert max(errors.values()) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_float16_is_strongly_typed_and_exact_where_it_matters(half: Model, name: str) -> None:
    exported = onnx.load(half.onnx_files[name], load_external_data=False)
    for value in exported.graph.input:
        exact = value.name in ("timestep", "input_ids")
        assert (value.type.tensor_type.elem_type == TensorProto.FLOAT16) is not exact, value.name
    assert all(value.type.tensor_type.elem_type == TensorProto.FLOAT16 for value in exported.graph.output)
    graph = onnx.shape_inference.infer_shapes(exported, strict_mode=True).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    for node in graph.node:
        made = types[node.output[0]]
        if node.op_type.endswith("Normalization") or node.op_type in ("Sin", "Cos"):
            assert made == TensorProto.FLOAT
        if node.op_type in ("Conv", "Gemm", "MatMul", "Softmax", "Resize", "Erf"):
            assert made == TensorProto.FLOAT16
    assert not any(node.op_type == "Cast" and node.input[0] in held(graph) for node in graph.node)


def test_the_stream_runs_on_float16(model: Model, half: Model) -> None:
    engine = OnnxRuntimeEngine()
    latents = []
    for opened in (model, half):
        names = ("unet", "hint_outline", "controlnet_outline")
        denoiser = Denoiser(
            {name: engine.load(opened.sources[name]) for name in names},
            scheduler=make_scheduler(opened.scheduler_config, kind="ddim", steps=2),
            text=torch.ones(1, 77, 16),
            negative_text=torch.zeros(1, 77, 16),
            settings=DenoiseSettings(
                window=3, stride=2, steps=2, guidance=2.0, controlnet_scales={"outline": 0.5}
            ),
            latent_channels=opened.latent_channels,
        )
        hints = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
        committed = [frame for hint in hints for frame in denoiser.push({"outline": hint})]
        latents.append(torch.stack([frame.latents for frame in [*committed, *denoiser.finish()]]))
    exact, rounded = latents
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 2e-2 * exact.abs().max()


def test_an_anchored_stream_is_the_same_on_every_engine(model: Model) -> None:
    hints = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(7)]
    latents = []
    for engine in (TorchEngine(), OnnxRuntimeEngine(), OpenVinoEngine(precision="float32")):
        names = ("unet", "hint_outline", "controlnet_outline")
        denoiser = Denoiser(
            {name: engine.load(model.sources[name]) for name in names},
            scheduler=make_scheduler(model.scheduler_config, kind="ddim", steps=3),
            text=torch.ones(1, 77, 16),
            negative_text=torch.zeros(1, 77, 16),
            settings=DenoiseSettings(
                window=4, stride=2, steps=3, guidance=2.0, mode="anchored", controlnet_scales={"outline": 0.5}
            ),
            latent_channels=model.latent_channels,
        )
        waits = []
        committed = []
        for hint in hints:
            committed += denoiser.push({"outline": hint})
            waits.append(denoiser.lookahead)
        committed += denoiser.finish()
        assert waits == [1, 2, 3, 0, 1, 0, 1]
        assert [frame.index for frame in committed] == list(range(7))
        assert denoiser.evaluations.unet_frames == 2 * 3 * (4 + 4 + 3)
        assert denoiser.evaluations.controlnet_frames == 2 * 3 * 7
        latents.append(torch.stack([frame.latents for frame in committed]))
    for other in latents[1:]:
        torch.testing.assert_close(other, latents[0], rtol=1e-3, atol=1e-3)


def held(graph: onnx.GraphProto) -> set[str]:
    """The weights that are matrices or kernels: no engine is to keep them in float32."""
    return {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1 and tensor.external_data}


def test_float16_and_float32_share_their_weights(model: Model, half: Model) -> None:
    for name in NAMES:
        one, other = (
            {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
            for graph in (load(model.onnx_files[name]), load(half.onnx_files[name]))
        )
        assert one == other
        assert one


def test_only_what_is_missing_is_exported_where_that_is_asked(model: Model, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model.path, tmp_path / "model"))
    (folder / "vae" / "decoder.onnx").unlink()
    begun: list[str] = []
    written = export.export_model(folder, only_missing=True, started=begun.append)
    assert (begun, written) == (["vae_decoder"], [folder / "vae" / "decoder.onnx"])


def test_exporting_leaves_the_network_as_it_was(model: Model, tmp_path: Path) -> None:
    path = model.onnx_files["vae_decoder"]
    (weights,) = path.parent.glob("*.safetensors")
    module = model.sources["vae_decoder"].build()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in module.named_parameters()}
    export.export_network(module, tmp_path / "x.onnx", weights)
    for name, tensor in module.named_parameters():
        assert (id(tensor), True) == (before[name][0], torch.equal(tensor, before[name][1]))


def test_a_network_that_declares_nothing_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="wrap it first"):
        export.export_network(torch.nn.Linear(1, 1), tmp_path / "x.onnx", tmp_path / "x.safetensors")


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
