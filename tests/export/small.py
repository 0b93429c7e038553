"""Stable Diffusion 1.5 in miniature, with random weights, in every layout that checkpoints come in.

The original names come from toonstream's own layouts; that they are right is for the tests to show, which let
diffusers read the same files.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from toonstream.export.parts import layouts

LAYERS = 1
LEVELS = 4
TEXT_WIDTH = 16
ATTENDING = frozenset({1, 2, 3})  # of the blocks on the way up
_SHAPE: dict[str, Any] = {
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": LAYERS,
    "norm_num_groups": 4,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 2,
}

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Small:
    """The networks, and where each layout of them lies.

    Attributes:
        networks: `unet`, `controlnet`, `vae`, `tiny_vae`, `text_encoder`, `motion`, in float32.
        folder: a pipeline in diffusers' layout, and `single` a file of the same weights.
        controlnet, motion, vae, tiny_vae: folders in diffusers' layout.
        original: the same parts as single files in their original layout, by name.
        tokenizer: a folder with `tokenizer.json`.
    """

    networks: dict[str, Any]
    folder: Path
    single: Path
    controlnet: Path
    motion: Path
    vae: Path
    tiny_vae: Path
    original: dict[str, Path]
    tokenizer: Path


def write_small(root: Path) -> Small:
    """Write everything, with a fixed seed."""
    networks = _networks()
    folder = root / "pipeline"
    for name in ("unet", "vae", "text_encoder"):
        networks[name].save_pretrained(folder / name)
    write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    _write_vocabulary(folder / "tokenizer")
    for name in ("controlnet", "motion", "vae", "tiny_vae"):
        networks[name].save_pretrained(root / name)
    original = {name: root / f"{name}.safetensors" for name in ("unet", "controlnet", "motion", "vae")}
    states = {name: original_state(name, network) for name, network in networks.items() if name != "tiny_vae"}
    save_file(states["controlnet"], original["controlnet"])
    save_file(states["motion"], original["motion"])
    alone = {name.removeprefix("first_stage_model."): value for name, value in states["vae"].items()}
    save_file(alone, original["vae"])
    single = root / "single.safetensors"
    save_file({**states["unet"], **states["vae"], **states["text_encoder"]}, single)
    _write_tokenizer(folder / "tokenizer", root / "clip")
    return Small(
        networks=networks,
        folder=folder,
        single=single,
        controlnet=root / "controlnet",
        motion=root / "motion",
        vae=root / "vae",
        tiny_vae=root / "tiny_vae",
        original=original,
        tokenizer=root / "clip",
    )


def original_state(name: str, network: Any) -> State:
    """The tensors of a network under their original names, those of a VAE's attention as convolutions."""
    layout = {
        "unet": layouts.unet_layouts(LAYERS, ATTENDING)[-1],
        "controlnet": layouts.controlnet_layouts(LAYERS, 6)[1],
        "vae": layouts.vae_layouts(LEVELS)[-1],
        "text_encoder": layouts.text_layouts()[2],
        "motion": layouts.motion_layouts()[1],
    }[name]
    state = {}
    for key, value in network.state_dict().items():
        key = key.removeprefix("text_model.")
        if name == "vae" and "attentions" in key and value.ndim == 2:
            value = value[..., None, None]
        state[layout(key)] = value.clone()
        if key.endswith("pos_embed.pe"):  # the original has one for each of the two attentions
            state[layout(key).replace("blocks.0.pos", "blocks.1.pos")] = value.clone()
    return state


def randomise(network: nn.Module) -> Any:
    """Make zero-initialised layers random, since they would hide every mistake, and the rest of use."""
    for parameter in network.parameters():
        if parameter.ndim < 2 or not parameter.any():
            nn.init.normal_(parameter, mean=0.1, std=0.2)
    return network.eval().requires_grad_(False)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def _networks() -> dict[str, Any]:
    from diffusers import (
        AutoencoderKL,
        AutoencoderTiny,
        ControlNetModel,
        MotionAdapter,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    networks = {
        "unet": UNet2DConditionModel(**_SHAPE),
        "controlnet": ControlNetModel(conditioning_embedding_out_channels=(4, 4, 8, 8), **_SHAPE),
        "motion": MotionAdapter(
            block_out_channels=_SHAPE["block_out_channels"],
            motion_layers_per_block=LAYERS,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
            motion_max_seq_length=24,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8,) * LEVELS,
            down_block_types=("DownEncoderBlock2D",) * LEVELS,
            up_block_types=("UpDecoderBlock2D",) * LEVELS,
            norm_num_groups=4,
        ),
        "tiny_vae": AutoencoderTiny(
            encoder_block_out_channels=(8,) * LEVELS,
            decoder_block_out_channels=(8,) * LEVELS,
            num_encoder_blocks=(1,) * LEVELS,
            num_decoder_blocks=(1,) * LEVELS,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                hidden_size=TEXT_WIDTH,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                vocab_size=600,
                bos_token_id=598,
                eos_token_id=599,
                pad_token_id=599,
            )
        ),
    }
    return {name: randomise(network) for name, network in networks.items()}


def _write_vocabulary(folder: Path) -> None:
    """CLIP's files without merges that matter: every byte is a token, alone and at the end of a word."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>"]
    words += [f"unused{index}" for index in range(598 - len(words))]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    write_json(folder / "vocab.json", vocabulary)
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")


def _write_tokenizer(vocabulary: Path, folder: Path) -> None:
    from transformers import CLIPTokenizer

    folder.mkdir()
    CLIPTokenizer.from_pretrained(vocabulary).backend_tokenizer.save(str(folder / "tokenizer.json"))
