"""Networks without weights: what tensors each has, by its config, and what they are called in files.

They are built on torch's meta device: a network of a billion parameters takes a moment and no memory.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from toonstream.errors import ModelError
from toonstream.export.parts import layouts
from toonstream.export.parts.family import describe
from toonstream.export.parts.layouts import Layout
from toonstream.export.parts.weights import Weights

__all__ = [
    "Config",
    "Skeleton",
    "annotator",
    "controlnet",
    "motion_config",
    "read_config",
    "scheduler_config",
    "text_encoder",
    "unet",
    "vae",
]

_SD15 = Path(__file__).with_name("sd15.json")
_TEXT_PREFIX = "text_model."  # what some versions of transformers put before every name
_POSITIONS = ".pos_embed.pe"
_ANNOTATORS = ("informative_drawings", "hed")  # whose published files are weights alone

Config = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Skeleton:
    """A network without weights.

    Attributes:
        what: it is, for errors.
        config: its settings.
        save: writes them as `config.json` into a folder.
        shapes: of its tensors, by name.
        layouts: what these are called in files.
    """

    what: str
    config: Config
    save: Callable[[Path], object]
    shapes: Mapping[str, tuple[int, ...]]
    layouts: tuple[Layout, ...]


def read_config(path: Path | None, kind: str) -> Config:
    """Read a `config.json`, or give Stable Diffusion 1.5's of a kind of network.

    Raises:
        ModelError: the file cannot be read.
    """
    try:
        content = json.loads((path or _SD15).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); get the file again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object; get the file again")
    return content if path else dict(content[kind])


def scheduler_config(path: Path | None) -> Config:
    """Read a `scheduler_config.json`, or give Stable Diffusion 1.5's."""
    return read_config(path, "scheduler")


def text_encoder(config: Config) -> Skeleton:
    """CLIP's text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    parsed = CLIPTextConfig.from_dict(dict(config))
    with torch.device("meta"):
        network = CLIPTextModel(parsed)
    return Skeleton(
        what="a text encoder",
        config=parsed.to_dict(),
        save=parsed.save_pretrained,
        shapes={name.removeprefix(_TEXT_PREFIX): shape for name, shape in _shapes(network).items()},
        layouts=layouts.text_layouts(),
    )


def unet(config: Config, motion: Config | None, *, weights: Weights) -> Skeleton:
    """The UNet, with motion modules where `motion`, the config of an adapter, is given.

    Raises:
        ModelError: it is of another family, or the motion modules are for another UNet.
    """
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    with torch.device("meta"):
        network = _built(UNet2DConditionModel, config, weights)
        if network.config.addition_embed_type or network.config.class_embed_type:
            raise ModelError(f"{weights.path} is of another family; it looks like {describe(weights.shapes)}")
        layers, ups = network.config.layers_per_block, network.config.up_block_types
        attending = frozenset(index for index, kind in enumerate(ups) if "CrossAttn" in kind)
        names = layouts.unet_layouts(layers, attending)
        if motion is not None:
            adapter = MotionAdapter.from_config(dict(motion))
            if adapter.config.conv_in_channels:
                raise ModelError("this motion adapter takes a picture too (PIA); use one for AnimateDiff")
            if list(adapter.config.block_out_channels) != list(network.config.block_out_channels):
                raise ModelError(
                    f"the motion modules have {list(adapter.config.block_out_channels)} channels, and "
                    f"the UNet {list(network.config.block_out_channels)}; use motion modules for SD 1.5"
                )
            network = UNetMotionModel.from_unet2d(network, adapter, load_weights=False)
    return _skeleton("a UNet of SD 1.5", network, names)


def motion_config(path: Path | None, weights: Weights) -> Config:
    """Read a motion adapter's config; without one, find out what differs between AnimateDiff's versions."""
    config = dict(read_config(path, "motion"))
    if path is None:
        lengths = [shape[1] for name, shape in weights.shapes.items() if name.endswith((".pe", _POSITIONS))]
        config["use_motion_mid_block"] = any("mid_block." in name for name in weights.shapes)
        config["motion_max_seq_length"] = lengths[0] if lengths else 32
    return config


def controlnet(config: Config, *, weights: Weights) -> Skeleton:
    """A ControlNet."""
    from diffusers import ControlNetModel

    with torch.device("meta"):
        network = _built(ControlNetModel, config, weights)
    blocks = len(network.controlnet_cond_embedding.blocks)
    names = layouts.controlnet_layouts(network.config.layers_per_block, blocks)
    return _skeleton("a ControlNet of SD 1.5", network, names)


def vae(config: Config, *, weights: Weights) -> Skeleton:
    """An autoencoder, full or tiny."""
    from diffusers import AutoencoderKL, AutoencoderTiny

    tiny = config.get("_class_name") == AutoencoderTiny.__name__
    with torch.device("meta"):
        network = _built(AutoencoderTiny if tiny else AutoencoderKL, config, weights)
    names = layouts.vae_layouts(len(network.config.block_out_channels))
    return _skeleton("a tiny VAE" if tiny else "a VAE", network, names)


def annotator(config: Config | None, *, weights: Weights) -> Skeleton:
    """Make a network that draws hints; a published file that comes without a config is known by its tensors.

    Raises:
        ModelError: it is none that toonstream knows.
    """
    from toonstream.export.annotators import make_annotator

    candidates = [config] if config else [{"model_type": kind} for kind in _ANNOTATORS]
    with torch.device("meta"):
        networks = [make_annotator(candidate).network for candidate in candidates]
    skeletons = [
        Skeleton(
            what="an annotator",
            config=candidate,
            save=partial(_write_config, candidate),
            shapes=_shapes(network),
            layouts=layouts.annotator_layouts(),
        )
        for candidate, network in zip(candidates, networks, strict=True)
    ]
    return max(skeletons, key=lambda skeleton: len(skeleton.shapes.keys() & weights.shapes.keys()))


def _write_config(config: Config, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _built(kind: Any, config: Config, weights: Weights) -> Any:
    wanted = config.get("_class_name", kind.__name__)
    if wanted != kind.__name__:
        raise ModelError(
            f"{weights.path} belongs to a {wanted}; it looks like {describe(weights.shapes)}, "
            f"and a {kind.__name__} is wanted"
        )
    return kind.from_config(dict(config))


def _skeleton(what: str, network: Any, names: tuple[Layout, ...]) -> Skeleton:
    config = dict(network.config)
    return Skeleton(
        what=what, config=config, save=network.save_config, shapes=_shapes(network), layouts=names
    )


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}
