"""Networks → ONNX files that share the bytes of the safetensors beside them.

An exported file holds the graph only. Its weights are external data: pointers into the neighbouring
safetensors file (float16). So a model folder holds its weights once, and rewriting them needs no export;
no file comes near to protobuf's limit of 2 GB; and an export takes no more memory than the network itself.

In float32 each weight is followed by a Cast, which every engine folds away when it loads the network. In
float16 the graph is strongly typed, as TensorRT wants it (`export.half`); its file is another one.

`toonstream export MODEL` writes all ONNX files of a model folder; the same folder gives the same bytes.
"""

import json
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from toonstream.engines.installed import with_export
from toonstream.errors import ModelError
from toonstream.export.checkpoints import EMBEDDINGS, Precision, in_precision, open_model
from toonstream.export.networks.base import TensorModule, random_inputs

with with_export("the export"):
    import onnx
    from onnx import ModelProto, TensorProto, helper

    from toonstream.export.half import to_half

__all__ = ["export_model", "export_network"]

_OPSET = 20  # later ones bring operators that TensorRT does not take
_PREFIX = "network."  # what every wrapper puts before the names of its weights
_TRACED_SIZES = {"batch": 2, "frames": 3, "h": 8, "w": 16, "tokens": 154, "remembered": 2}
_TYPES = {"F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16, "F32": TensorProto.FLOAT}
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A tensor inside a safetensors file: its place in bytes, its type there, and its shape."""

    offset: int
    length: int
    kind: str
    shape: tuple[int, ...]


@with_export("the export")
def export_model(
    model_dir: Path,
    *,
    precision: Precision = "float32",
    only_missing: bool = False,
    started: Callable[[str], None] = lambda name: None,
) -> list[Path]:
    """Write the ONNX file of every network of a model folder, one network in memory at a time.

    Args:
        model_dir: the folder.
        precision: what the networks compute in.
        only_missing: leave files alone that are there.
        started: is told the name of each network as its export begins.

    Returns:
        The files that were written.

    Raises:
        ModelError: the folder is not a complete model.
        EngineError: what builds its networks is not installed.
    """
    model = in_precision(open_model(model_dir), precision)
    written = []
    for name, path in model.onnx_files.items():
        if only_missing and path.is_file():
            continue
        started(name)
        (weights,) = (file for file in path.parent.glob("*.safetensors") if file.name != EMBEDDINGS)
        export_network(model.sources[name].build(), path, weights, precision=precision)
        written.append(path)
    return written


def export_network(module: nn.Module, path: Path, weights: Path, *, precision: Precision = "float32") -> None:
    """Export one network.

    Args:
        module: a `TensorModule` in evaluation mode, in float32.
        path: the ONNX file to write, in the folder of `weights`.
        weights: the safetensors file that the module was loaded from.
        precision: what the network computes in.

    Raises:
        ModelError: `module` is no such module, or was not loaded from that file.
    """
    if not isinstance(module, TensorModule):
        raise ModelError(f"{type(module).__name__} declares no tensors and cannot be exported; wrap it first")
    graph = _trace(module)
    _attach_weights(graph, module.state_dict(), weights)
    if precision == "float16":
        to_half(graph)
    _number_values(graph)
    partial = path.with_suffix(".part")
    partial.write_bytes(graph.SerializeToString(deterministic=True))
    partial.replace(path)


def _trace(module: TensorModule) -> ModelProto:
    """Record a network's graph; what it reads from its state are inputs of the graph, by name."""
    tensors = (*module.inputs, *module.outputs)
    axes = {t.name: {i: axis for i, axis in enumerate(t.shape) if isinstance(axis, str)} for t in tensors}
    with TemporaryDirectory() as folder, torch.inference_mode(), warnings.catch_warnings(), _hollow(module):
        path = Path(folder) / "traced.onnx"
        # The tracing exporter is deprecated; it is used because it keeps free axes free without declaring how
        # they depend on one another, and leaves weights their names.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            tuple(random_inputs(module.inputs, _TRACED_SIZES).values()),
            path,
            dynamo=False,
            opset_version=_OPSET,
            export_params=False,
            keep_initializers_as_inputs=True,  # else those of equal value would become one
            do_constant_folding=False,  # it would store transposed copies under new names
            input_names=list(module.input_names),
            output_names=list(module.output_names),
            dynamic_axes=axes,
        )
        return onnx.load(path)


@contextmanager
def _hollow(module: nn.Module) -> Iterator[None]:
    """Put parameters of one number each, spread over the whole shape, in place of the real ones.

    A graph does not depend on its weights, and the copies that tracing makes of them then take no memory.
    """
    held = [
        (child, name, parameter)
        for child in module.modules()
        for name, parameter in child.named_parameters(recurse=False)
    ]
    try:
        for child, name, parameter in held:
            spread = torch.zeros(1, dtype=parameter.dtype).expand(parameter.shape)
            setattr(child, name, nn.Parameter(spread, requires_grad=False))
        yield
    finally:
        for child, name, parameter in held:
            setattr(child, name, parameter)


def _attach_weights(model: ModelProto, state: Mapping[str, Tensor], weights: Path) -> None:
    """Turn inputs that are weights into pointers into their file, each followed by a Cast to float32."""
    stored = _read_header(weights)
    inputs, initializers, casts = [], list(model.graph.initializer), []
    for value in model.graph.input:
        if value.name not in state:
            inputs.append(value)
            continue
        key = value.name.removeprefix(_PREFIX)
        place = stored.get(key)
        if place is None:
            raise ModelError(f"{weights} does not hold {key}; load the network from this file")
        raw = torch.from_numpy(np.fromfile(weights, np.uint8, count=place.length, offset=place.offset))
        if not torch.equal(raw.view(_DTYPES[place.kind]).reshape(place.shape).float(), state[value.name]):
            raise ModelError(
                f"{weights}: {key} is not what the network holds; load the network from this file"
            )
        initializers.append(_pointer(key, place, weights.name))
        casts.append(helper.make_node("Cast", [key], [value.name], name=f"cast/{key}", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.input[:], model.graph.node[:], model.graph.initializer[:]
    model.graph.input.extend(inputs)
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(initializers)


def _number_values(model: ModelProto) -> None:
    """Give what goes from node to node short names: the long ones were more than half of a graph's file.

    Nodes, weights, inputs and outputs keep theirs.
    """
    graph = model.graph
    known = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    made = (name for node in graph.node for name in node.output if name and name not in known)
    short = {name: f"_{number:x}" for number, name in enumerate(made)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [short.get(name, name) for name in names]
    del graph.value_info[:]


def _pointer(key: str, place: _Stored, file: str) -> TensorProto:
    """Make an initializer whose bytes lie in another file of the same folder."""
    tensor = TensorProto(name=key, data_type=_TYPES[place.kind], dims=place.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for entry, value in (("location", file), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=entry, value=str(value))
    return tensor


def _read_header(path: Path) -> Mapping[str, _Stored]:
    """Find the tensors of a safetensors file, by the names that their network has for them."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    stored = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] in _TYPES:
            start, end = entry["data_offsets"]
            place = _Stored(
                offset=8 + size + start,
                length=end - start,
                kind=entry["dtype"],
                shape=tuple(entry["shape"]),
            )
            stored[name.removeprefix("text_model.")] = place
    return stored
