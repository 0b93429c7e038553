"""Model folders: what is in one, and how to build its networks.

A folder has diffusers' layout, with the exported ONNX files beside the weights and toonstream's own
defaults in `toonstream.json`. Opening one reads the small files only; diffusers and transformers are
imported when a torch module is built and not before.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from toonstream.engines.engine import NetworkSource
from toonstream.errors import ModelError

__all__ = ["Defaults", "Model", "open_model", "shipped_model"]

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_LEGACY_TEXT_PREFIX = "text_model."  # what transformers before 5 put before every name
_CONTROLNET_PREFIX = "controlnet_"


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a model works best with, as `toonstream.json` says.

    Attributes:
        name: the model's name.
        prompt: what to draw when the user does not say.
        negative_prompt: what to avoid; used where guidance is not 1.
        steps: denoising steps.
        window: frames denoised together.
        stride: frames from one window to the next.
        guidance: 1 means that only the prompt's side is computed.
        scheduler: ddim, lcm or euler.
        controlnets: strength of each ControlNet, by name, such as {"outline": 1.0}.
        styles: words that a prompt may name.
    """

    name: str
    prompt: str
    negative_prompt: str = ""
    steps: int = 1
    window: int = 4
    stride: int = 2
    guidance: float = 1.0
    scheduler: str = "ddim"
    controlnets: Mapping[str, float] = field(default_factory=dict)
    styles: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model folder that is complete.

    Attributes:
        path: the folder.
        sources: every network, by its name in the stream (`text_encoder`, `vae_encoder`, `vae_decoder`,
            `unet`, and for each ControlNet `hint_NAME` and `controlnet_NAME`).
        onnx_files: where each network's ONNX file is, or would be if it were exported.
        scheduler_config: `scheduler/scheduler_config.json` as it is.
        latent_channels: channels of a latent.
        vae_scale_factor: pixels per latent pixel, along each axis.
        latent_scale, latent_shift: the stream's latents are (encoder's latents - shift) * scale.
        size_multiple: width and height must be multiples of this many pixels.
        defaults: what the model works best with.
        tokenizer_path: `tokenizer/tokenizer.json`.
    """

    path: Path
    sources: Mapping[str, NetworkSource]
    onnx_files: Mapping[str, Path]
    scheduler_config: Mapping[str, object]
    latent_channels: int
    vae_scale_factor: int
    latent_scale: float
    latent_shift: float
    size_multiple: int
    defaults: Defaults
    tokenizer_path: Path


def shipped_model() -> Path:
    """Where the model that ships with toonstream lies."""
    return Path(__file__).parent / "models" / "toonlet"


def open_model(path: Path) -> Model:
    """Open a model folder.

    Raises:
        ModelError: it is not a model folder, or files are missing (all of them are named).
    """
    if not path.is_dir():
        raise ModelError(f"{path} is not a folder; give a model folder in diffusers' layout")
    index = _read(path / "model_index.json")
    controlnets = sorted(name for name in index if name.startswith(_CONTROLNET_PREFIX))
    _require_complete(path, controlnets)
    vae = _read(path / "vae" / "config.json")
    unet = _read(path / "unet" / "config.json")
    networks = _networks(path, controlnets)
    scale_factor = 2 ** (len(vae["encoder_block_out_channels"]) - 1)
    return Model(
        path=path,
        sources={
            name: NetworkSource(
                name=name, onnx=file if file.is_file() else None, build=partial(build, file.parent)
            )
            for name, (file, build) in networks.items()
        },
        onnx_files={name: file for name, (file, _) in networks.items()},
        scheduler_config=_read(path / "scheduler" / "scheduler_config.json"),
        latent_channels=vae["latent_channels"],
        vae_scale_factor=scale_factor,
        latent_scale=float(vae.get("scaling_factor") or 1.0),
        latent_shift=float(vae.get("shift_factor") or 0.0),
        size_multiple=scale_factor * 2 ** (len(unet["block_out_channels"]) - 1),
        defaults=_defaults(path / "toonstream.json"),
        tokenizer_path=path / "tokenizer" / "tokenizer.json",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing; the folder is no model, or its download is incomplete"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); get the file again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object; get the file again")
    return content


def _require_complete(path: Path, controlnets: list[str]) -> None:
    wanted = ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "toonstream.json"]
    wanted += ["text_encoder/config.json", "text_encoder/model.safetensors"]
    for folder in ("unet", "vae", *controlnets):
        wanted += [f"{folder}/config.json", f"{folder}/{_WEIGHTS}"]
    missing = [name for name in wanted if not (path / name).is_file()]
    if missing:
        raise ModelError(f"{path} is incomplete: {', '.join(missing)} missing; get the model again")


def _defaults(path: Path) -> Defaults:
    settings = _read(path)
    unknown = settings.keys() - Defaults.__dataclass_fields__.keys()
    absent = {"name", "prompt"} - settings.keys()
    if unknown or absent:
        raise ModelError(
            f"{path}: {', '.join(sorted(unknown | absent))} unknown or missing; correct the file"
        )
    return Defaults(**settings | {"styles": tuple(settings.get("styles", ()))})


def _networks(path: Path, controlnets: list[str]) -> dict[str, tuple[Path, Callable[[Path], nn.Module]]]:
    """Give each network's ONNX file and what builds its torch module from the folder."""
    networks: dict[str, tuple[Path, Callable[[Path], nn.Module]]] = {
        "text_encoder": (path / "text_encoder" / "model.onnx", _build_text_encoder),
        "vae_encoder": (path / "vae" / "encoder.onnx", _build_vae_encoder),
        "vae_decoder": (path / "vae" / "decoder.onnx", _build_vae_decoder),
        "unet": (path / "unet" / "model.onnx", _build_unet),
    }
    for folder in controlnets:
        hint = "hint_" + folder.removeprefix(_CONTROLNET_PREFIX)
        networks[hint] = (path / folder / "hint.onnx", _build_hint)
        networks[folder] = (path / folder / "model.onnx", _build_controlnet)
    return networks


def _build_text_encoder(folder: Path) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    from toonstream.export.networks.text_encoder import TextEncoder

    network = CLIPTextModel(CLIPTextConfig.from_dict(_read(folder / "config.json")))
    return TextEncoder(_with_weights(network, folder / "model.safetensors"))


def _build_vae_encoder(folder: Path) -> nn.Module:
    from diffusers import AutoencoderTiny

    from toonstream.export.networks.vae import VaeEncoder

    return VaeEncoder(_diffusers(AutoencoderTiny, folder))


def _build_vae_decoder(folder: Path) -> nn.Module:
    from diffusers import AutoencoderTiny

    from toonstream.export.networks.vae import VaeDecoder

    return VaeDecoder(_diffusers(AutoencoderTiny, folder))


def _build_unet(folder: Path) -> nn.Module:
    from diffusers import UNetMotionModel

    from toonstream.export.networks.unet import MotionUnet

    return MotionUnet(_diffusers(UNetMotionModel, folder))


def _build_hint(folder: Path) -> nn.Module:
    from diffusers import ControlNetModel

    from toonstream.export.networks.controlnet import HintEmbedding

    return HintEmbedding(_diffusers(ControlNetModel, folder))


def _build_controlnet(folder: Path) -> nn.Module:
    from diffusers import ControlNetModel

    from toonstream.export.networks.controlnet import ControlNet

    return ControlNet(_diffusers(ControlNetModel, folder))


def _diffusers(kind: Any, folder: Path) -> nn.Module:
    """Build a diffusers network from its folder."""
    network = cast(nn.Module, kind.from_config(_read(folder / "config.json")))
    return _with_weights(network, folder / _WEIGHTS)


def _with_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load weights in float32, all of them, and make the network ready for inference."""
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not readable ({error}); get the file again") from None
    wanted = network.state_dict().keys()
    weights = {name.removeprefix(_LEGACY_TEXT_PREFIX): value.float() for name, value in weights.items()}
    missing = sorted(wanted - weights.keys())
    if missing:
        raise ModelError(
            f"{path} lacks {len(missing)} tensors, such as {missing[0]}; it belongs to another network"
        )
    try:
        network.load_state_dict({name: weights[name] for name in wanted})
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ModelError(f"{path} does not fit its config.json: {detail}") from None
    return network.eval().requires_grad_(False)
