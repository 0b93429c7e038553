"""Networks → ONNX files that share the bytes of the safetensors beside them.

An exported file holds the graph only. Its weights are external data: pointers into the neighbouring
safetensors file (float16), each followed by a Cast to float32 that every engine folds away when it loads
the network. So a model folder holds its weights once, and rewriting them needs no export.

`python -m toonstream.export.onnx MODEL_DIR` writes all ONNX files of a model folder; the same folder
gives the same bytes.
"""

import argparse
import json
import struct
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from toonstream.errors import ModelError, ToonstreamError
from toonstream.export.checkpoints import open_model
from toonstream.export.networks.base import TensorModule, random_inputs

__all__ = ["export_model", "export_network"]

_OPSET = 20  # later ones bring operators that TensorRT does not take
_PREFIX = "network."  # what every wrapper puts before the names of its weights
_TRACED_SIZES = {"batch": 2, "frames": 3, "h": 8, "w": 12}


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A float16 tensor inside a safetensors file: its place in bytes, and its shape."""

    offset: int
    length: int
    shape: tuple[int, ...]


def export_model(model_dir: Path) -> list[Path]:
    """Write the ONNX file of every network of a model folder.

    Raises:
        ModelError: the folder is not a complete model.
    """
    model = open_model(model_dir)
    for name, path in model.onnx_files.items():
        (weights,) = path.parent.glob("*.safetensors")
        export_network(model.sources[name].build(), path, weights)
    return list(model.onnx_files.values())


def export_network(module: torch.nn.Module, path: Path, weights: Path) -> None:
    """Export one network.

    Args:
        module: a `TensorModule` in evaluation mode, in float32.
        path: the ONNX file to write, in the folder of `weights`.
        weights: the safetensors file that the module was loaded from.
    """
    if not isinstance(module, TensorModule):
        raise ModelError(f"{type(module).__name__} declares no tensors and cannot be exported; wrap it first")
    graph = _trace(module)
    _share_weights(graph, weights)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _trace(module: TensorModule) -> onnx.ModelProto:
    tensors = (*module.inputs, *module.outputs)
    axes = {t.name: {i: axis for i, axis in enumerate(t.shape) if isinstance(axis, str)} for t in tensors}
    with TemporaryDirectory() as folder, torch.inference_mode(), warnings.catch_warnings():
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
            do_constant_folding=False,  # it would store transposed copies under new names
            input_names=list(module.input_names),
            output_names=list(module.output_names),
            dynamic_axes=axes,
        )
        return onnx.load(path)


def _share_weights(model: onnx.ModelProto, weights: Path) -> None:
    """Turn every initializer that `weights` holds into a pointer to it, followed by a Cast to float32."""
    stored = _read_header(weights)
    content = np.memmap(weights, mode="r")
    values = {initializer.name: initializer for initializer in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Identity" and node.output[0].removeprefix(_PREFIX) in stored:
            values[node.output[0]] = values[node.input[0]]  # the exporter keeps one of several equal weights
        else:
            nodes.append(node)
    shared, inline = [], []
    for name, value in values.items():
        key = name.removeprefix(_PREFIX)
        if key not in stored:
            inline.append(value)
            continue
        place = stored[key]
        half = np.frombuffer(content[place.offset : place.offset + place.length], np.float16)
        if not np.array_equal(half.reshape(place.shape), numpy_helper.to_array(value)):
            raise ModelError(
                f"{weights}: {key} is not what the network holds; load the network from this file"
            )
        shared.append(_pointer(key, place, weights.name))
        nodes.insert(0, helper.make_node("Cast", [key], [name], name=f"cast/{key}", to=TensorProto.FLOAT))
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*shared, *inline])


def _pointer(key: str, place: _Stored, file: str) -> TensorProto:
    """Make an initializer whose bytes lie in another file of the same folder."""
    tensor = TensorProto(name=key, data_type=TensorProto.FLOAT16, dims=place.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for entry, value in (("location", file), ("offset", place.offset), ("length", place.length)):
        tensor.external_data.add(key=entry, value=str(value))
    return tensor


def _read_header(path: Path) -> Mapping[str, _Stored]:
    """Find the float16 tensors of a safetensors file, by the names that their network has for them."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    stored = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F16":
            start, end = entry["data_offsets"]
            place = _Stored(offset=8 + size + start, length=end - start, shape=tuple(entry["shape"]))
            stored[name.removeprefix("text_model.")] = place
    return stored


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a model folder from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m toonstream.export.onnx", description=__doc__.split("\n")[0]
    )
    parser.add_argument("model_dir", type=Path, help="a model folder in diffusers' layout")
    try:
        for path in export_model(parser.parse_args(arguments).model_dir):
            print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")
    except ToonstreamError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
