"""How a run tells what it does: a bar for people, lines for logs, JSON for machines, or nothing."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from toonstream.stream.pipeline import Progress

__all__ = ["Bar", "Lines", "MachineReadable", "Reporter", "Silent", "make_reporter"]

_BAR_SECONDS = 0.1  # between two drawings of the bar
_LINE_SECONDS = 5.0  # between two lines where there is no terminal
_JSON_SECONDS = 0.5  # between two JSON progress lines


class Reporter(Protocol):
    """What a run calls on its way."""

    def start(self, facts: Mapping[str, object]) -> None:
        """The source is open and the model loaded; `facts["frames"]` is the expected count, or None."""
        ...

    def progress(self, progress: Progress) -> None:
        """A frame came in or was committed."""
        ...

    def done(self, facts: Mapping[str, object], summary: str) -> None:
        """The output is written, or the run was stopped."""
        ...


class Silent:
    """Says nothing."""

    def start(self, facts: Mapping[str, object]) -> None:
        """Nothing."""

    def progress(self, progress: Progress) -> None:
        """Nothing."""

    def done(self, facts: Mapping[str, object], summary: str) -> None:
        """Nothing."""


class MachineReadable:
    """One JSON object a line, each with an `event`: start, progress, done."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._due = _Throttle(_JSON_SECONDS, clock)
        self._frames: object = None

    def start(self, facts: Mapping[str, object]) -> None:
        """Write what is about to be done."""
        self._frames = facts["frames"]
        self._write("start", facts)

    def progress(self, progress: Progress) -> None:
        """Write how far it is, twice a second at most."""
        if self._due():
            total = self._frames if isinstance(self._frames, int) else None
            self._write(
                "progress",
                {
                    "frames_in": progress.frames_in,
                    "frames_committed": progress.frames_committed,
                    "frames": total,
                    "lookahead": progress.lookahead,
                    "fps": round(progress.fps, 3),
                    "seconds": round(progress.seconds, 3),
                    "seconds_left": _seconds_left(progress, total),
                },
            )

    def done(self, facts: Mapping[str, object], summary: str) -> None:
        """Write the figures of the whole run."""
        self._write("done", facts)

    def _write(self, event: str, facts: Mapping[str, object]) -> None:
        self._stream.write(json.dumps({"event": event, **facts}) + "\n")
        self._stream.flush()


class Lines:
    """A line every few seconds, for logs."""

    def __init__(
        self, stream: TextIO, clock: Callable[[], float] = time.monotonic, *, every: float = _LINE_SECONDS
    ) -> None:
        self._stream = stream
        self._due = _Throttle(every, clock)
        self._total: int | None = None

    def start(self, facts: Mapping[str, object]) -> None:
        """Note the expected frame count."""
        frames = facts["frames"]
        self._total = frames if isinstance(frames, int) else None

    def progress(self, progress: Progress) -> None:
        """Write how far it is, when it is time."""
        if self._due():
            self._show(describe(progress, self._total))

    def done(self, facts: Mapping[str, object], summary: str) -> None:
        """Write the summary."""
        self._stream.write(summary + "\n")
        self._stream.flush()

    def _show(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class Bar(Lines):
    """A bar that is drawn over itself, for a terminal."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream, clock, every=_BAR_SECONDS)
        self._width = 0
        self._share = 0.0

    def progress(self, progress: Progress) -> None:
        """Draw the bar, ten times a second at most."""
        self._share = min(1.0, progress.frames_committed / self._total) if self._total else 0.0
        super().progress(progress)

    def done(self, facts: Mapping[str, object], summary: str) -> None:
        """Replace the bar by the summary."""
        self._stream.write("\r" + " " * self._width + "\r")
        super().done(facts, summary)

    def _show(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns - 1
        room = min(30, columns - len(text) - 3)
        if self._total and room >= 5:
            filled = round(room * self._share)
            text = f"[{'#' * filled}{'.' * (room - filled)}] {text}"
        text = text[:columns]
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)


def make_reporter(*, quiet: bool, machine_readable: bool) -> Reporter:
    """Choose the reporter for the options and for what standard error is."""
    if machine_readable:
        return MachineReadable(sys.stdout)
    if quiet:
        return Silent()
    return Bar(sys.stderr) if sys.stderr.isatty() else Lines(sys.stderr)


def describe(progress: Progress, total: int | None) -> str:
    """Say in one line how far a run is; `total` is the expected number of frames, or None."""
    whole = f"/{total}" if total is not None else ""
    left = _seconds_left(progress, total)
    return (
        f"in {progress.frames_in}{whole}  committed {progress.frames_committed}  {progress.fps:.1f} fps  "
        f"look-ahead {progress.lookahead}" + (f"  {_duration(left)} left" if left is not None else "")
    )


class _Throttle:
    """Says yes at most once in so many seconds; the first time at once."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._last: float | None = None

    def __call__(self) -> bool:
        now = self._clock()
        if self._last is not None and now - self._last < self._seconds:
            return False
        self._last = now
        return True


def _seconds_left(progress: Progress, total: int | None) -> float | None:
    """Estimate from the speed so far; None where nothing can be said."""
    if total is None or progress.fps <= 0.0:
        return None
    return round(max(0, total - progress.frames_committed) / progress.fps, 1)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
