"""Files in their original layouts: what we read out of them is what diffusers reads out of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from toonstream.errors import ModelError
from toonstream.export.parts import networks
from toonstream.export.parts.layouts import motion_layouts
from toonstream.export.parts.match import match
from toonstream.export.parts.networks import Skeleton
from toonstream.export.parts.weights import open_weights

NAMES = ("unet", "controlnet", "vae", "text_encoder", "motion")


def by_diffusers(name: str, small: Any) -> Any:
    from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextModel

    offline = {"local_files_only": True}
    match name:
        case "unet":
            unet, config = UNet2DConditionModel, str(small.folder)
            return unet.from_single_file(str(small.single), config=config, subfolder="unet", **offline)
        case "controlnet":
            file = str(small.original["controlnet"])
            return ControlNetModel.from_single_file(file, config=str(small.controlnet), **offline)
        case "vae":
            return AutoencoderKL.from_single_file(str(small.single), config=str(small.vae), **offline)
        case "motion":
            file = str(small.original["motion"])
            return MotionAdapter.from_single_file(file, config=str(small.motion), **offline)
    tensors = load_file(small.single)
    options = {"subfolder": "text_encoder", "config": str(small.folder), **offline}
    return create_diffusers_clip_model_from_ldm(CLIPTextModel, tensors, **options)


def file_of(name: str, small: Any) -> Path:
    path: Path = small.original[name] if name in ("controlnet", "motion") else small.single
    return path


def skeleton(name: str, small: Any) -> Skeleton:
    weights = open_weights(file_of(name, small))
    match name:
        case "unet":
            config = networks.read_config(small.folder / "unet" / "config.json", name)
            return networks.unet(config, None, weights=weights)
        case "text_encoder":
            return networks.text_encoder(
                networks.read_config(small.folder / name / "config.json", "text_encoder")
            )
        case "motion":
            shapes = {key: tuple(value.shape) for key, value in small.networks[name].state_dict().items()}
            return Skeleton(
                what="motion", config={}, save=Path.exists, shapes=shapes, layouts=motion_layouts()
            )
    config = networks.read_config(getattr(small, name) / "config.json", name)
    build = networks.controlnet if name == "controlnet" else networks.vae
    return build(config, weights=weights)


@pytest.mark.parametrize("name", NAMES)
def test_original_files_hold_what_diffusers_finds_in_them(name: str, small: Any) -> None:
    wanted = skeleton(name, small)
    weights = open_weights(file_of(name, small))
    found = match(weights, wanted.shapes, wanted.layouts, what=name)
    expected = {
        key.removeprefix("text_model."): value
        for key, value in by_diffusers(name, small).state_dict().items()
    }
    assert found.keys() == expected.keys()
    assert len(set(found.values())) == len(found)
    for key, there in found.items():
        assert torch.equal(weights[there].reshape(expected[key].shape), expected[key]), key


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("controlnet", "control_model."), ("vae", "first_stage_model."), ("motion", "module.")],
)
def test_prefixes_may_be_there_or_not(name: str, prefix: str, small: Any, tmp_path: Path) -> None:
    wanted = skeleton(name, small)
    tensors = load_file(small.original[name])
    changed = {key.removeprefix(prefix) if key.startswith(prefix) else prefix + key for key in tensors}
    assert changed != set(tensors)
    path = tmp_path / "changed.safetensors"
    save_file(dict(zip(sorted(changed), map(tensors.get, sorted(tensors)), strict=True)), path)
    weights, before = open_weights(path), open_weights(small.original[name])
    found = match(weights, wanted.shapes, wanted.layouts, what=name)
    for key, there in match(before, wanted.shapes, wanted.layouts, what=name).items():
        assert torch.equal(weights[found[key]], before[there])


def test_autoencoders_of_old_diffusers_load(small: Any, tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    new = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    tensors = {}
    for key, value in small.networks["vae"].state_dict().items():
        for old, name in new.items():
            key = key.replace(f"attentions.0.{name}.", f"attentions.0.{old}.")
        tensors[key] = value
    folder = tmp_path / "vae"
    small.networks["vae"].save_config(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    wanted = skeleton("vae", small)
    found = match(open_weights(path), wanted.shapes, wanted.layouts, what="vae")
    for key, value in AutoencoderKL.from_pretrained(folder).state_dict().items():
        assert torch.equal(tensors[found[key]], value)


def test_a_missing_tensor_is_named(small: Any, tmp_path: Path) -> None:
    tensors = load_file(small.single)
    for key in ("model.diffusion_model.out.2.bias", "model.diffusion_model.time_embed.0.weight"):
        del tensors[key]
    path = tmp_path / "broken.safetensors"
    save_file(tensors, path)
    wanted = skeleton("unet", small)
    with pytest.raises(ModelError) as error:
        match(open_weights(path), wanted.shapes, wanted.layouts, what="a UNet")
    assert "lacks 2 of the" in str(error.value)
    assert "model.diffusion_model.out.2.bias, model.diffusion_model.time_embed.0.weight)" in str(error.value)
    assert "looks like a whole checkpoint" in str(error.value)


def test_a_tensor_of_another_shape_is_named(small: Any, tmp_path: Path) -> None:
    tensors = load_file(small.single)
    key = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[key] = torch.zeros(8, 9, 3, 3)
    path = tmp_path / "inpainting.safetensors"
    save_file(tensors, path)
    wanted = skeleton("unet", small)
    with pytest.raises(ModelError, match=r"input_blocks\.0\.0\.weight is \[8, 9, 3, 3\] .* for inpainting"):
        match(open_weights(path), wanted.shapes, wanted.layouts, what="a UNet")
