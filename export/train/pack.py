"""A finished run → a model folder in diffusers' layout, float16, with toonstream's own defaults."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from toonstream.export.train.diffusion import new_scheduler
from toonstream.export.train.networks import CONTROLS, TEXT_LENGTH
from toonstream.export.train.render import STYLES

__all__ = ["pack"]

_DEFAULTS = {
    "name": "toonlet",
    "prompt": "hosoda style",
    "negative_prompt": "",
    "steps": 1,
    "window": 4,
    "stride": 3,
    "guidance": 1.0,
    "scheduler": "ddim",
    "controlnets": dict.fromkeys(CONTROLS, 1.0),
    "styles": list(STYLES),
    "shared_noise": 1.0,
    "deflicker": "balanced",
    "deflicker_window": 1,
}
_CLASSES = {
    "tokenizer": ["transformers", "CLIPTokenizerFast"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "vae": ["diffusers", "AutoencoderTiny"],
    "unet": ["diffusers", "UNetMotionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    **{f"controlnet_{name}": ["diffusers", "ControlNetModel"] for name in CONTROLS},
}
_TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "model_max_length": TEXT_LENGTH,
}
_SIGNIFICANT_BITS = 7


def pack(run: Path, output: Path) -> None:
    """Write the model folder; the ONNX files are made from it by `toonstream export`."""
    sources = {
        "text_encoder": run / "pictures" / "text_encoder",
        "vae": run / "decoder" / "vae",
        "unet": run / "motion" / "unet",
        **{f"controlnet_{name}": run / "pictures" / f"controlnet_{name}" for name in CONTROLS},
    }
    for part, source in sources.items():
        target = output / part
        target.mkdir(parents=True, exist_ok=True)
        _write(target / "config.json", _config(source / "config.json"))
        for weights in source.glob("*.safetensors"):
            halves = {name: _rounded(tensor).contiguous() for name, tensor in load_file(weights).items()}
            halves = {name: tensor for name, tensor in halves.items() if not name.endswith("position_ids")}
            save_file(halves, target / weights.name, metadata={"format": "pt"})
    (output / "tokenizer").mkdir(exist_ok=True)
    shutil.copy(run / "pictures" / "tokenizer" / "tokenizer.json", output / "tokenizer")
    _write(output / "tokenizer" / "tokenizer_config.json", _TOKENIZER)
    new_scheduler().save_pretrained(output / "scheduler")
    _write(output / "model_index.json", {"_class_name": "AnimateDiffControlNetPipeline", **_CLASSES})
    _write(output / "toonstream.json", _DEFAULTS)


def _rounded(tensor: Tensor) -> Tensor:
    """Half precision of what little a drawing needs of a number: the rest a wheel could not pack."""
    mantissa, exponent = torch.frexp(tensor.float())
    steps = 2.0**_SIGNIFICANT_BITS
    return torch.ldexp((mantissa * steps).round() / steps, exponent).half()


def _config(path: Path) -> dict[str, object]:
    """A configuration without the path it was loaded from."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
