"""Annotators: published names, what they compute, and their way from a model folder into an engine."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from toonstream.config import Settings
from toonstream.engines.build import BuildJob, run_build
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.torch import TorchEngine
from toonstream.errors import ModelError
from toonstream.export.annotators import make_annotator
from toonstream.export.checkpoints import Model, in_precision, open_model
from toonstream.export.networks.annotators.annotator import Annotator
from toonstream.export.networks.annotators.depth import DepthAnything
from toonstream.export.onnx import export_network
from toonstream.export.shapes import Envelope, declared_inputs
from toonstream.export.verify import compare
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditions
from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import load_stylizer

CPU = torch.device("cpu")
TINY_OUTLINE = {"model_type": "informative_drawings", "width": 4}
TINY_SOFTEDGE = {"model_type": "hed", "widths": [3, 4, 4, 6, 6]}


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.inference_mode():
        yield


def depth_folder(folder: Path) -> Path:
    """A tiny Depth Anything as transformers writes it, in float16, with weights that are worth comparing."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=56,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 12, 16, 20],
        fusion_hidden_size=8,
        head_hidden_size=4,
    )
    network = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.5 if parameter.ndim == 1 else (2.0 / parameter[0].numel()) ** 0.5
            parameter.copy_(torch.randn_like(parameter) * spread)
    network.half().save_pretrained(folder)
    return folder


def random_folder(config: dict[str, Any], folder: Path) -> Path:
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = make_annotator(config).network.state_dict()
    save_file({name: torch.randn_like(value).mul(0.2).half() for name, value in weights.items()},
              folder / "model.safetensors")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def annotated(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The tiny model with one annotator of each kind, in the layouts in which they are published."""
    folder = Path(shutil.copytree(model.path, tmp_path_factory.mktemp("annotated") / "model"))
    random_folder(TINY_OUTLINE, folder / "annotators" / "outline")
    random_folder(TINY_SOFTEDGE, folder / "annotators" / "softedge")
    depth_folder(folder / "annotators" / "depth")
    opened = open_model(folder)
    for name in ("outline", "softedge", "depth"):
        source = opened.sources[f"annotator_{name}"]
        assert source.onnx is None
        path = opened.onnx_files[source.name]
        export_network(source.build(), path, path.with_name("model.safetensors"))
    return open_model(folder)


@pytest.mark.parametrize("name", ["outline", "softedge", "depth"])
def test_onnx_runtime_draws_what_torch_draws(annotated: Model, name: str) -> None:
    source = annotated.sources[f"annotator_{name}"]
    shapes = [{"batch": 1, "h": 5, "w": 5}, {"batch": 2, "h": 4, "w": 9}, {"batch": 1, "h": 12, "w": 3}]
    errors = compare(TorchEngine().load(source), OnnxRuntimeEngine().load(source), shapes)
    assert errors.keys() == {"hint"}
    assert errors["hint"] < 1e-4


@pytest.fixture(scope="module")
def half(annotated: Model) -> Model:
    """The same in float16, for TensorRT."""
    model = in_precision(annotated, "float16")
    for name in ("outline", "softedge", "depth"):
        path = model.onnx_files[f"annotator_{name}"]
        module = model.sources[f"annotator_{name}"].build()
        export_network(module, path, path.with_name("model.safetensors"), precision="float16")
    return in_precision(open_model(annotated.path), "float16")


@pytest.mark.parametrize("name", ["outline", "softedge", "depth"])
def test_in_half_precision_they_draw_nearly_the_same(annotated: Model, half: Model, name: str) -> None:
    source = annotated.sources[f"annotator_{name}"]
    exact = TorchEngine(device=CPU).load(source)
    image = torch.rand(1, 3, 40, 72)
    expected = exact({"image": image})["hint"]
    in_file = OnnxRuntimeEngine().load(half.sources[f"annotator_{name}"])({"image": image})["hint"]
    assert (in_file.float() - expected).abs().mean() < 2e-2
    eagerly = TorchEngine(device=CPU, dtype=torch.bfloat16).load(source)({"image": image})["hint"]
    assert (eagerly - expected).abs().mean() < 0.1  # bfloat16 stands in for float16


@pytest.mark.parametrize("name", ["outline", "softedge", "depth"])
def test_they_build_into_engines(half: Model, tmp_path: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    source = half.sources[f"annotator_{name}"]
    assert source.onnx is not None
    envelope = Envelope(size=(72, 48), smallest=(48, 48), largest=(96, 96), window=4, stride=2)
    shapes = envelope.triples(source.name, declared_inputs(source.onnx))
    job = BuildJob(label=name, flavour="tensorrt-rtx", onnx=source.onnx, shapes=shapes, capability=(8, 9))
    run_build(job, tmp_path / "engine")
    assert (tmp_path / "engine").stat().st_size > 0


@pytest.mark.parametrize("name", ["outline", "softedge", "depth"])
@pytest.mark.parametrize("size", [(40, 40), (32, 88)])
def test_a_hint_is_grey_in_range_and_of_the_pictures_size(
    annotated: Model, name: str, size: tuple[int, int]
) -> None:
    network = TorchEngine(device=torch.device("cpu")).load(annotated.sources[f"annotator_{name}"])
    hint = network({"image": torch.rand(2, 3, *size)})["hint"]
    assert hint.shape == (2, 3, *size)
    assert torch.equal(hint[:, 0], hint[:, 2])
    assert hint.min() >= 0
    assert hint.max() <= 1
    assert hint.std() > 1e-3


def published(annotator: Annotator) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in annotator.network.state_dict().items()}


def test_the_outline_network_has_the_layers_of_sk_model() -> None:
    layers = {"model0.1": (64, 3, 7, 7), "model1.0": (128, 64, 3, 3), "model1.3": (256, 128, 3, 3)}
    for block in range(3):
        layers |= {f"model2.{block}.conv_block.{index}": (256, 256, 3, 3) for index in (1, 5)}
    layers |= {"model3.0": (256, 128, 3, 3), "model3.3": (128, 64, 3, 3), "model4.1": (1, 64, 7, 7)}
    shapes = published(make_annotator({"model_type": "informative_drawings"}))
    assert {name: shapes[f"{name}.weight"] for name in layers} == layers
    assert len(shapes) == 2 * len(layers)  # a bias each; the norms learn nothing


def test_the_softedge_network_has_the_layers_of_controlnet_hed() -> None:
    shapes = published(make_annotator({"model_type": "hed"}))
    assert shapes.pop("norm") == (1, 3, 1, 1)
    assert len(shapes) == 2 * (13 + 5)
    assert shapes["block1.convs.0.weight"] == (64, 3, 3, 3)
    assert shapes["block3.convs.2.weight"] == (256, 256, 3, 3)
    assert shapes["block5.convs.0.weight"] == (512, 512, 3, 3)
    assert shapes["block4.projection.weight"] == (1, 512, 1, 1)


def test_the_depth_network_has_the_layers_of_depth_anything_small() -> None:
    backbone = {"model_type": "dinov2", "hidden_size": 384, "image_size": 518, "num_attention_heads": 6}
    backbone["out_features"] = ["stage3", "stage6", "stage9", "stage12"]
    shapes = published(make_annotator({"model_type": "depth_anything", "backbone_config": backbone}))
    assert shapes["backbone.embeddings.position_embeddings"] == (1, 37 * 37 + 1, 384)
    assert shapes["backbone.encoder.layer.11.attention.output.dense.weight"] == (384, 384)
    assert shapes["neck.reassemble_stage.layers.0.resize.weight"] == (48, 48, 4, 4)
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == pytest.approx(24.8e6, rel=0.01)


def test_outlines_are_the_inverse_of_the_published_networks_drawing(annotated: Model) -> None:
    """Against the published architecture, written out as what it is: a plain sequence with three detours."""
    weights = load_file(annotated.path / "annotators" / "outline" / "model.safetensors")

    def convolve(picture: Tensor, name: str, pad: int = 0, **more: Any) -> Tensor:
        weight, bias = weights[f"{name}.weight"].float(), weights[f"{name}.bias"].float()
        apply = functional.conv_transpose2d if "output_padding" in more else functional.conv2d
        return apply(functional.pad(picture, (pad,) * 4, "reflect") if pad else picture, weight, bias, **more)

    def settle(picture: Tensor) -> Tensor:
        return functional.instance_norm(picture).relu()

    image = torch.rand(1, 3, 24, 32)
    drawn = settle(convolve(image, "model0.1", 3))
    for name in ("model1.0", "model1.3"):
        drawn = settle(convolve(drawn, name, stride=2, padding=1))
    for block in range(3):
        change = settle(convolve(drawn, f"model2.{block}.conv_block.1", 1))
        drawn = drawn + functional.instance_norm(convolve(change, f"model2.{block}.conv_block.5", 1))
    for name in ("model3.0", "model3.3"):
        drawn = settle(convolve(drawn, name, stride=2, padding=1, output_padding=1))
    drawn = convolve(drawn, "model4.1", 3).sigmoid()
    (hint,) = cast(Annotator, annotated.sources["annotator_outline"].build())(image)
    torch.testing.assert_close(hint[:, :1], 1 - drawn)


def test_soft_edges_are_the_sigmoid_of_the_mean_opinion(annotated: Model) -> None:
    weights = load_file(annotated.path / "annotators" / "softedge" / "model.safetensors")
    weights = {name: value.float() for name, value in weights.items()}
    image = torch.rand(1, 3, 48, 32)
    features, opinions = image * 255 - weights["norm"], []
    for block, count in enumerate((2, 2, 3, 3, 3), start=1):
        if block > 1:
            features = functional.max_pool2d(features, 2, 2)
        for index in range(count):
            name = f"block{block}.convs.{index}"
            bias = weights[f"{name}.bias"]
            features = functional.conv2d(features, weights[f"{name}.weight"], bias, padding=1).relu()
        name = f"block{block}.projection"
        opinion = functional.conv2d(features, weights[f"{name}.weight"], weights[f"{name}.bias"])
        opinions.append(functional.interpolate(opinion, (48, 32), mode="bilinear"))
    (hint,) = cast(Annotator, annotated.sources["annotator_softedge"].build())(image)
    torch.testing.assert_close(hint[:, :1], torch.stack(opinions).mean(0).sigmoid())


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (4, 7), (9, 4)])
def test_depth_is_as_transformers_computes_it(annotated: Model, rows: int, columns: int) -> None:
    from transformers import DepthAnythingForDepthEstimation

    folder = annotated.path / "annotators" / "depth"
    theirs: Any = DepthAnythingForDepthEstimation.from_pretrained(folder, torch_dtype=torch.float32).eval()
    ours = cast(Annotator, annotated.sources["annotator_depth"].build())
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 14 * rows, 14 * columns)
    expected = theirs(pixels).predicted_depth
    assert expected.std() > 1e-3  # random weights leave much of it at zero
    predicted = cast(DepthAnything, ours.network).predict(pixels, rows, columns)
    torch.testing.assert_close(predicted[:, 0], expected, rtol=0, atol=1e-5 * float(expected.max()))

    image = torch.rand(1, 3, 14 * rows, 14 * columns)  # of the size that the network sees: nothing is resized
    normal = (image - torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).reshape(3, 1, 1)
    depth = theirs(normal).predicted_depth
    depth = (depth - depth.min()) / (depth.max() - depth.min())
    torch.testing.assert_close(ours(image)[0][:, 0], depth, rtol=0, atol=1e-4)


def test_depth_of_a_flat_picture_is_no_noise(annotated: Model) -> None:
    class Flat(nn.Module):
        def forward(self, pixels: Tensor, *grid: int) -> Tensor:
            return torch.ones(len(pixels), 1, 14, 14)

    network = cast(DepthAnything, cast(Annotator, annotated.sources["annotator_depth"].build()).network)
    network.predict = Flat()  # type: ignore[method-assign, assignment]
    assert network(torch.rand(1, 3, 16, 16)).abs().max() == 0


def change_config(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("outline", {"model_type": "canny"}, r"no annotator 'canny'; use one of informative_drawings, hed"),
        ("outline", {"width": 8}, r"does not fit its config\.json"),
        ("outline", {"residual_blocks": 4}, r"lacks 4 tensors, such as model2\.3\.conv_block"),
        ("softedge", {"levels": 5}, "does not describe one"),
        ("depth", {"depth_estimation_type": "metric"}, "use Depth-Anything-V2-Small"),
        ("depth", {"backbone_config": {"model_type": "swin"}}, "use Depth-Anything-V2-Small"),
        (
            "depth",
            {"backbone_config": {"model_type": "dinov2", "hidden_size": 12}},
            "does not describe one .'out_features'",
        ),
    ],
)
def test_other_networks_are_refused(
    annotated: Model, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    copy = Path(shutil.copytree(annotated.path, tmp_path / "copy"))
    change_config(copy / "annotators" / name, **change)
    with pytest.raises(ModelError, match=message):
        open_model(copy).sources[f"annotator_{name}"].build()


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _other_weights(folder: Path) -> None:
    save_file({"model0.1.weight": torch.zeros(1)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_no_weights, "annotators/softedge/model.safetensors missing"), (_other_weights, "lacks 37 tensors")],
)
def test_missing_weights_are_named(
    annotated: Model, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = Path(shutil.copytree(annotated.path, tmp_path / "copy"))
    damage(copy / "annotators" / "softedge")
    with pytest.raises(ModelError, match=message):
        open_model(copy).sources["annotator_softedge"].build()


def test_a_stream_draws_its_hints_with_the_models_annotators(annotated: Model, tmp_path: Path) -> None:
    """Of a model whose second ControlNet wants depth instead of colour, with a prompt of two chunks."""
    copy = Path(shutil.copytree(annotated.path, tmp_path / "copy"))
    (copy / "controlnet_colour").rename(copy / "controlnet_depth")
    index = json.loads((copy / "model_index.json").read_text())
    index["controlnet_depth"] = index.pop("controlnet_colour")
    (copy / "model_index.json").write_text(json.dumps(index))
    settings = json.loads((copy / "toonstream.json").read_text())
    settings |= {"controlnets": {"outline": 1.0, "depth": 1.0}, "guidance": 2.0, "prompt": "(cat:1.2) " * 80}
    (copy / "toonstream.json").write_text(json.dumps(settings))
    model = open_model(copy)
    assert model.annotators == ("depth", "outline", "softedge")

    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    frames = [Frame(index=index, pts=index, time_base=Fraction(1, 25), image=image) for index in range(3)]
    stopwatch = Stopwatch()
    stylizer = load_stylizer(
        model, Settings().resolve(model.defaults), engine=OnnxRuntimeEngine(), stopwatch=stopwatch
    )
    conditions = Conditions(
        model.defaults.controlnets, size=(56, 40), multiple=model.size_multiple, annotated=model.annotators
    )
    toons = [toon for frame in frames for toon in stylizer.push(conditions(frame))] + [*stylizer.finish()]
    assert [toon.toon.image.shape for toon in toons] == [(40, 56, 3)] * 3
    assert stopwatch.seconds.keys() >= {"annotator_outline", "annotator_depth", "unet"}
    assert "annotator_softedge" not in stopwatch.seconds
