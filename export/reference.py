"""The graph of the UNet that attends to remembered frames: exported when a stream first asks for it.

    <cache>/graphs/<model>-<key>/    the graph, and a copy of the UNet's weights, which ONNX wants beside it

A model that was assembled into the cache has the graph beside its own weights, and needs no copy. A file gets
its name when it is whole, by one rename; of two processes that export at once, the first one's stays.
What was used least lately goes when a graph is added and the folder gets too large.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

from toonstream.engines.engine import NetworkSource
from toonstream.engines.installed import with_export
from toonstream.engines.store import cache_folder
from toonstream.engines.tensorrt.flavour import FLAVOURS, apart
from toonstream.errors import ModelError
from toonstream.export.assemble import is_ours
from toonstream.export.checkpoints import Model, Precision, reference_source

__all__ = ["with_reference"]

_VERSION = 1  # of what is written; another one makes other keys
_KEY_LENGTH = 16  # hexadecimal digits
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_LIMIT = 8 << 30  # bytes that the folder may take: three networks of full size
_AT_WORK = 3600.0  # seconds that what was just used is left alone: engines may be built from it, elsewhere

Say = Callable[[str], None]


def with_reference(model: Model, *, engine: str, say: Say = lambda line: None) -> Model:
    """Give a model with one more network, `unet_reference`: its UNet with the inputs of `ReferenceUnet`.

    Args:
        model: any.
        engine: its name; all but torch want an ONNX file, TensorRT in float16. One behind torch, see
            `flavour.apart`, gets it where it is there.
        say: is told what is done, where that takes a while.

    Raises:
        ModelError: the model's UNet cannot do it, or the cache cannot be written to.
        EngineError: what exports it is not installed.
    """
    source = reference_source(model)
    serving, coming = apart(engine)
    if coming is not None:
        source = replace(source, onnx=_there(_file(model, "float16")))
    elif serving != "torch":
        precision: Precision = "float16" if serving in FLAVOURS else "float32"
        try:
            source = replace(source, onnx=_exported(model, source, precision, say))
        except OSError as error:
            raise ModelError(
                f"{cache_folder()}: {error.strerror or error}; "
                "make room, or name another folder in TOONSTREAM_CACHE"
            ) from None
    return replace(model, sources={**model.sources, source.name: source})


@with_export("the export")
def _exported(model: Model, source: NetworkSource, precision: Precision, say: Say) -> Path:
    """Give the ONNX file, written first where it is not there."""
    file, weights = _file(model, precision), model.path / "unet" / _WEIGHTS
    if _there(file) is not None:
        return file
    from toonstream.export.onnx import export_network

    say(f"{model.defaults.name}: exporting {source.name}, once")
    if is_ours(model.path):
        export_network(source.build(), file, weights, precision=precision)
        return file
    final, graphs = file.parent, file.parent.parent
    graphs.mkdir(parents=True, exist_ok=True)
    making = Path(mkdtemp(prefix=".", dir=graphs))
    try:
        copy = Path(shutil.copyfile(weights, making / _WEIGHTS))
        export_network(source.build(), making / file.name, copy, precision=precision)
        making.rename(final)
    except OSError:
        if not file.is_file():  # another process was first
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    _prune(graphs, limit=_LIMIT, now=time.time())
    return file


def _file(model: Model, precision: Precision) -> Path:
    """Say where the ONNX file is, or will be."""
    weights = model.path / "unet" / _WEIGHTS
    key = _key(model, weights, precision)
    if is_ours(model.path):
        return weights.with_name(f"reference-{key}.onnx")
    return cache_folder() / "graphs" / f"{model.defaults.name}-{key}" / "model.onnx"


def _there(file: Path) -> Path | None:
    """Give a file where it is there, and have it count as used now."""
    if not file.is_file():
        return None
    with suppress(OSError):  # not ours to touch
        os.utime(file.parent)
    return file


def _prune(graphs: Path, *, limit: int, now: float) -> None:
    """Remove those used least lately, as far as all together are more than `limit` bytes.

    What killed processes left goes likewise; what may still be at work stays.
    """
    found = []
    for folder in graphs.iterdir():
        with suppress(OSError):  # another process was quicker
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append((folder.stat().st_mtime, size, folder))
    total = 0
    for used, size, folder in sorted(found, reverse=True):
        total += size
        dead = folder.name.startswith(".") or total > limit
        if dead and now - used > _AT_WORK:
            shutil.rmtree(folder, ignore_errors=True)


def _key(model: Model, weights: Path, precision: Precision) -> str:
    """A name for everything that the graph and the weights beside it depend on."""
    status = weights.stat()
    facts = {
        "version": _VERSION,
        "weights": [str(weights.resolve()), status.st_size, status.st_mtime_ns],
        "config": (model.path / "unet" / "config.json").read_text(encoding="utf-8"),
        "layers": model.defaults.reference_layers,
        "motion_norm": model.defaults.motion_norm,
        "precision": precision,
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:_KEY_LENGTH]
