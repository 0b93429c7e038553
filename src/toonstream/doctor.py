"""`toonstream doctor`: what the machine has, what would be used, and the fix for what is missing."""

import importlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from toonstream import __version__
from toonstream.engines.installed import INSTALL_EXPORT, installed_version, missing_for_torch
from toonstream.errors import ToonstreamError

__all__ = ["Finding", "examine", "findings"]

_GIB = 1 << 30
_CPU_FEATURES = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_ENCODERS = ("libx264", "aac")
_INSTALL = "pip install toonstream"
_EXTRA = f"only needed for --engine torch and for export: {INSTALL_EXPORT}"
_PACKAGES = (
    ("torch", "torch", _INSTALL),
    ("av", "av", _INSTALL),
    ("opencv-python-headless", "cv2", _INSTALL),
    ("tokenizers", "tokenizers", _INSTALL),
    ("diffusers", "diffusers", _EXTRA),
    ("transformers", "transformers", _EXTRA),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was looked at.
        text: what was found.
        fix: what to do about it, or empty where nothing is amiss.
        needed: nothing works without it.
    """

    topic: str
    text: str
    fix: str = ""
    needed: bool = False


def examine(stream: TextIO) -> int:
    """Write the report; gives 0 where clips can be rendered, else 1."""
    healthy = True
    for finding in findings():
        mark = "ok" if not finding.fix else "MISSING" if finding.needed else "note"
        stream.write(f"{mark:8}{finding.topic:14}{finding.text}\n")
        if finding.fix:
            stream.write(f"{'':22}fix: {finding.fix}\n")
        healthy = healthy and not (finding.fix and finding.needed)
    stream.write("ready: try toonstream demo\n" if healthy else "not ready: see the fixes above\n")
    return 0 if healthy else 1


def findings() -> Iterator[Finding]:
    """Look at one thing after another: engines, codecs and the model only with the packages they need."""
    yield Finding(topic="toonstream", text=f"{__version__} in {Path(__file__).parent}")
    yield Finding(topic="python", text=f"{platform.python_version()} on {platform.platform()}")
    yield _cpu()
    yield _memory()
    packages = list(_packages())
    yield from packages
    if not any(finding.needed and finding.fix for finding in packages):
        yield _gpu()
        yield from _engines()
        yield _codecs()
        yield _model()


def _cpu() -> Finding:
    features = [name for name in _CPU_FEATURES if name in _cpu_flags()]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding(
        topic="cpu", text=f"{cores} cores, {platform.machine()}: {' '.join(features) or 'no features known'}"
    )


def _cpu_flags() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        word for line in lines if line.startswith(("flags", "Features")) for word in line.split()
    )


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return Finding(topic="memory", text="unknown")
    little = total < 2 * _GIB
    return Finding(
        topic="memory",
        text=f"{total / _GIB:.1f} GiB",
        fix="less than 2 GiB: take --size 256, or close other programs" if little else "",
    )


def _packages() -> Iterator[Finding]:
    for package, module, fix in _PACKAGES:
        try:
            importlib.import_module(module)
            yield Finding(topic=module, text=installed_version(module, package) or "")
        except ImportError as error:
            needed = "export" not in fix
            yield Finding(topic=module, text=" ".join(str(error).split()), fix=fix, needed=needed)


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(topic="gpu", text="none that torch can use; the CPU does the work")
    return Finding(topic="gpu", text=f"{torch.cuda.get_device_name()}, for --engine torch")


def _engines() -> Iterator[Finding]:
    import torch

    from toonstream.engines.memory import gpu_too_old
    from toonstream.engines.select import available_engines, engine_name, open_engine
    from toonstream.engines.tensorrt.flavour import apart

    for report in available_engines():
        if report.needs:
            text = f"{report.version or 'not installed'}; needs {report.needs}"
            wanted = report.remedy if torch.cuda.is_available() else None
            yield Finding(topic=report.name, text=text, fix=wanted or "")
            continue
        try:
            engine = open_engine(report.name)
        except ToonstreamError as error:
            yield Finding(topic=report.name, text=str(error), fix=report.remedy or "")
            continue
        precision = getattr(engine, "precision", "float32")
        yield Finding(topic=report.name, text=f"{report.version}, computes in {precision}")
    unused = torch.cuda.is_available() and gpu_too_old() is None and missing_for_torch() is not None
    try:
        _, coming = apart(engine_name("auto"))
        then = f", and {coming} once it is built and agrees with that on this card" if coming else ""
        yield Finding(
            topic="would use",
            text=f"--engine {open_engine('auto').name}{', and not the GPU' if unused else then}",
            fix=INSTALL_EXPORT if unused else "",
        )
    except ToonstreamError as error:
        yield Finding(topic="would use", text=str(error), fix=_INSTALL, needed=True)


def _codecs() -> Finding:
    import av

    missing = [name for name in _ENCODERS if name not in av.codecs_available]
    if not missing:
        return Finding(topic="codecs", text=", ".join(_ENCODERS))
    fix = "pip install --force-reinstall --only-binary=av av"
    return Finding(topic="codecs", text=f"no {', '.join(missing)}", fix=fix, needed=True)


def _model() -> Finding:
    from toonstream.export.checkpoints import open_model, shipped_model

    try:
        model = open_model(shipped_model())
    except ToonstreamError as error:
        return Finding(topic="model", text=str(error), fix="install toonstream again", needed=True)
    size = sum(path.stat().st_size for path in model.path.rglob("*") if path.is_file())
    text = f"{model.defaults.name}, {size / 1e6:.1f} MB; styles {', '.join(model.defaults.styles)}"
    return Finding(topic="model", text=text)
