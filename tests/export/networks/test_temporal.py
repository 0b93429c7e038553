"""Motion modules against diffusers' (group norm joint over the frames) and the original's (per frame)."""

import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn
from torch.nn import functional

from toonstream.errors import ModelError
from toonstream.export.networks.temporal import FrameMajorMotion


@pytest.fixture(scope="module")
def original_forward() -> Any:
    """The original's computation; tests are no package and have no import path of their own."""
    spec = spec_from_file_location("animatediff", Path(__file__).parents[1] / "animatediff.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.original_forward


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.inference_mode():
        yield


def motion_module(channels: int, *, heads: int = 8, groups: int = 32, blocks: int = 1, **other: Any) -> Any:
    """A module as diffusers' motion adapters have it, with nothing left at zero."""
    torch.manual_seed(channels)
    module = AnimateDiffTransformer3D(
        num_attention_heads=heads,
        attention_head_dim=channels // heads,
        in_channels=channels,
        num_layers=blocks,
        norm_num_groups=groups,
        **{
            "cross_attention_dim": None,
            "activation_fn": "geglu",
            "attention_bias": False,
            "double_self_attention": True,
            "positional_embeddings": "sinusoidal",
            "num_positional_embeddings": 32,
            **other,
        },
    )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module.eval()


# Narrow: attention by pairs. Wide: by products, as in AnimateDiff's own sizes.
LAYOUTS = [{"channels": 32}, {"channels": 320}, {"channels": 64, "blocks": 2}, {"channels": 256, "blocks": 2}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (2, 16), (1, 32)])
def test_joint_norm_is_what_diffusers_computes(layout: dict[str, int], batch: int, frames: int) -> None:
    module = motion_module(**layout)
    hidden = torch.randn(batch * frames, layout["channels"], 2, 3)
    expected = module(hidden, num_frames=frames)
    actual = FrameMajorMotion(module, norm="joint")(hidden, num_frames=frames)
    assert (expected - hidden).abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (2, 16), (1, 32)])
def test_frame_norm_is_what_the_original_computes(
    original_forward: Any, layout: dict[str, int], batch: int, frames: int
) -> None:
    module = motion_module(**layout)
    # Frames of different spread, so that it matters what the norm is over.
    hidden = torch.randn(batch * frames, layout["channels"], 2, 3)
    hidden *= torch.linspace(0.2, 3.0, batch * frames).reshape(-1, 1, 1, 1)
    expected = original_forward(module, hidden, frames)
    actual = FrameMajorMotion(module, norm="frame")(hidden, num_frames=frames)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    if frames > 1:
        joint = FrameMajorMotion(module, norm="joint")(hidden, num_frames=frames)
        assert (joint - expected).abs().max() > 0.1


def test_one_attention_and_biases_are_taken_too() -> None:
    module = motion_module(48, heads=4, groups=16, double_self_attention=False, attention_bias=True)
    hidden = torch.randn(5, 48, 2, 2)
    actual = FrameMajorMotion(module)(hidden, num_frames=5)
    torch.testing.assert_close(actual, module(hidden, num_frames=5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "other",
    [
        {"activation_fn": "gelu"},
        {"positional_embeddings": None},
        {"cross_attention_dim": 8, "double_self_attention": False},
    ],
    ids=str,
)
def test_other_modules_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="not AnimateDiff's"):
        FrameMajorMotion(motion_module(32, **other))


def test_an_unknown_norm_is_refused() -> None:
    norm: Any = "window"
    with pytest.raises(ModelError, match="use joint"):
        FrameMajorMotion(motion_module(32), norm=norm)


def test_many_pixels_attend_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's grid has an end: the paper's 1536² has 2 × 192² pixels in its widest layer."""
    module = FrameMajorMotion(motion_module(256))
    hidden = torch.randn(6, 256, 3, 5)
    whole = module(hidden, num_frames=3)
    attended: list[int] = []
    attend = functional.scaled_dot_product_attention

    def watch(query: Tensor, *others: Tensor, **named: float) -> Tensor:
        attended.append(len(query))
        return attend(query, *others, **named)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watch)
    monkeypatch.setattr("toonstream.export.networks.temporal._MOST_PIXELS", 12)
    torch.testing.assert_close(module(hidden, num_frames=3), whole, rtol=1e-6, atol=1e-6)
    assert attended == [12, 12, 6] * 2


def test_a_graph_attends_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FrameMajorMotion(motion_module(256))

    def exported() -> bytes:
        path = tmp_path / "motion.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                (torch.randn(2, 256, 3, 5), None, None, None, 2),
                path,
                dynamo=False,
                opset_version=20,
                input_names=["hidden"],
                dynamic_axes={"hidden": {2: "h", 3: "w"}},
            )
        return path.read_bytes()

    whole = exported()
    monkeypatch.setattr("toonstream.export.networks.temporal._MOST_PIXELS", 4)
    assert exported() == whole
