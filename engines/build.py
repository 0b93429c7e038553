"""Builds an engine in a process of its own, and follows it."""

import json
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from toonstream.engines.shapes import Triple
from toonstream.errors import EngineError

__all__ = ["TIMEOUT_SECONDS", "BuildJob", "Built", "run_build"]

TIMEOUT_SECONDS = 3600.0
_POLL_SECONDS = 0.2  # between two looks at the clock and at `stop`
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
    request = {
        "flavour": job.flavour,
        "onnx": str(job.onnx),
        "output": str(output),
        "shapes": {name: [list(shape) for shape in triple] for name, triple in job.shapes.items()},
        "capability": job.capability,
        "flags": sorted(job.flags),
    }
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", _WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    other: deque[str] = deque(maxlen=3)  # lines that are no JSON: the last words of a process that dies
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()  # and left open: when it closes, the process ends
        for line in _lines(process.stdout, begin + timeout, stop, job.label):
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                other.append(line.strip())
                continue
            match event["event"]:
                case "progress":
                    say(f"{job.label}: {event['phase']} {event['done']}/{event['steps']}")
                case "error":
                    raise EngineError(f"{job.label}: {event['message']}")
                case "done":
                    seconds = time.monotonic() - begin
                    return Built(seconds=seconds, peak_bytes=event["peak_bytes"])
        raise EngineError(_death(job, process.wait(), " ".join(other)))
    except BrokenPipeError:
        raise EngineError(_death(job, process.wait(), "")) from None
    finally:
        process.kill()
        process.wait()
        with suppress(BrokenPipeError):  # what it did not read before it died
            process.stdin.close()
        process.stdout.close()


def _lines(stream: IO[str], deadline: float, stop: threading.Event | None, label: str) -> Iterator[str]:
    """Give the lines of a stream until it ends, until the deadline, or until `stop` is set."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def pump() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    pumping = threading.Thread(target=pump, daemon=True)
    pumping.start()
    while True:
        if stop is not None and stop.is_set():
            raise EngineError(f"{label}: the build was stopped")
        if time.monotonic() > deadline:
            raise EngineError(f"{label}: the build takes too long and was given up; raise --timeout")
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            return
        yield line


def _death(job: BuildJob, code: int, words: str) -> str:
    memory = "; it may have run out of memory: close other programs, or lower --size" if code == -9 else ""
    said = f": {words}" if words else ""
    return f"{job.label}: the building process ended with {code}{said}{memory}; or use --engine torch"
