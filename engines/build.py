"""Builds an engine in a process of its own, and follows it."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from toonstream.engines.process import follow
from toonstream.engines.shapes import Triple

__all__ = ["TIMEOUT_SECONDS", "BuildJob", "Built", "run_build"]

TIMEOUT_SECONDS = 3600.0
_WORKER = "toonstream.engines.tensorrt.worker"


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """What to build.

    Attributes:
        label: what it is, for people. flavour: tensorrt-rtx or tensorrt. onnx: the file.
        shapes: of each input, by name.
        capability: the compute capability to build for, or None for the GPU that is there.
        flags: of the builder, such as "refit".
    """

    label: str
    flavour: str
    onnx: Path
    shapes: Mapping[str, Triple]
    capability: tuple[int, int] | None
    flags: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build took.

    Attributes:
        seconds: from start to end of its process.
        peak_bytes: the most memory that the process had, or None where the system does not say.
    """

    seconds: float
    peak_bytes: int | None


def run_build(
    job: BuildJob,
    output: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
    timeout: float = TIMEOUT_SECONDS,
    stop: threading.Event | None = None,
) -> Built:
    """Build an engine; the process is gone when this returns, however it returns.

    Args:
        job: what to build.
        output: the file to write.
        say: is told how far it is, one line at a time.
        timeout: seconds after which it is given up.
        stop: when it is set, the build is given up.

    Raises:
        EngineError: it is refused, takes too long, is stopped, or dies.
    """
    begin = time.monotonic()
    done = follow(
        _WORKER,
        {
            "flavour": job.flavour,
            "onnx": str(job.onnx),
            "output": str(output),
            "shapes": {name: [list(shape) for shape in triple] for name, triple in job.shapes.items()},
            "capability": job.capability,
            "flags": sorted(job.flags),
        },
        label=job.label,
        what="build",
        heard=lambda event: say(f"{job.label}: {event['phase']} {event['done']}/{event['steps']}"),
        timeout=timeout,
        longer="; raise --timeout",
        stop=stop,
    )
    return Built(seconds=time.monotonic() - begin, peak_bytes=done["peak_bytes"])
