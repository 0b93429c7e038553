"""Work in a process of its own: asked for by one line of JSON, and followed line by line.

What takes gigabytes that only the end of a process gives back, or must be stopped at any time, is done by a
module that is run as a program. It reads its job from standard input and writes lines of JSON to standard
output: events, and at the end `error` or `done`. When standard input closes, whoever asked is gone, and it
ends at once.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import IO, Any, Protocol

from toonstream.errors import EngineError, ToonstreamError

__all__ = ["Tell", "follow", "work"]

_POLL_SECONDS = 0.2  # between two looks at the clock and at `stop`


class Tell(Protocol):
    """Speaks to whoever asked for the work."""

    def __call__(self, event: str, /, **facts: object) -> None:
        """Tell an event, and what belongs to it, ready for JSON."""
        ...


def follow(
    module: str,
    job: Mapping[str, object],
    *,
    label: str,
    what: str,
    heard: Callable[[Mapping[str, Any]], None],
    timeout: float,
    longer: str = "",
    stop: threading.Event | None = None,
) -> Mapping[str, Any]:
    """Have a job done; the process is gone when this returns, however it returns.

    Args:
        module: what is run; its program is `work`.
        job: what it is to do, ready for JSON.
        label: what it is done for, for people.
        what: the work, as in "build".
        heard: is given every event on the way.
        timeout: seconds after which it is given up.
        longer: what is then said that makes it wait longer, as in "; raise --timeout".
        stop: when it is set, it is given up.

    Returns:
        What came with `done`.

    Raises:
        EngineError: it fails, takes too long, is stopped, or dies.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    other: deque[str] = deque(maxlen=3)  # lines that are no events: the last words of a process that dies
    try:
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()  # and left open: when it closes, the process ends
        for line in _lines(process.stdout, time.monotonic() + timeout, stop, label, what, longer):
            event = _event(line)
            if event is None:
                other.append(line.strip())
                continue
            match event["event"]:
                case "error":
                    raise EngineError(f"{label}: {event['message']}")
                case "done":
                    return event
            heard(event)
        raise EngineError(_death(label, what, process.wait(), " ".join(other)))
    except BrokenPipeError:
        raise EngineError(_death(label, what, process.wait(), "")) from None
    finally:
        process.kill()
        process.wait()
        with suppress(BrokenPipeError):  # what it did not read before it died
            process.stdin.close()
        process.stdout.close()


def _event(line: str) -> dict[str, Any] | None:
    """Read a line as an event; None where it is something else, such as what a library prints."""
    try:
        read = json.loads(line)
    except json.JSONDecodeError:
        return None
    return read if isinstance(read, dict) and "event" in read else None


def _lines(
    stream: IO[str], deadline: float, stop: threading.Event | None, label: str, what: str, longer: str
) -> Iterator[str]:
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
            raise EngineError(f"{label}: the {what} was stopped")
        if time.monotonic() > deadline:
            raise EngineError(f"{label}: the {what} takes too long and was given up{longer}")
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            return
        yield line


def _death(label: str, what: str, code: int, words: str) -> str:
    memory = "; it may have run out of memory: close other programs, or lower --size" if code == -9 else ""
    said = f": {words}" if words else ""
    return f"{label}: the process of the {what} ended with {code}{said}{memory}; or use --engine torch"


def work(do: Callable[[Mapping[str, Any], Tell], None]) -> int:
    """Do the job that standard input names; gives the exit code."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        do(job, _tell)
    except ToonstreamError as error:
        _tell("error", message=str(error))
        return 1
    _tell("done", peak_bytes=_peak_bytes())
    return 0


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # past Python's buffer, whose lock would be missed at the end
        pass
    os._exit(1)


def _tell(event: str, /, **facts: object) -> None:
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def _peak_bytes() -> int | None:
    """The most memory that this process has had, where the system says."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
