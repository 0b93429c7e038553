"""Which engines there are, and which one to use."""

from collections.abc import Callable
from dataclasses import dataclass

from toonstream.engines.compiling import Compiler, usual_compiler
from toonstream.engines.engine import Engine
from toonstream.engines.installed import INSTALL_EXPORT, installed_version, missing_for_torch
from toonstream.engines.memory import gpu_too_old
from toonstream.engines.tensorrt.engine import Shapes, TensorRtEngine
from toonstream.engines.tensorrt.flavour import FLAVOURS, apart, behind, fitting
from toonstream.errors import EngineError

__all__ = ["ENGINE_NAMES", "EngineReport", "available_engines", "engine_name", "open_engine"]

_ANYWHERE = ("openvino", "onnxruntime", "torch")  # in the order that `auto` prefers on a CPU
ENGINE_NAMES = (*_ANYWHERE, *FLAVOURS)


@dataclass(frozen=True, kw_only=True)
class EngineReport:
    """What `toonstream doctor` says of an engine.

    Attributes:
        name: as `--engine` takes it.
        version: of the package behind it, or None where that is not installed.
        remedy: the command that installs it, or what it lacks; None where all is there.
        needs: what it needs besides, or empty.
    """

    name: str
    version: str | None
    remedy: str | None
    needs: str = ""


def available_engines() -> tuple[EngineReport, ...]:
    """Report on every engine, the preferred ones first, without importing any."""
    return (*(_report(name) for name in _ANYWHERE), *(_report_tensorrt(name) for name in FLAVOURS))


def _report(name: str) -> EngineReport:
    version = installed_version(name, name)
    if version is None:
        return EngineReport(name=name, version=None, remedy=f"pip install {name}")
    lacks = name == "torch" and missing_for_torch() is not None
    return EngineReport(name=name, version=version, remedy=INSTALL_EXPORT if lacks else None)


def _report_tensorrt(name: str) -> EngineReport:
    flavour = FLAVOURS[name]
    least = ".".join(map(str, flavour.least))
    needs = f"an NVIDIA GPU of compute capability {least} or newer" + (
        "; builds for other machines need none" if flavour.capabilities else ""
    )
    version = flavour.version
    remedy = flavour.remedy if version is None else None
    return EngineReport(name=name, version=version, remedy=remedy, needs=needs)


def engine_name(name: str) -> str:
    """Give the name of the engine that a name means.

    Args:
        name: one of `ENGINE_NAMES`, or auto: torch where there is a GPU for it and all that it needs, else
            the first one installed. Behind torch comes the flavour of TensorRT that is made for the GPU,
            where one is installed: "torch+tensorrt-rtx", see `flavour.apart`. What auto has given it takes.

    Raises:
        EngineError: the name is unknown.
    """
    if name == "auto":
        return _preferred()
    serving, coming = apart(name)
    if serving not in ENGINE_NAMES or (coming is not None and (serving != "torch" or coming not in FLAVOURS)):
        raise EngineError(f"unknown engine {name!r}; choose one of auto, {', '.join(ENGINE_NAMES)}")
    return name


def open_engine(
    name: str = "auto",
    *,
    shapes: Shapes | None = None,
    model: str = "",
    at_once: int = 1,
    compiler: Compiler | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Open an engine by name. OpenVINO leaves torch one thread of this process.

    Args:
        name: as for `engine_name`; of two, the one that serves at first is opened.
        shapes: of the networks; the engines that build ahead have to be told.
        model: put before each network's name where people read it.
        at_once: networks that will run at a time; OpenVINO gives each its share of the cores.
        compiler: of OpenVINO, one that has begun for so many at a time; None makes one.
        say: is told how far builds are.

    Raises:
        EngineError: the name is unknown, or the engine, or what it needs, is not installed.
    """
    name, _ = apart(engine_name(name))
    if name in FLAVOURS:
        if shapes is None:
            raise EngineError(f"{name} builds for shapes, and was told none; take another engine here")
        return TensorRtEngine(name, shapes=shapes, model=model, say=say)
    match name:
        case "openvino":
            import torch

            from toonstream.engines.openvino import OpenVinoEngine

            # What torch does beside it is short: more threads cost more than they bring.
            torch.set_num_threads(1)
            return OpenVinoEngine(compiler=compiler or usual_compiler(at_once))
        case "onnxruntime":
            from toonstream.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine()
    if missing := missing_for_torch():
        raise EngineError(missing)
    from toonstream.engines.torch import TorchEngine

    return TorchEngine()


def _preferred() -> str:
    import torch

    if torch.cuda.is_available() and gpu_too_old() is None and missing_for_torch() is None:
        flavour = fitting(torch.cuda.get_device_capability())
        return "torch" if flavour is None else behind("torch", flavour)
    installed = (name for name in _ANYWHERE if _report(name).version is not None)
    return next(installed)
