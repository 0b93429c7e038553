"""Model folders: what is in one, and how to build its networks.

A folder has diffusers' layout, with the exported ONNX files beside the weights and toonstream's own
defaults in `toonstream.json`. Beyond that layout there may be

    text_encoder/embeddings.safetensors   textual inversions: word → (n, D), the n tokens it stands for
    annotators/NAME/config.json           what draws the hint NAME instead of the built-in painter; its
    annotators/NAME/model.safetensors     `model_type` says which network, see `export.annotators`

Opening a folder reads the small files only; torch, diffusers and transformers are imported when a torch
module is built and not before.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from safetensors import SafetensorError, safe_open

from toonstream.config import DEFAULT_SHORT_SIDE, Deflickering, Mode
from toonstream.engines.engine import NetworkSource
from toonstream.errors import ModelError, SettingError
from toonstream.export.configs import MotionNorm, pixels_per_latent

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "EMBEDDINGS",
    "Defaults",
    "Model",
    "Precision",
    "in_precision",
    "open_model",
    "reference_source",
    "shipped_model",
]

EMBEDDINGS = "embeddings.safetensors"

Precision = Literal["float32", "float16"]  # of what an ONNX file computes

_WEIGHTS = "diffusion_pytorch_model.safetensors"
_LEGACY_TEXT_PREFIX = "text_model."  # what transformers before 5 put before every name
_CONTROLNET_PREFIX = "controlnet_"
_REPEATED = ("AutoencoderTiny", "block_out_channels")


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
        size: the short side in pixels that larger clips are rendered at.
        clip_skip: which of the text encoder's layers is taken, 1 being the last.
        motion_norm: what the group norms of the motion modules are over: "joint", all frames of a window (as
            diffusers), or "frame", each by itself (as the original AnimateDiff, and Diffutoon).
        mode: wavefront, skewed or anchored.
        overlap: of anchored windows, in frames; None is a quarter of the window.
        deflicker: off, balanced or accurate.
        deflicker_window: frames on each side that it blends.
        remember: frames of the past that frames in flight attend to; 0 is none.
        remember_first: how many of them are the scene's first, where there are more; the others the latest.
        remember_strength: how much they weigh together, next to the frame itself.
        reference_strength: how much a reference picture weighs.
        reference_layers: which layers of the UNet attend to both: beginnings of block names, as up or down_2.
        shared_noise: part of the noise that is the same in all frames, 0 to 1.
        fusion: how much frames share at every step of what they would look like, 0 to 1.
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
    size: int = DEFAULT_SHORT_SIDE
    clip_skip: int = 1
    motion_norm: MotionNorm = "joint"
    mode: Mode = "wavefront"
    overlap: int | None = None
    deflicker: Deflickering = "off"
    deflicker_window: int = 2
    remember: int = 0
    remember_first: int = 1
    remember_strength: float = 1.0
    reference_strength: float = 1.0
    reference_layers: tuple[str, ...] = ("mid", "up")
    shared_noise: float = 0.0
    fusion: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model folder that is complete.

    Attributes:
        path: the folder.
        sources: every network, by its name in the stream (`text_encoder`, `vae_encoder`, `vae_decoder`,
            `unet`, for each ControlNet `hint_NAME` and `controlnet_NAME`, for each annotator
            `annotator_NAME`; `unet_reference` where it was asked for, see `export.reference`).
        onnx_files: where each network's ONNX file is, or would be if it were exported.
        scheduler_config: `scheduler/scheduler_config.json` as it is.
        vae_config: `vae/config.json` as it is.
        latent_channels: channels of a latent.
        vae_scale_factor: pixels per latent pixel, along each axis.
        latent_scale, latent_shift: the stream's latents are (encoder's latents - shift) * scale.
        size_multiple: width and height must be multiples of this many pixels.
        longest_window: the most frames that its motion modules know positions for; None where it has none.
        defaults: what the model works best with.
        tokenizer_path: `tokenizer/tokenizer.json`.
        embeddings: textual inversions: words of a prompt, and the token ids that each stands for.
    """

    path: Path
    sources: Mapping[str, NetworkSource]
    onnx_files: Mapping[str, Path]
    scheduler_config: Mapping[str, object]
    vae_config: Mapping[str, Any]
    latent_channels: int
    vae_scale_factor: int
    latent_scale: float
    latent_shift: float
    size_multiple: int
    longest_window: int | None
    defaults: Defaults
    tokenizer_path: Path
    embeddings: Mapping[str, range]

    @property
    def annotators(self) -> tuple[str, ...]:
        """Names of the hints that a network of the model draws."""
        names = (name.partition("annotator_") for name in self.sources)
        return tuple(hint for before, found, hint in names if found and not before)

    def require_window(self, frames: int) -> None:
        """Refuse windows that the motion modules know no positions for.

        Raises:
            SettingError: it is such a one.
        """
        if self.longest_window is not None and frames > self.longest_window:
            raise SettingError(
                f"window {frames}: the motion modules of {self.defaults.name} know {self.longest_window} "
                f"frames; take a --window of at most {self.longest_window}"
            )


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
    annotators = sorted(folder.name for folder in path.glob("annotators/*/"))
    _require_complete(path, controlnets, annotators)
    vae = _read(path / "vae" / "config.json")
    unet = _read(path / "unet" / "config.json")
    defaults = _defaults(path / "toonstream.json")
    networks = _networks(path, controlnets, annotators, defaults)
    scale_factor = pixels_per_latent(vae)
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
        vae_config=vae,
        latent_channels=vae["latent_channels"],
        vae_scale_factor=scale_factor,
        latent_scale=float(vae.get("scaling_factor") or 1.0),
        latent_shift=float(vae.get("shift_factor") or 0.0),
        size_multiple=scale_factor * 2 ** (len(unet["block_out_channels"]) - 1),
        longest_window=unet.get("motion_max_seq_length"),
        defaults=defaults,
        tokenizer_path=path / "tokenizer" / "tokenizer.json",
        embeddings=_embedding_ids(path / "text_encoder"),
    )


def in_precision(model: Model, precision: Precision) -> Model:
    """Give a model whose ONNX files compute in a precision; where they are not exported, there are none.

    Those in float32 are `model.onnx` and the like; `model.float16.onnx` lies beside, with the same weights.
    """
    if precision == "float32":
        return model
    files = {name: path.with_suffix(f".{precision}.onnx") for name, path in model.onnx_files.items()}
    sources = {
        name: replace(source, onnx=files[name] if files[name].is_file() else None)
        for name, source in model.sources.items()
    }
    return replace(model, sources=sources, onnx_files=files)


def reference_source(model: Model) -> NetworkSource:
    """Give a model's UNet as one that attends to remembered frames, with the same weights; not exported."""
    defaults = model.defaults
    build = partial(_build_reference_unet, layers=defaults.reference_layers, motion_norm=defaults.motion_norm)
    return replace(
        model.sources["unet"],
        name="unet_reference",
        onnx=None,
        build=partial(build, model.path / "unet"),
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


def _require_complete(path: Path, controlnets: list[str], annotators: list[str]) -> None:
    wanted = ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "toonstream.json"]
    wanted += ["text_encoder/config.json", "text_encoder/model.safetensors"]
    for folder in ("unet", "vae", *controlnets):
        wanted += [f"{folder}/config.json", f"{folder}/{_WEIGHTS}"]
    for name in annotators:
        wanted += [f"annotators/{name}/config.json", f"annotators/{name}/model.safetensors"]
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
    for name in ("styles", "reference_layers"):
        if name in settings:
            settings[name] = tuple(settings[name])
    return Defaults(**settings)


def _networks(
    path: Path, controlnets: list[str], annotators: list[str], defaults: Defaults
) -> "dict[str, tuple[Path, Callable[[Path], nn.Module]]]":
    """Give each network's ONNX file and what builds its torch module from the folder."""
    networks: dict[str, tuple[Path, Callable[[Path], nn.Module]]] = {
        "text_encoder": (
            path / "text_encoder" / "model.onnx",
            partial(_build_text_encoder, clip_skip=defaults.clip_skip),
        ),
        "vae_encoder": (path / "vae" / "encoder.onnx", _build_vae_encoder),
        "vae_decoder": (path / "vae" / "decoder.onnx", _build_vae_decoder),
        "unet": (path / "unet" / "model.onnx", partial(_build_unet, motion_norm=defaults.motion_norm)),
    }
    for folder in controlnets:
        hint = "hint_" + folder.removeprefix(_CONTROLNET_PREFIX)
        networks[hint] = (path / folder / "hint.onnx", _build_hint)
        networks[folder] = (path / folder / "model.onnx", _build_controlnet)
    for name in annotators:
        networks[f"annotator_{name}"] = (path / "annotators" / name / "model.onnx", _build_annotator)
    return networks


def _embedding_ids(folder: Path) -> dict[str, range]:
    """Give the token ids of the textual inversions: from the vocabulary's end on, in the words' order."""
    path = folder / EMBEDDINGS
    if not path.is_file():
        return {}
    begin = int(_read(folder / "config.json")["vocab_size"])
    ids = {}
    with _opened(path) as file:
        for word in sorted(file.keys()):
            shape = file.get_slice(word).get_shape()
            if len(shape) != 2:
                raise ModelError(f"{path}: {word} is not (tokens, width); write it again")
            ids[word] = range(begin, begin + shape[0])
            begin += shape[0]
    return ids


def _build_text_encoder(folder: Path, *, clip_skip: int) -> "nn.Module":
    from transformers import CLIPTextConfig, CLIPTextModel

    from toonstream.export.networks.text_encoder import TextEncoder

    network = CLIPTextModel(CLIPTextConfig.from_dict(_read(folder / "config.json")))
    network = _with_weights(network, folder / "model.safetensors")
    return TextEncoder(network, clip_skip=clip_skip, embeddings=_embeddings(folder / EMBEDDINGS))


def _embeddings(path: Path) -> "torch.Tensor | None":
    """Read the textual inversions as one table, in the words' order."""
    import torch

    if not path.is_file():
        return None
    with _opened(path) as file:
        rows = [file.get_tensor(word).float() for word in sorted(file.keys())]
    return torch.cat(rows) if rows else None


def _build_vae_encoder(folder: Path) -> "nn.Module":
    from toonstream.export.networks.vae import VaeEncoder

    return VaeEncoder(_diffusers(folder, "AutoencoderTiny", "AutoencoderKL"))


def _build_vae_decoder(folder: Path) -> "nn.Module":
    from toonstream.export.networks.vae import VaeDecoder

    return VaeDecoder(_diffusers(folder, "AutoencoderTiny", "AutoencoderKL"))


def _build_unet(folder: Path, *, motion_norm: MotionNorm) -> "nn.Module":
    from toonstream.export.networks.unet import MotionUnet

    network = _diffusers(folder, "UNetMotionModel", "UNet2DConditionModel")
    return MotionUnet(network, motion_norm=motion_norm)


def _build_reference_unet(folder: Path, *, layers: Sequence[str], motion_norm: MotionNorm) -> "nn.Module":
    from toonstream.export.networks.reference import ReferenceUnet

    network = _diffusers(folder, "UNetMotionModel", "UNet2DConditionModel")
    return ReferenceUnet(network, layers=layers, motion_norm=motion_norm)


def _build_hint(folder: Path) -> "nn.Module":
    from toonstream.export.networks.controlnet import HintEmbedding

    return HintEmbedding(_diffusers(folder, "ControlNetModel"))


def _build_controlnet(folder: Path) -> "nn.Module":
    from toonstream.export.networks.controlnet import ControlNet

    return ControlNet(_diffusers(folder, "ControlNetModel"))


def _build_annotator(folder: Path) -> "nn.Module":
    from toonstream.export.annotators import make_annotator

    annotator = make_annotator(_read(folder / "config.json"))
    _with_weights(annotator.network, folder / "model.safetensors")
    return annotator.eval()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not readable ({error}); get the file again") from None


def _diffusers(folder: Path, *kinds: str) -> "nn.Module":
    """Build a diffusers network of one of these classes; while it loads, too, its weights are there once."""
    import diffusers
    import torch

    config = _read(folder / "config.json")
    kind = config.get("_class_name", kinds[0])
    if kind not in kinds:
        raise ModelError(f"{folder / 'config.json'} is for a {kind}; use one for {' or '.join(kinds)}")
    # A tiny autoencoder's config repeats a value under a name that diffusers then warns of.
    known = {name: value for name, value in config.items() if (kind, name) != _REPEATED}
    with torch.device("meta"):
        network = cast("nn.Module", getattr(diffusers, kind).from_config(known))
    return _with_weights(network, folder / _WEIGHTS)


def _with_weights(network: "nn.Module", path: Path) -> "nn.Module":
    """Load weights in float32, all of them, and make the network ready for inference."""
    with _opened(path) as file:
        stored = {name.removeprefix(_LEGACY_TEXT_PREFIX): name for name in file.keys()}  # noqa: SIM118
        wanted = network.state_dict().keys()
        if missing := sorted(wanted - stored.keys()):
            lacking = f"{len(missing)} tensors, such as {missing[0]}"
            raise ModelError(f"{path} lacks {lacking}; it belongs to another network")
        weights = {name: file.get_tensor(stored[name]).float() for name in wanted}
    try:
        network.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise ModelError(f"{path} does not fit its config.json: {detail}") from None
    return network.eval().requires_grad_(False)
