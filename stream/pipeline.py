"""The stages of a file and the bounded queues between them.

    frames → conditions │ → denoise → decode │ → write
        read thread        calling thread     write thread

All networks run on the calling thread, one after the other: each takes every core as it is. The other
stages overlap with them. Each queue is bounded, so a slow stage slows the ones before it, back to the
demuxer, and memory does not grow with the clip.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditioned
from toonstream.stream.frame import Frame
from toonstream.stream.queues import Cancelled, Channel
from toonstream.stream.stylizer import Toon

__all__ = ["Drawing", "Progress", "Stylizing", "run"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_DEPTH = 4  # frames in each queue: enough to ride out an uneven stage, little enough to stay small


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come.

    Attributes:
        frames_in: frames that entered the rolling window.
        frames_committed: frames that left it, in order.
        seconds: since the run began.
        first_seconds: from then to the first committed frame; None until there is one.
    """

    frames_in: int
    frames_committed: int
    seconds: float
    first_seconds: float | None

    @property
    def lookahead(self) -> int:
        """Frames that have come in and wait for later ones."""
        return self.frames_in - self.frames_committed

    @property
    def fps(self) -> float:
        """Frames committed per second so far."""
        return self.frames_committed / self.seconds if self.seconds > 0.0 else 0.0


class Drawing(Protocol[T_co]):
    """What turns frames into something drawn of each, some frames later."""

    def push(self, conditioned: Conditioned) -> Iterable[T_co]:
        """Take the next frame; give what became final, in order."""
        ...

    def finish(self) -> Iterable[T_co]:
        """The stream has ended: give the rest."""
        ...


Stylizing: TypeAlias = Drawing[Toon]
"""What turns frames into toon frames."""


def run(
    frames: Iterable[Frame],
    conditions: Callable[[Frame], Conditioned],
    stylizer: Drawing[T],
    write: Callable[[T], None],
    *,
    stopwatch: Stopwatch,
    stopped: Callable[[], bool] = lambda: False,
    observe: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Take all frames through all stages.

    Args:
        frames: the source; read on a thread of its own.
        conditions: resizes a frame and draws its hints; called on that thread.
        stylizer: called on the calling thread.
        write: takes what was drawn in order, on a third thread.
        stopwatch: gives the time, and is told how long `conditions` and `write` are busy.
        stopped: asked before every frame; once it says yes no more is read, what is committed is still
            written, and what is not is dropped.
        observe: told, on the calling thread, after every frame that came in or was committed.

    Returns:
        How far it came; every committed frame is written.

    Raises:
        Whatever a stage raises. The other stages end first.
    """
    incoming: Channel[Conditioned] = Channel(_DEPTH)
    outgoing: Channel[T] = Channel(_DEPTH)
    begin = stopwatch.now()
    progress = Progress(frames_in=0, frames_committed=0, seconds=0.0, first_seconds=None)

    def advance(came_in: int, committed: int) -> None:
        nonlocal progress
        seconds = stopwatch.now() - begin
        first = seconds if committed and progress.first_seconds is None else progress.first_seconds
        progress = Progress(
            frames_in=progress.frames_in + came_in,
            frames_committed=progress.frames_committed + committed,
            seconds=seconds,
            first_seconds=first,
        )
        observe(progress)

    def read() -> None:
        with incoming.producing():
            for frame in frames:
                if stopped():
                    return
                with stopwatch.measure("conditions"):
                    conditioned = conditions(frame)
                incoming.put(conditioned)

    def pass_on(toons: Iterable[T]) -> None:
        for toon in toons:
            outgoing.put(toon)
            advance(0, 1)

    def stylize() -> None:
        with incoming.consuming(), outgoing.producing():
            for conditioned in incoming:
                if stopped():
                    return
                advance(1, 0)
                pass_on(stylizer.push(conditioned))
            if not stopped():
                pass_on(stylizer.finish())

    def save() -> None:
        with outgoing.consuming():
            for toon in outgoing:
                with stopwatch.measure("write"):
                    write(toon)

    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="toonstream") as threads:
        others = [threads.submit(read), threads.submit(save)]
        with suppress(Cancelled):  # then another stage failed, and its error is the one to show
            stylize()
    for failure in (future.exception() for future in others):
        if failure is not None and not isinstance(failure, Cancelled):
            raise failure
    advance(0, 0)
    return progress
