"""LoRAs on top of a model that is there: the weights they change, put in without writing the model again.

A model folder stays as it is. What a LoRA makes of a weight takes its place in the `NetworkSource`, rounded
to what the folder holds, and every engine loads that; see `engines.weights`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from toonstream.config import LoraChoice
from toonstream.engines.engine import NetworkSource
from toonstream.errors import ModelError
from toonstream.export.checkpoints import Model
from toonstream.export.parts.layouts import original_unet_name
from toonstream.export.parts.lora import Lora, fuse, read_lora
from toonstream.export.parts.weights import open_weights

__all__ = ["find_loras", "lora_sources", "with_loras"]

_SUFFIX = ".safetensors"
# The networks that LoRAs change, and what holds their weights.
_FILES = {"unet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}
_LEGACY_TEXT_PREFIX = "text_model."


def with_loras(model: Model, loras: Iterable[LoraChoice], *, allow_pickle: bool = False) -> Model:
    """Give a model that LoRAs are put into.

    Args:
        model: as it was opened.
        loras: their files, and how strongly each counts.
        allow_pickle: read pickled files.

    Raises:
        ModelError: a file is not there, is not readable, or is for another model.
    """
    changed = lora_sources(model, loras, allow_pickle=allow_pickle)
    return replace(model, sources={**model.sources, **changed})


def lora_sources(
    model: Model, loras: Iterable[LoraChoice], *, allow_pickle: bool = False
) -> dict[str, NetworkSource]:
    """Give the networks that LoRAs change, changed, by name; see `with_loras`."""
    folder = _Folder(model)
    read = [
        folder.read(Path(lora.file).expanduser(), weight=lora.weight, allow_pickle=allow_pickle)
        for lora in loras
        if lora.weight
    ]
    changed = {}
    for network in _FILES:
        names = {name for lora in read for target, name in lora.layers if target == network}
        weights = folder.fused(network, names, read)
        if weights:
            source = model.sources[network]
            changed[network] = replace(source, weights={**source.weights, **weights})
    return changed


def find_loras(
    folder: Path, model: Model, *, say: Callable[[str], None] = lambda line: None
) -> dict[str, Path]:
    """Give the LoRAs of a folder that are for a model, by name: that of the file, without its ending.

    Args:
        folder: of .safetensors files.
        model: whose weights they are to change.
        say: is told which files are left out, and why.

    Raises:
        ModelError: it is no folder.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder; name one with LoRAs in it, as {_SUFFIX} files")
    shapes = _Folder(model)
    found = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            shapes.read(path, weight=1.0)
        except ModelError as error:
            say(f"left out: {error}")
        else:
            found[path.stem] = path
    if not found:
        say(f"{folder} holds no LoRA for {model.defaults.name}")
    return found


class _Folder:
    """The weights of a model's networks, and what LoRAs call them.

    Args:
        model: the model.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._weights = {
            network: open_weights(model.path / network / file) for network, file in _FILES.items()
        }
        config = _config(model.path / "unet")
        layers, ups = config["layers_per_block"], config["up_block_types"]
        self._layers = layers if isinstance(layers, int) else layers[0]
        self._text_layers = int(_config(model.path / "text_encoder")["num_hidden_layers"])
        self._attending = frozenset(index for index, kind in enumerate(ups) if "CrossAttn" in kind)

    def read(self, path: Path, *, weight: float, allow_pickle: bool = False) -> Lora:
        """Read a LoRA.

        Raises:
            ModelError: it is not there, is not readable, or is for another model.
        """
        if not path.is_file():
            raise ModelError(f"there is no LoRA {path}; give the path of its file")
        return read_lora(
            open_weights(path, allow_pickle=allow_pickle),
            weight=weight,
            networks={
                network: {_name(there): shape for there, shape in weights.shapes.items()}
                for network, weights in self._weights.items()
            },
            original_unet_name=lambda name: original_unet_name(
                name, layers=self._layers, attending=self._attending
            ),
        )

    def fused(self, network: str, names: Iterable[str], loras: list[Lora]) -> Mapping[str, Tensor]:
        """Give weights of a network as LoRAs make them, in the type that its file holds."""
        source, weights = self._model.sources[network], self._weights[network]
        there = {_name(name): name for name in weights.shapes}
        made = {}
        for name in sorted(names):
            if network == "text_encoder" and self._is_skipped(name):
                continue
            stored = weights[there[name]]
            before = source.weights.get(name, stored)
            made[name] = fuse(before, loras, network=network, name=name).to(stored.dtype).contiguous()
        return made

    def _is_skipped(self, name: str) -> bool:
        """Whether a weight is in one of the text encoder's last layers, which clip_skip leaves out."""
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        return layer is not None and int(layer[1]) > self._text_layers - self._model.defaults.clip_skip


def _config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _name(there: str) -> str:
    """What the networks call a tensor of their file."""
    return there.removeprefix(_LEGACY_TEXT_PREFIX)
