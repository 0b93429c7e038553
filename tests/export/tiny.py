"""A model folder with random weights, of the shipped model's layout and a fraction of its size."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

CHANNELS = (16, 24, 32)
TEXT_WIDTH = 16
LATENT_CHANNELS = 4
_VOCABULARY = (
    "<|startoftext|>",
    "<|endoftext|>",
    "a",
    "cat",
    "hosoda",
    "ink",
    "lines",
    "style",
    "thick",
    "warm",
)


def write_model(folder: Path) -> Path:
    """Write the model folder (float16 safetensors, no ONNX files), with a fixed seed."""
    from diffusers import AutoencoderTiny, ControlNetModel, UNetMotionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "in_channels": LATENT_CHANNELS,
        "block_out_channels": CHANNELS,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT_WIDTH,
    }
    unet = UNetMotionModel(
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlockMotion", "DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion", "UpBlockMotion"),
        num_attention_heads=2,
        motion_num_attention_heads=2,
        **shape,
    )
    _save(unet, folder / "unet")
    for name in ("outline", "colour"):
        controlnet = ControlNetModel(
            down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            attention_head_dim=2,
            conditioning_embedding_out_channels=(4, 4, 8, 8),
            **shape,
        )
        _save(controlnet, folder / f"controlnet_{name}")
    vae = AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    _save(vae, folder / "vae")
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=TEXT_WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            vocab_size=len(_VOCABULARY),
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    _save(text, folder / "text_encoder")
    _write_tokenizer(folder / "tokenizer")
    _write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "linear",
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "clip_sample": False,
            "set_alpha_to_one": True,
        },
    )
    _write_json(
        folder / "model_index.json",
        {
            "_class_name": "AnimateDiffControlNetPipeline",
            "text_encoder": ["transformers", "CLIPTextModel"],
            "unet": ["diffusers", "UNetMotionModel"],
            "vae": ["diffusers", "AutoencoderTiny"],
            "controlnet_outline": ["diffusers", "ControlNetModel"],
            "controlnet_colour": ["diffusers", "ControlNetModel"],
        },
    )
    _write_json(
        folder / "toonstream.json",
        {
            "name": "tiny",
            "prompt": "hosoda style",
            "negative_prompt": "",
            "steps": 2,
            "window": 4,
            "stride": 2,
            "guidance": 1.0,
            "scheduler": "ddim",
            "controlnets": {"outline": 1.0, "colour": 1.0},
            "styles": ["hosoda", "ink"],
        },
    )
    return folder


def _save(network: Any, folder: Path) -> None:
    """Save in float16, with zero-initialised layers made random: they would hide every mistake."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    network.half().save_pretrained(folder)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_VOCABULARY)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
