"""Which engines there are, and which one to use."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass

from toonstream.engines.engine import Engine
from toonstream.errors import EngineError

__all__ = ["ENGINE_NAMES", "EngineReport", "available_engines", "open_engine"]

ENGINE_NAMES = ("openvino", "onnxruntime", "torch")  # in the order that `auto` prefers on a CPU


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What `toonstream doctor` says of an engine.

    Attributes:
        name: as `--engine` takes it.
        version: of the package behind it, or None where that is not installed.
        remedy: the command that installs it, or None where it is there.
    """

    name: str
    version: str | None
    remedy: str | None


def available_engines() -> tuple[EngineReport, ...]:
    """Report on every engine, the preferred ones first, without importing any."""
    return tuple(_report(name) for name in ENGINE_NAMES)


def _report(name: str) -> EngineReport:
    if importlib.util.find_spec(name) is None:
        return EngineReport(name=name, version=None, remedy=f"pip install {name}")
    return EngineReport(name=name, version=importlib.metadata.version(name), remedy=None)


def open_engine(name: str = "auto") -> Engine:
    """Open an engine by name.

    Args:
        name: openvino, onnxruntime, torch, or auto: torch where there is a GPU, else the first one installed.

    Raises:
        EngineError: the name is unknown, or the engine is not installed.
    """
    if name == "auto":
        name = _preferred()
    match name:
        case "openvino":
            from toonstream.engines.openvino import OpenVinoEngine

            return OpenVinoEngine()
        case "onnxruntime":
            from toonstream.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine()
        case "torch":
            from toonstream.engines.torch import TorchEngine

            return TorchEngine()
    raise EngineError(f"unknown engine {name!r}; choose one of auto, {', '.join(ENGINE_NAMES)}")


def _preferred() -> str:
    import torch

    if torch.cuda.is_available():
        return "torch"
    return next(report.name for report in available_engines() if report.version is not None)
