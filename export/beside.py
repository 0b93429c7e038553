"""Exports beside a stream that torch draws meanwhile, in a process of its own."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from toonstream.engines.build import TIMEOUT_SECONDS
from toonstream.engines.engine import NetworkSource
from toonstream.engines.process import follow
from toonstream.export.assemble import export_for, is_ours
from toonstream.export.checkpoints import Model
from toonstream.export.reference import with_reference

__all__ = ["ExportBeside"]

_WORKER = "toonstream.export.worker"
_ATTENDS = "unet_reference"  # has its graph wherever the model lies


class ExportBeside:
    """Gives networks of a model their ONNX files, all exported when the first of them has none.

    Args:
        model: opened for an engine behind torch.
        engine: that wants the files.
        say: is told how far it is.
    """

    def __init__(self, model: Model, *, engine: str, say: Callable[[str], None] = lambda line: None) -> None:
        self._model = model
        self._engine = engine
        self._say = say
        self._files: Mapping[str, Path | None] | None = None

    def __call__(self, source: NetworkSource, stop: threading.Event) -> NetworkSource:
        """Give a network with its file; what cannot be exported stays without.

        Raises:
            EngineError: the export fails, or is stopped.
            ModelError: the model cannot be used any more.
        """
        if source.onnx is not None or not (is_ours(self._model.path) or source.name == _ATTENDS):
            return source
        if self._files is None:
            self._files = self._export(stop)
        return replace(source, onnx=self._files[source.name])

    def _export(self, stop: threading.Event) -> Mapping[str, Path | None]:
        attends = _ATTENDS in self._model.sources
        follow(
            _WORKER,
            {"engine": self._engine, "folder": str(self._model.path), "attends": attends},
            label=self._model.defaults.name,
            what="export",
            heard=lambda event: self._say(event["line"]),
            timeout=TIMEOUT_SECONDS,
            stop=stop,
        )
        exported = export_for(self._engine, self._model.path)
        if attends:
            exported = with_reference(exported, engine=self._engine)
        return {name: source.onnx for name, source in exported.sources.items()}
