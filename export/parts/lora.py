"""LoRAs: read in diffusers' and in kohya's naming, and fused into the weights they are for.

A LoRA changes a weight W into W + s·(α/r)·B·A, where A has r rows (the rank), α is its own scale (r where the
file gives none), and s is the weight that the user gives it.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from toonstream.errors import ModelError
from toonstream.export.parts.family import describe
from toonstream.export.parts.weights import Weights

__all__ = ["Lora", "fuse", "read_lora"]

_DOWN = ("lora_down", "lora_A", "lora.down", "lora_linear_layer.down")
_UP = ("lora_up", "lora_B", "lora.up", "lora_linear_layer.up")
_KEY = re.compile(
    rf"(?P<layer>.+)\.(?:(?P<down>{'|'.join(map(re.escape, _DOWN))})"
    rf"|(?P<up>{'|'.join(map(re.escape, _UP))}))\.weight"
)
_METADATA = "lora_adapter_metadata"  # under which peft's settings stand in diffusers' files


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """Names in the file, and α/r."""

    down: str
    up: str
    scale: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Lora:
    """A LoRA whose every tensor has found its place.

    Attributes:
        weights: the file.
        weight: how strongly it counts.
        layers: network and name of a weight → what changes it.
    """

    weights: Weights
    weight: float
    layers: Mapping[tuple[str, str], _Layer]


def read_lora(
    weights: Weights,
    *,
    weight: float,
    networks: Mapping[str, Mapping[str, Sequence[int]]],
    original_unet_name: Callable[[str], str],
) -> Lora:
    """Find the weights that a LoRA changes.

    Args:
        weights: the file.
        weight: how strongly it counts.
        networks: shapes of all tensors of `unet` and of `text_encoder`, by name.
        original_unet_name: what the UNet's tensors are called in the original code; kohya uses both names.

    Raises:
        ModelError: tensors find no place, as those of a LoRA for another family, or of another kind.
    """
    names = {_spelled(name): name for name in weights.shapes}
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    strange = []
    for spelled, name in names.items():
        if found := _KEY.fullmatch(spelled):
            parts[found["layer"]]["down" if found["down"] else "up"] = name
        elif not spelled.endswith(".alpha"):
            strange.append(name)
    places = _places(networks, original_unet_name)
    strange += [layer for layer in parts if layer not in places or len(parts[layer]) != 2]
    settings = _peft_settings(weights)
    layers = {}
    for layer, part in parts.items():
        if layer not in places or len(part) != 2:
            continue
        network, target = places[layer]
        down, up = weights.shapes[part["down"]], weights.shapes[part["up"]]
        shape = networks[network][target]
        if up[0] != shape[0] or _size(down[1:]) != _size(shape[1:]) or up[1] != down[0]:
            strange.append(layer)
            continue
        if f"{layer}.alpha" in names:
            scale = float(weights[names[f"{layer}.alpha"]]) / down[0]
        else:
            scale = _peft_scale(settings, layer, down[0])
        layers[network, target] = _Layer(down=part["down"], up=part["up"], scale=scale)
    if strange or not layers:
        example = f", such as {strange[0]}" if strange else ""
        raise ModelError(
            f"{weights.path}: {len(strange)} of {len(names)} tensors fit nowhere{example}; it looks like "
            f"{describe(weights.shapes)}, and a LoRA of SD 1.5 (no LyCORIS, no DoRA) is wanted"
        )
    return Lora(weights=weights, weight=weight, layers=layers)


def fuse(tensor: Tensor, loras: Sequence[Lora], *, network: str, name: str) -> Tensor:
    """Give a weight as the LoRAs together change it, in float32; or as it is where none does."""
    for lora in loras:
        if layer := lora.layers.get((network, name)):
            up = lora.weights[layer.up].float().flatten(1)
            down = lora.weights[layer.down].float().flatten(1)
            change = (up @ down).reshape(tensor.shape)
            tensor = tensor.float() + lora.weight * layer.scale * change
    return tensor


def _spelled(name: str) -> str:
    """Give a name as newer files spell it; older ones of diffusers name the processor of the attention."""
    name = re.sub(r"\.processor\.to_([qkv])_lora\.", r".to_\1.lora.", name)
    return name.replace(".processor.to_out_lora.", ".to_out.0.lora.")


def _places(
    networks: Mapping[str, Mapping[str, Sequence[int]]], original_unet_name: Callable[[str], str]
) -> dict[str, tuple[str, str]]:
    """Give every name that a file may use for a layer → its network and weight."""
    places = {}
    for network, shapes in networks.items():
        for weight in shapes:
            if not weight.endswith(".weight"):
                continue
            layer = weight.removesuffix(".weight")
            if network == "unet":
                original = original_unet_name(weight).removesuffix(".weight")
                dotted, flat = [f"unet.{layer}"], [f"lora_unet_{layer}", f"lora_unet_{original}"]
            else:
                dotted = [f"text_encoder.text_model.{layer}", f"text_encoder.{layer}"]
                flat = [f"lora_te_text_model_{layer}", f"lora_te_{layer}"]
            for name in [*dotted, *(name.replace(".", "_") for name in flat)]:
                places[name] = network, weight
    return places


def _peft_settings(weights: Weights) -> dict[str, object]:
    try:
        settings = json.loads(weights.metadata.get(_METADATA, "{}"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{weights.path}: its metadata is damaged ({error}); get the file again") from None
    return settings if isinstance(settings, dict) else {}


def _peft_scale(settings: Mapping[str, object], layer: str, rank: int) -> float:
    """α/r as peft's settings have it; 1 without any."""
    network, _, inside = layer.partition(".")
    alpha = settings.get(f"{network}.lora_alpha", rank)
    patterns = settings.get(f"{network}.alpha_pattern")
    if isinstance(patterns, dict):
        fitting = [value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?{key}", inside)]
        alpha = fitting[0] if fitting else alpha
    assert isinstance(alpha, int | float)
    return alpha / (rank**0.5 if settings.get(f"{network}.use_rslora") else rank)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
