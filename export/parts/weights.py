"""Files of weights, read one tensor at a time: safetensors, and pickled ones where the user allows them."""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from toonstream.errors import ModelError

__all__ = ["PICKLED", "WEIGHT_SUFFIXES", "Weights", "open_weights"]

PICKLED = (".ckpt", ".pt", ".pth", ".bin")
WEIGHT_SUFFIXES = (".safetensors", *PICKLED)


class Weights(Mapping[str, Tensor]):
    """The tensors of a file by name; each is read when it is asked for.

    Attributes:
        path: the file.
        shapes: the shape of each tensor, known without reading it.
        metadata: what a safetensors file says of itself.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
        metadata: Mapping[str, str],
    ) -> None:
        self.path = path
        self.shapes = shapes
        self.metadata = metadata
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def open_weights(path: Path, *, allow_pickle: bool = False) -> Weights:
    """Open a file of weights.

    Args:
        path: a .safetensors file, or a pickled one. Of a pickled one only tensors are read, whatever else it
            holds; the names of nested dictionaries are joined by dots, and `state_dict.` is left out.
        allow_pickle: read pickled files at all.

    Raises:
        ModelError: the file cannot be read, or is pickled and that is not allowed.
    """
    if path.suffix not in PICKLED:
        return _open_safetensors(path)
    if not allow_pickle:
        raise ModelError(
            f"{path} is pickled; take a .safetensors file, or, where you trust this one, set "
            "allow_pickle = true in the preset or say --allow-pickle"
        )
    return _open_pickled(path)


def _open_safetensors(path: Path) -> Weights:
    try:
        file: Any = safe_open(path, "pt")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return Weights(path, shapes, file.get_tensor, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not readable ({error}); get the file again") from None


def _open_pickled(path: Path) -> Weights:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ModelError(
            f"{path} holds more than tensors, or is no pickled file; get it as .safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty"
        raise ModelError(f"{path} is not readable ({reason}); get the file again") from None
    tensors = dict(_flatten(content)) if isinstance(content, dict) else {}
    return Weights(
        path, {name: tuple(value.shape) for name, value in tensors.items()}, tensors.__getitem__, {}
    )


def _flatten(content: Mapping[object, object], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            yield name.removeprefix("state_dict."), value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{name}.")
