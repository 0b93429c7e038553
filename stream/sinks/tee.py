"""Several destinations at once. Each has a thread and a bounded ring of its own: none waits for another."""

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from toonstream.errors import OutputError, ToonstreamError
from toonstream.stream.address import redact
from toonstream.stream.frame import Frame
from toonstream.stream.retry import Patience, Retry, persist
from toonstream.stream.sinks.live import LiveSink, OutputFormat
from toonstream.stream.sinks.open import Destination
from toonstream.stream.sources.sound import Sound

__all__ = ["Outlet", "OutletStatistics", "Tee"]

_FRAMES = 16  # that wait at one outlet: half a second
_SOUNDS = 256  # packets likewise
_PROVEN = 1.0  # seconds after which an outlet that takes pictures counts as working


@dataclass(frozen=True, kw_only=True)
class OutletStatistics:
    """How one destination does.

    Attributes:
        name: for people.
        state: `waiting` (for the first picture), `opening`, `open`, `away` (will be tried again), `failed` or
            `closed`.
        frames: written.
        dropped: reason → frames that were not: `slow` (it did not keep up) or `away` (it was not there).
        sounds_dropped: packets of sound that were not written.
        opened: how often it was opened.
        waiting: frames that wait now.
    """

    name: str
    state: str
    frames: int
    dropped: Mapping[str, int]
    sounds_dropped: int
    opened: int
    waiting: int


class Outlet:
    """One destination: a ring, a thread that empties it, and patience.

    Args:
        destination: where to.
        patience: how often to try again.
        note: told in one line what happens to it; on any thread.
        clock: seconds.
        chance: for the pauses, see `Retry`.
    """

    def __init__(
        self,
        destination: Destination,
        patience: Patience,
        *,
        note: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = destination.shown
        self.failure: ToonstreamError | None = None
        self._destination = destination
        self._retry = Retry(
            patience if destination.retries else Patience(limit=0), chance=chance, clock=clock
        )
        self._note = note
        self._clock = clock
        self._changed = threading.Condition()
        self._items: deque[Frame | Sound] = deque()
        self._frames = 0  # of them
        self._dropped: Counter[str] = Counter()
        self._sounds_dropped = self._written = self._opened = self._told = 0
        self._state = "waiting"
        self._ended = False
        self._abandoned = False
        self._sink: LiveSink | None = None
        self._tell: Callable[[Frame], None] = lambda frame: None
        self._thread: threading.Thread | None = None

    def begin(self, format_: OutputFormat, written: Callable[[Frame], None] = lambda frame: None) -> None:
        """Say what will come; the destination is opened with the first picture.

        `written` is told of every frame, once it has been, on the outlet's thread.
        """
        self._tell = written
        self._thread = threading.Thread(
            target=self._run, args=(format_,), name=f"outlet {self.name}", daemon=True
        )
        self._thread.start()

    def offer(self, item: Frame | Sound) -> None:
        """Add a picture or sound; never waits. What is oldest gives way."""
        with self._changed:
            if self._ended or self.failure is not None:
                self._count(item, "away")
                return
            self._items.append(item)
            self._frames += isinstance(item, Frame)
            while self._frames > _FRAMES or len(self._items) - self._frames > _SOUNDS:
                self._count(self._take(), "slow" if self._state == "open" else "away")
            self._changed.notify_all()

    def finish(self) -> None:
        """Nothing more will come; what waits is written."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until everything is written and closed; says whether it is."""
        if self._thread is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def abandon(self) -> None:
        """Do not wait any longer: hang up."""
        with self._changed:
            self._ended = self._abandoned = True
            self._items.clear()
            self._frames = 0
            sink = self._sink
            self._changed.notify_all()
        if sink is not None:
            sink.abort()

    def news(self) -> str | None:
        """One line on frames dropped since the last time of asking; None if there were none."""
        with self._changed:
            total = self._dropped["slow"]
            fresh, self._told = total - self._told, total
        return f"{self.name} does not keep up: {fresh} frames dropped, {total} in all" if fresh else None

    @property
    def statistics(self) -> OutletStatistics:
        """The figures now."""
        with self._changed:
            return OutletStatistics(
                name=self.name,
                state=self._state,
                frames=self._written,
                dropped=dict(self._dropped),
                sounds_dropped=self._sounds_dropped,
                opened=self._opened,
                waiting=self._frames,
            )

    def _run(self, format_: OutputFormat) -> None:
        try:
            persist(
                lambda worked: self._attempt(format_, worked),
                self._retry,
                wait=self._pause,
                failed=lambda error, pause: self._note(f"{error}; again in {pause:.1f} s"),
            )
        except ToonstreamError as error:
            with self._changed:
                self.failure = error
        except Exception as error:  # noqa: BLE001  one outlet's failure is not the others'
            reason = f"{self.name}: {type(error).__name__}: {redact(str(error))}"
            with self._changed:
                self.failure = OutputError(reason)
        finally:
            with self._changed:
                self._state = "failed" if self.failure else "closed"
                while self._items:
                    self._count(self._take(), "away")
        if self.failure is not None:
            self._note(f"{self.failure}; it is given up")

    def _attempt(self, format_: OutputFormat, worked: Callable[[], None]) -> None:
        if not self._wait_for_picture():
            return
        self._enter("opening")
        again = self._opened > 0
        sink = self._destination.open(format_)
        with self._changed:
            self._sink, self._state = sink, "open"
            self._opened += 1
        if again:
            self._note(f"{self.name} is there again")
        proven, since = False, self._clock()
        item: Frame | Sound | None = None
        try:
            while (item := self._next()) is not None:
                if isinstance(item, Frame):
                    sink.write(item)
                    self._written += 1
                    self._tell(item)
                else:
                    sink.hear(item)
                if not proven and self._clock() - since >= _PROVEN:
                    proven = True
                    worked()
            sink.close()
        except BaseException:
            sink.abandon()
            if self._abandoned:
                return
            raise
        finally:
            with self._changed:
                if item is not None:
                    self._count(item, "away")
                self._sink = None
                self._state = "away"

    def _wait_for_picture(self) -> bool:
        """Wait for a picture, leaving out sound before it; says whether one came."""
        with self._changed:
            while not self._ended or self._frames:
                while self._items and not isinstance(self._items[0], Frame):
                    self._count(self._take(), "away")
                if self._frames:
                    return True
                self._changed.wait()
            return False

    def _next(self) -> Frame | Sound | None:
        """The oldest item, waited for; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended)
            return self._take() if self._items else None

    def _pause(self, seconds: float) -> bool:
        self._enter("away")
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout=seconds)

    def _enter(self, state: str) -> None:
        with self._changed:
            self._state = state

    def _take(self) -> Frame | Sound:
        item = self._items.popleft()
        self._frames -= isinstance(item, Frame)
        return item

    def _count(self, item: Frame | Sound, reason: str) -> None:
        if isinstance(item, Frame):
            self._dropped[reason] += 1
        else:
            self._sounds_dropped += 1


class Tee:
    """Outlets that are given the same, side by side."""

    def __init__(self, outlets: list[Outlet]) -> None:
        self.outlets = tuple(outlets)

    @property
    def failure(self) -> ToonstreamError | None:
        """Why there is nothing left to write to; None as long as there is."""
        failures = [outlet.failure for outlet in self.outlets]
        return failures[-1] if failures and all(failures) else None

    def begin(self, format_: OutputFormat, written: Callable[[Frame], None] = lambda frame: None) -> None:
        """Say what will come; `written` is told of every frame that an outlet has written, on its thread."""
        for outlet in self.outlets:
            outlet.begin(format_, written)

    def offer(self, item: Frame | Sound) -> None:
        """Give every outlet a picture or sound; never waits."""
        for outlet in self.outlets:
            outlet.offer(item)

    def close(self, seconds: float) -> None:
        """Let every outlet finish, all within so many seconds, and hang up on those that do not."""
        for outlet in self.outlets:
            outlet.finish()
        end = time.monotonic() + seconds
        late = [outlet for outlet in self.outlets if not outlet.wait(max(0.0, end - time.monotonic()))]
        for outlet in late:
            outlet.abandon()
        for outlet in late:
            outlet.wait(1.0)
