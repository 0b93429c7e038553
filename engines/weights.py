"""Weights by name: read them, and put others in their place, without exporting a network again.

An exported ONNX file holds the graph; its weights lie in a safetensors file beside it, each under the name
that it has there. So a LoRA or a style that changes while a stream runs is a `NetworkSource` whose `weights`
take the place of some of the file's. Every engine loads such a source; going back to the one without them
gives back, bit for bit, what was.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toonstream.engines.checksums import Checksums
from toonstream.engines.engine import NetworkSource
from toonstream.engines.onnx_file import onnx_file
from toonstream.errors import EngineError

__all__ = [
    "Stored",
    "computed_precision",
    "network_checksum",
    "read_weights",
    "replace_weights",
    "rewrite",
    "stored_weights",
    "weights_checksum",
]

_CHUNK = 1 << 20  # bytes read at a time


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Where a weight lies.

    Attributes:
        file: that holds it. offset, length: its place there, in bytes. dtype, shape: of the tensor.
    """

    file: Path
    offset: int
    length: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def stored_weights(onnx: Path) -> dict[str, Stored]:
    """Find the weights that an ONNX file points to, by name; none of them is read.

    Raises:
        EngineError: it is no ONNX file.
    """
    graph = _graph(onnx)
    import onnx as library

    dtypes = {
        library.TensorProto.FLOAT16: torch.float16,
        library.TensorProto.BFLOAT16: torch.bfloat16,
        library.TensorProto.FLOAT: torch.float32,
        library.TensorProto.INT64: torch.int64,
    }
    stored = {}
    for tensor in graph.initializer:
        if tensor.data_location == library.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            stored[tensor.name] = Stored(
                file=onnx.parent / place["location"],
                offset=int(place.get("offset", 0)),
                length=int(place["length"]),
                dtype=dtypes[tensor.data_type],
                shape=tuple(tensor.dims),
            )
    return stored


def computed_precision(onnx: Path) -> str:
    """Say what a network computes in: its weights' type, or float32 where each is widened to that first.

    Raises:
        EngineError: it is no ONNX file.
    """
    stored = stored_weights(onnx)
    from onnx import TensorProto

    widened = sum(
        node.op_type == "Cast" and node.input[0] in stored and node.attribute[0].i == TensorProto.FLOAT
        for node in _graph(onnx).node
    )
    if 2 * widened >= len(stored):
        return "float32"
    dtypes = Counter(str(place.dtype).removeprefix("torch.") for place in stored.values())
    return dtypes.most_common(1)[0][0]


def _graph(path: Path) -> Any:
    """Read a graph, without the weights that it points to."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        import onnx
    except ImportError:
        raise EngineError("onnx is not installed; run `pip install 'toonstream[export]'`") from None
    try:
        return onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as error:
        raise EngineError(f"{path} is not readable as ONNX ({error}); export the model again") from None


def read_weights(source: NetworkSource, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read weights of a network, those that were put in place of others as they are now.

    Args:
        source: the network.
        names: of the weights; None for all.

    Raises:
        EngineError: there is no such weight, or no ONNX file.
    """
    stored = stored_weights(onnx_file(source))
    read = {}
    for name in stored if names is None else names:
        place = _place(source.name, stored, name)
        if name in source.weights:
            read[name] = source.weights[name]
        else:
            count = place.length // place.dtype.itemsize
            with place.file.open("rb") as file:
                file.seek(place.offset)
                content = bytearray(file.read(place.length))
            read[name] = torch.frombuffer(content, dtype=place.dtype, count=count).reshape(place.shape)
    return read


def replace_weights(source: NetworkSource, weights: Mapping[str, Tensor]) -> NetworkSource:
    """Give a source with other weights in place of those that its ONNX file points to.

    Args:
        source: as it was opened; weights that were put in before stay, where they are not put in again.
        weights: by the names in the file; they are rounded to what the file holds, such as float16.

    Raises:
        EngineError: there is no such weight, one has another shape, or there is no ONNX file.
    """
    stored = stored_weights(onnx_file(source))
    rounded = {}
    for name, tensor in weights.items():
        place = _place(source.name, stored, name)
        if tuple(tensor.shape) != place.shape:
            raise EngineError(
                f"{source.name}: {name} is {list(place.shape)} and not {list(tensor.shape)}; "
                "the weights belong to another network"
            )
        rounded[name] = tensor.detach().to("cpu", place.dtype).contiguous().clone()
    return replace(source, weights={**source.weights, **rounded})


def _place(network: str, stored: Mapping[str, Stored], name: str) -> Stored:
    if name not in stored:
        near = get_close_matches(name, stored, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; the weights belong to another network"
        raise EngineError(f"{network} has no weight {name}{hint}")
    return stored[name]


def rewrite(source: NetworkSource, folder: Path) -> Path:
    """Write the network with the weights that were put in, for engines that read files only.

    The graph is the same, byte for byte; the weights' file is the same but for what was put in.

    Args:
        source: the network.
        folder: an empty one.

    Returns:
        The ONNX file in `folder`.
    """
    onnx = onnx_file(source)
    stored = stored_weights(onnx)
    for file in {place.file for place in stored.values()}:
        shutil.copyfile(file, folder / file.name)
    for name, tensor in source.weights.items():
        with (folder / stored[name].file.name).open("r+b") as copy:
            copy.seek(stored[name].offset)
            copy.write(_bytes(tensor))
    return Path(shutil.copyfile(onnx, folder / onnx.name))


def network_checksum(onnx: Path, *, kept: Checksums | None = None) -> str:
    """SHA-256 over a graph and those bytes that it points to; of a shared weights' file, no others.

    Args:
        onnx: the graph.
        kept: where checksums are kept; weights that have not changed are not read again.
    """
    graph, places = onnx.read_bytes(), stored_weights(onnx)
    if kept is None:
        return _read_checksum(graph, places)
    files = {place.file for place in places.values()}
    return kept.of(hashlib.sha256(graph).hexdigest(), files, lambda: _read_checksum(graph, places))


def _read_checksum(graph: bytes, places: Mapping[str, Stored]) -> str:
    digest = hashlib.sha256(graph)
    for _, place in sorted(places.items()):
        with place.file.open("rb") as file:
            file.seek(place.offset)
            left = place.length
            while left and (chunk := file.read(min(left, _CHUNK))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over weights and their names; empty for none."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest() if weights else ""


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
