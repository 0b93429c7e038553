"""One viewer's live stream: frames offered from anywhere, toons delivered, on a thread of its own.

    offer (any thread) → inbox │ → LiveCore → deliver
                                 worker thread

Sessions share networks and nothing else. Whatever fails in one ends that one, with a reason.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from toonstream.errors import ToonstreamError
from toonstream.stream.clock import Clock, monotonic
from toonstream.stream.frame import Frame
from toonstream.stream.live.core import LiveCore
from toonstream.stream.live.settings import LiveSettings
from toonstream.stream.live.statistics import Event, LiveStatistics
from toonstream.stream.live.studio import LiveToon, Studio

__all__ = ["End", "LiveSession", "LiveToon"]


@dataclass(frozen=True, kw_only=True)
class End:
    """How a session ended.

    Attributes:
        reason: `finished` (no more frames came, all toons are delivered), `closed`, or `failed`.
        message: one line.
    """

    reason: Literal["finished", "closed", "failed"]
    message: str


class LiveSession:
    """One viewer's stream. Its worker starts at once, and builds what it needs when the first frame comes.

    Args:
        shared: the networks.
        settings: what the viewer asks for.
        deliver: takes the toons in order, on the worker's thread; while it works nothing else is drawn, so it
            only hands them on.
        ended: told once, on the worker's thread, after the last toon.
        notify: told what a person may want to read, on the worker's thread.
        clock: gives the time, in seconds; the clock of `captured_at`.
        name: of the thread.

    Raises:
        InputError: the settings cannot be met.
    """

    def __init__(
        self,
        shared: Studio[Any],
        settings: LiveSettings,
        *,
        deliver: Callable[[LiveToon], None],
        ended: Callable[[End], None] = lambda end: None,
        notify: Callable[[Event], None] = lambda event: None,
        clock: Clock = monotonic,
        name: str = "live",
    ) -> None:
        self._core = LiveCore(shared, settings, deliver=deliver, clock=clock, notify=notify)
        self._clock = clock
        self._ended = ended
        self._end: End | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"toonstream-{name}", daemon=True)
        self._thread.start()

    @property
    def end(self) -> End | None:
        """How it ended, or None while it runs."""
        return self._end

    def offer(self, frame: Frame, captured_at: float) -> None:
        """Take a frame in; never waits. Where there is no room, the oldest that waits gives way.

        Args:
            frame: of any size; its index does not count, and its pts, time base and duration are kept.
            captured_at: when it was captured, in seconds by the session's clock.
        """
        self._core.offer(frame, captured_at)

    def change(self, settings: LiveSettings) -> None:
        """Ask for something else, from the next window boundary on; never waits.

        Raises:
            InputError: it cannot be met; what is asked for stays as it was.
        """
        self._core.change(settings)

    def finish(self) -> None:
        """No more frames come: what is in flight is committed and delivered. Does not wait for that."""
        self._core.inbox.end()

    def close(self) -> None:
        """Stop; what is in flight is dropped. Does not wait for the worker."""
        self._closing.set()
        self._core.inbox.end(drop=True)

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the session has ended, at most so long; says whether it has."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def note_age(self, seconds: float) -> None:
        """Note how old a toon was when a consumer could have sent it; from any thread.

        The controller goes by that, too: what takes the cores from encoders is seen there only.
        """
        self._core.note_age(seconds)

    def note_shown(self, toon: LiveToon, at: float | None = None) -> None:
        """Note when a consumer showed a toon, or sent it; from any thread."""
        now = self._clock() if at is None else at
        self._core.meter.add("shown", "", now - toon.captured_at, at=now)

    def note_drop(self, place: str, reason: str, count: int = 1) -> None:
        """Note toons that a consumer dropped; from any thread."""
        self._core.meter.drop(place, reason, count)

    def statistics(self) -> LiveStatistics:
        """How it is doing; from any thread."""
        return self._core.statistics()

    def _work(self) -> None:
        end = self._supervised()
        if end.reason != "finished":
            self._core.inbox.end(drop=True)
            self._core.abandon(end.reason)
        self._core.say("end", end.message)
        self._end = end
        self._ended(end)

    def _supervised(self) -> End:
        core = self._core
        try:
            while not self._closing.is_set():
                captured = core.inbox.take()
                if captured is None:
                    break
                core.take(captured)
            if self._closing.is_set():
                return End(reason="closed", message="closed")
            core.finish()
        except ToonstreamError as error:
            return End(reason="failed", message=str(error))
        except Exception as error:  # noqa: BLE001  one session's failure is not the process's
            return End(reason="failed", message=f"{type(error).__name__}: {error}")
        return End(reason="finished", message="the source has ended, and everything is delivered")
