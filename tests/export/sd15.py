"""Random checkpoints shaped as Stable Diffusion 1.5's, AnimateDiff's and ControlNet's are, but narrow.

Four levels, cross-attention at three of them, two layers a block, a full autoencoder, motion modules with or
without one in the middle. Layers that are zero before training are made random: they would hide mistakes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHANNELS = (16, 24, 32, 32)
TEXT_WIDTH = 24
HEADS = 4
GROUPS = 8
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "clip_sample": False,
    "set_alpha_to_one": True,
}
_DOWN = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")


def random_unet() -> Any:
    """A `UNet2DConditionModel`."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=CHANNELS,
        down_block_types=_DOWN,
        up_block_types=_UP,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,
        norm_num_groups=GROUPS,
    )
    return awakened(unet)


def random_motion_unet(unet: Any, *, mid: bool = True) -> Any:
    """The same with motion modules, as AnimateDiff joins the two."""
    from diffusers import MotionAdapter, UNetMotionModel

    adapter = MotionAdapter(
        block_out_channels=CHANNELS,
        motion_num_attention_heads=HEADS,
        motion_norm_num_groups=GROUPS,
        use_motion_mid_block=mid,
    )
    return awakened(UNetMotionModel.from_unet2d(unet, awakened(adapter)))


def random_controlnet(unet: Any) -> Any:
    """A `ControlNetModel` for it, as training begins them: with the UNet's own encoder."""
    from diffusers import ControlNetModel

    return awakened(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8)))


def random_vae() -> Any:
    """An `AutoencoderKL`."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=GROUPS,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    return awakened(vae)


def awakened(network: Any) -> Any:
    """Make what is zero random, and all of it exactly representable in float16, as the files store it."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
        parameter.data = parameter.data.half().float()
    return network.eval().requires_grad_(False)


def write_model(folder: Path, *, seed: int = 0, motion_norm: str = "joint", mid: bool = True) -> Path:
    """Write a model folder of them, float16, without a text encoder that could read anything."""
    torch.manual_seed(seed)
    unet = random_unet()
    controlnets = {name: random_controlnet(unet) for name in ("outline", "colour")}
    networks = {"unet": random_motion_unet(unet, mid=mid), "vae": random_vae()}
    networks |= {f"controlnet_{name}": network for name, network in controlnets.items()}
    for name, network in networks.items():
        network.to(torch.float16).save_pretrained(folder / name)
    index = {"_class_name": "AnimateDiffControlNetPipeline"}
    _write(folder / "model_index.json", index | {name: ["diffusers", ""] for name in networks})
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write(
        folder / "toonstream.json",
        {
            "name": "sd15",
            "prompt": "",
            "steps": 3,
            "window": 4,
            "stride": 2,
            "guidance": 7.0,
            "controlnets": {"outline": 0.5, "colour": 0.5},
            "motion_norm": motion_norm,
        },
    )
    _write_text(folder)
    return folder


def _write_text(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        vocab_size=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    CLIPTextModel(config).half().save_pretrained(folder / "text_encoder")
    _write(folder / "tokenizer" / "tokenizer.json", {})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))
