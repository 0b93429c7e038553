"""Every wrapper against the diffusers or transformers network inside it."""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNetMotionModel
from torch import Tensor
from transformers import CLIPTextModel

from toonstream.errors import ModelError
from toonstream.export.checkpoints import Model
from toonstream.export.networks import temporal
from toonstream.export.networks.base import TensorModule, axis_length, random_inputs
from toonstream.export.networks.controlnet import ControlNet
from toonstream.export.networks.unet import MotionUnet
from toonstream.export.networks.vae import VaeDecoder, VaeEncoder


def ours(model: Model, name: str) -> TensorModule:
    return cast(TensorModule, model.sources[name].build())


def theirs(kind: Any, folder: Path) -> Any:
    return kind.from_pretrained(folder, torch_dtype=torch.float32, low_cpu_mem_usage=False).eval()


def close(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3  # a test on zeros would say nothing
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 1, "frames": 1, "h": 4, "w": 8},
        {"batch": 1, "frames": 5, "h": 8, "w": 4},
        {"batch": 2, "frames": 3, "h": 4, "w": 4},
    ],
)
def test_unet(model: Model, sizes: dict[str, int]) -> None:
    inputs = random_inputs(ours(model, "unet").inputs, sizes)
    sample, timestep, text, *residuals = inputs.values()
    *down, mid = (residual.flatten(0, 1) for residual in residuals)
    expected = theirs(UNetMotionModel, model.path / "unet")(
        sample.transpose(1, 2),
        timestep,
        text.repeat_interleave(sizes["frames"], 0),
        down_block_additional_residuals=tuple(down),
        mid_block_additional_residual=mid,
    ).sample.transpose(1, 2)
    (output,) = ours(model, "unet")(*inputs.values())
    close(output, expected)


def test_frames_and_residuals_reach_the_unet_output(model: Model) -> None:
    """The parity above would not be worth much if the motion modules or the residuals did nothing."""
    unet = ours(model, "unet")
    inputs = random_inputs(unet.inputs, {"batch": 1, "frames": 3, "h": 4, "w": 4})
    (before,) = unet(*inputs.values())
    for name in [*unet.input_names[3:], "sample"]:
        changed = {**inputs, name: inputs[name].clone()}
        changed[name][:, 2] += 1.0  # the last frame's
        (after,) = unet(*changed.values())
        assert (after[:, 0] - before[:, 0]).abs().max() > 1e-6, name


@pytest.mark.parametrize("name", ["outline", "colour"])
def test_controlnet(model: Model, name: str) -> None:
    network = theirs(ControlNetModel, model.path / f"controlnet_{name}")
    hint_embedding, controlnet = ours(model, f"hint_{name}"), ours(model, f"controlnet_{name}")
    hint = torch.rand(2, 3, 32, 64)
    inputs = random_inputs(controlnet.inputs, {"batch": 2, "h": 4, "w": 8})
    inputs["timestep"] = torch.tensor([999.0, 12.5])
    (inputs["embedding"],) = hint_embedding(hint)
    residuals = controlnet(*inputs.values())
    down, mid = network(inputs["sample"], inputs["timestep"], inputs["text"], hint, return_dict=False)
    for residual, expected in zip(residuals, [*down, mid], strict=True):
        close(residual, expected)


def test_vae(model: Model) -> None:
    network = theirs(AutoencoderTiny, model.path / "vae")
    image, latents = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(1, 4, 3, 2)
    close(ours(model, "vae_encoder")(image)[0], network.encode(image).latents)
    close(ours(model, "vae_decoder")(latents)[0], network.decode(latents).sample)


def test_full_vae(sd15: Model) -> None:
    network = theirs(AutoencoderKL, sd15.path / "vae")
    image, latents = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(1, 4, 3, 2)
    close(ours(sd15, "vae_encoder")(image)[0], network.encode(image).latent_dist.mean)
    close(ours(sd15, "vae_decoder")(latents)[0], network.decode(latents).sample)


def test_a_full_vae_without_quantisation_convolutions() -> None:
    network = AutoencoderKL(norm_num_groups=8, block_out_channels=(8,), use_quant_conv=False).eval()
    image, latents = torch.rand(1, 3, 8, 8) * 2 - 1, torch.randn(1, 4, 4, 4)
    close(VaeEncoder(deepcopy(network))(image)[0], network.encode(image).latent_dist.mean)
    close(VaeDecoder(deepcopy(network))(latents)[0], network.decode(latents, return_dict=False)[0])


def test_a_unet_without_motion_modules_sees_each_frame_by_itself(sd15_networks: Any) -> None:
    network = sd15_networks.random_unet()
    wrapped = MotionUnet(deepcopy(network))
    inputs = random_inputs(wrapped.inputs, {"batch": 2, "frames": 3, "h": 8, "w": 8, "tokens": 154})
    sample, timestep, text, *residuals = inputs.values()
    *down, mid = (residual.flatten(0, 1) for residual in residuals)
    expected = network(
        sample.flatten(0, 1),
        timestep.repeat_interleave(3),
        text.repeat_interleave(3, 0),
        down_block_additional_residuals=tuple(down),
        mid_block_additional_residual=mid,
    ).sample
    close(wrapped(*inputs.values())[0].flatten(0, 1), expected)


def test_text_encoder(model: Model) -> None:
    ids = torch.randint(10, (2, 77))
    expected = theirs(CLIPTextModel, model.path / "text_encoder")(ids).last_hidden_state
    close(ours(model, "text_encoder")(ids)[0], expected)


def test_shapes_are_as_declared(model: Model) -> None:
    sizes = {"batch": 2, "frames": 3, "h": 8, "w": 4}
    for name, source in model.sources.items():
        module = cast(TensorModule, source.build())
        outputs = module(*random_inputs(module.inputs, sizes).values())
        for declared, tensor in zip(module.outputs, outputs, strict=True):
            shape = tuple(axis_length(axis, sizes) for axis in declared.shape)
            assert tensor.shape == shape, (name, declared.name)
            assert tensor.dtype == declared.dtype


def test_injected_motion_modules_can_be_ejected(model: Model) -> None:
    unet = theirs(UNetMotionModel, model.path / "unet")
    names, modules = list(unet.state_dict()), [str(module) for module in unet.modules()]
    temporal.inject(unet)
    replaced = [module for module in unet.modules() if isinstance(module, temporal.FrameMajorMotion)]
    assert len(replaced) == len(unet.config.block_out_channels) * 3 + 1
    assert list(unet.state_dict()) == names
    temporal.eject(unet)
    assert [str(module) for module in unet.modules()] == modules


@pytest.mark.parametrize(
    ("wrapper", "config"),
    [
        (MotionUnet, {"addition_embed_type": "text_time", "encoder_hid_dim_type": None}),
        (MotionUnet, {"addition_embed_type": None, "encoder_hid_dim_type": "ip_image_proj"}),
        (ControlNet, {"addition_embed_type": "text_time", "class_embed_type": None}),
        (
            ControlNet,
            {"addition_embed_type": None, "class_embed_type": None, "global_pool_conditions": True},
        ),
    ],
)
def test_networks_of_other_families_are_refused(wrapper: Any, config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="; use "):
        wrapper(SimpleNamespace(config=SimpleNamespace(**config)))
