"""A live stream from one address to others: the composition root of `toonstream SRC DST…`.

    source ─ pictures → session → toons ┐
           └ sound ─────────────────────┴→ playout → outlet, outlet, …

    source thread       session's thread   playout thread   a thread each

The source never waits for the networks, and nothing waits for an outlet. What goes away comes back by
`retry.persist`, while the outlets are kept alive with the last toon.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from toonstream.errors import EngineError, InputError, OutputError, ToonstreamError
from toonstream.stream.address import redact
from toonstream.stream.compose import fitted, side_by_side
from toonstream.stream.frame import Frame
from toonstream.stream.live.session import End, LiveToon
from toonstream.stream.live.statistics import LiveStatistics, Percentiles
from toonstream.stream.playout import Playout
from toonstream.stream.retry import Patience, Retry, persist
from toonstream.stream.sinks.live import OutputFormat
from toonstream.stream.sinks.tee import OutletStatistics, Tee
from toonstream.stream.sources.live import Picture, SourceFormat, SourceGone, SourceStatistics
from toonstream.stream.sources.sound import Sound
from toonstream.stream.sources.timeline import Timeline

__all__ = ["Relay", "RelayNews", "Session", "Source"]

_TICK = 0.1  # seconds between two looks at whether to stop
_NEWS = 1.0  # seconds between two reports
_FLUSH = 10.0  # seconds that networks may take for what is in flight, and outlets for what waits
_GOING = 64  # toons on their way through the outlets; what is older has been dropped there
_LET_GO = 1.0  # seconds that a source in the middle of waiting for a network gets to notice a stop


class Source(Protocol):
    """What gives pictures and sound, see `LiveSource`."""

    @property
    def shown(self) -> str:
        """Its name for people."""
        ...

    @property
    def statistics(self) -> SourceStatistics:
        """The figures now."""
        ...

    def read(self, timeline: Timeline, opened: Callable[[SourceFormat], None]) -> Iterator[Picture | Sound]:
        """Open it and give what comes."""
        ...

    def interrupt(self) -> None:
        """End waiting and reading, from any thread."""
        ...


class Session(Protocol):
    """What turns pictures into toons, see `LiveSession`."""

    def offer(self, frame: Frame, captured_at: float) -> None:
        """Take a picture in; never waits."""
        ...

    def finish(self) -> None:
        """No more will come."""
        ...

    def close(self) -> None:
        """Stop now."""
        ...

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end; says whether it is there."""
        ...

    def note_shown(self, toon: LiveToon, at: float | None = None) -> None:
        """Say when a toon went out."""
        ...

    def statistics(self) -> LiveStatistics:
        """The figures now."""
        ...


@dataclass(frozen=True, kw_only=True)
class RelayNews:
    """How a relay does.

    Attributes:
        seconds: since it began.
        source: `opening`, `preparing` (engines are built), `open`, `away` or `ended`.
        source_statistics: the figures of the source.
        jumps: how often the source's clock jumped.
        live: the figures of the session.
        delay: seconds between capture and going out.
        late: toons that came too late to be shown.
        repeated: how often a toon was shown again, to keep the outlets alive.
        outlets: the figures of each destination.
    """

    seconds: float
    source: str
    source_statistics: SourceStatistics
    jumps: int
    live: LiveStatistics
    delay: float
    late: int
    repeated: int
    outlets: tuple[OutletStatistics, ...]

    @property
    def latency(self) -> Percentiles:
        """Seconds from capture to going out, or as long as nothing went out, to being drawn."""
        return self.live.shown if self.live.shown.count else self.live.latency

    @property
    def dropped(self) -> int:
        """Frames that are on no outlet."""
        return self.live.dropped + self.late

    def facts(self) -> dict[str, object]:
        """The figures, ready for JSON."""
        return {
            "seconds": round(self.seconds, 1),
            "source": self.source,
            "frames_in": self.live.frames_in,
            "frames_out": self.live.frames_out,
            "fps_in": round(self.live.fps_in, 2),
            "fps": round(self.live.fps_out, 2),
            "latency_ms": _milliseconds(self.latency),
            "delay_ms": round(1000 * self.delay),
            "stages_ms": {name: _milliseconds(values) for name, values in self.live.stages.items()},
            "waits_ms": {name: _milliseconds(values) for name, values in self.live.waits.items()},
            "promise_ms": None if self.live.promise is None else round(1000 * self.live.promise),
            "plan": None if self.live.plan is None else str(self.live.plan),
            "dropped": self.dropped,
            "drops": [asdict(drop) for drop in self.live.drops],
            "late": self.late,
            "repeated": self.repeated,
            "corrupt": self.source_statistics.corrupt,
            "disordered": self.source_statistics.disordered,
            "jumps": self.jumps,
            "opened": self.source_statistics.opened,
            "destinations": [asdict(outlet) for outlet in self.outlets],
        }

    def summary(self) -> str:
        """The figures in one line."""
        p95 = self.latency.p95
        latency = "" if p95 is None else f", {1000 * p95:.0f} ms behind"
        away = "" if self.source == "open" else f", source {self.source}"
        if self.source == "open" and self.live.frames_in and not self.live.frames_out:
            away = ", the networks are being made ready"
        outlets = [f"{outlet.name} {outlet.state}" for outlet in self.outlets if outlet.state != "open"]
        return (
            f"{self.live.frames_out} toons, {self.live.fps_out:.1f} fps{latency}, {self.dropped} dropped"
            f"{away}" + "".join(f", {outlet}" for outlet in outlets)
        )


def _milliseconds(values: Percentiles) -> dict[str, float | None]:
    return {
        name: None if value is None else round(1000 * value, 1)
        for name, value in (("p50", values.p50), ("p95", values.p95), ("p99", values.p99))
    }


class Relay:
    """Runs one stream from its source through its session to its outlets.

    Args:
        source: where from.
        session: makes the session, given what takes its toons and what is told of its end.
        tee: where to.
        size: from (width, height) of the source's pictures to that of the toons.
        patience: with the source.
        note: told in one line what happens; on any thread.
        prepare: called once with the source's (width, height), where the source waits for that: so that the
            beginning of a clip is not lost to the building of engines.
        beside: whether to show the source to the left of the toon.
        bit_rate: of the pictures, for networks; None: by their size.
        promise: seconds from capture that are promised, or None.
        clock: seconds; the session's.
    """

    def __init__(
        self,
        source: Source,
        session: Callable[[Callable[[LiveToon], None], Callable[[End], None]], Session],
        tee: Tee,
        *,
        size: Callable[[int, int], tuple[int, int]],
        patience: Patience,
        note: Callable[[str], None] = lambda line: None,
        prepare: Callable[[tuple[int, int]], None] | None = None,
        beside: bool = False,
        bit_rate: int | None = None,
        promise: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._source = source
        self._make_session = session
        self._tee = tee
        self._size = size
        self._retry = Retry(patience, clock=clock)
        self._note = note
        self._prepare = prepare
        self._beside = beside
        self._bit_rate = bit_rate
        self._clock = clock
        self._began = clock()
        self._timeline = Timeline()
        self._playout = Playout(promise=promise)
        self._waiting: deque[LiveToon] = deque()  # for going out, in order
        self._going: dict[int, LiveToon] = {}  # handed to the outlets, and written by none yet
        self._changed = threading.Condition()
        self._state = "opening"
        self._failure: ToonstreamError | None = None
        self._stopping = threading.Event()
        self._end = threading.Event()
        self._drained = False  # whether the session has ended and its toons are all here
        self._hurry = False
        self._format: SourceFormat | None = None
        self._begun = False

    def run(
        self,
        *,
        stopped: Callable[[], bool] = lambda: False,
        observe: Callable[[RelayNews], None] = lambda news: None,
    ) -> RelayNews:
        """Run until the source ends, `stopped` says so, or nothing is left to do it with.

        Args:
            stopped: asked ten times a second.
            observe: told once a second how it does.

        Raises:
            ToonstreamError: source, session or all outlets failed; what was committed is written.
        """
        session = self._make_session(self._take, self._session_ended)
        self._session = session
        reading = self._reading = threading.Thread(target=self._read, name="toonstream-source", daemon=True)
        playing = threading.Thread(target=self._play, name="toonstream-playout", daemon=True)
        reading.start()
        playing.start()
        told = self._clock()
        while not (stopped() or self._over()):
            self._end.wait(_TICK)
            if self._clock() - told >= _NEWS:
                told = self._clock()
                observe(self.news())
                self._tell_drops()
        self._stopping.set()
        ended = self._state == "ended" and self._failure is None
        self._source.interrupt()
        reading.join(_LET_GO)  # it may be deep in a network; nobody waits for it then
        self._hurry = not ended
        session.finish()
        if not session.wait(_FLUSH):
            session.close()
        self._session_ended(None)
        playing.join(_FLUSH)
        self._tee.close(_FLUSH)
        self._tell_drops()
        news = self.news()
        failure = self._failure or self._tee.failure
        if failure is not None:
            raise failure
        return news

    @property
    def left_behind(self) -> bool:
        """Whether a thread is still deep in a network or an engine, and not waited for."""
        return self._reading.is_alive() or not self._session.wait(0.0)

    def news(self) -> RelayNews:
        """How it does now; from any thread, once `run` has begun."""
        with self._changed:
            delay, late, repeated = self._playout.delay, self._playout.late, self._playout.repeated
        return RelayNews(
            seconds=self._clock() - self._began,
            source=self._state,
            source_statistics=self._source.statistics,
            jumps=self._timeline.jumps,
            live=self._session.statistics(),
            delay=delay,
            late=late,
            repeated=repeated,
            outlets=tuple(outlet.statistics for outlet in self._tee.outlets),
        )

    def _over(self) -> bool:
        return self._end.is_set() or self._tee.failure is not None

    def _tell_drops(self) -> None:
        """Say what outlets dropped since the last time."""
        for outlet in self._tee.outlets:
            line = outlet.news()
            if line is not None:
                self._note(line)

    # The source's thread.

    def _read(self) -> None:
        try:
            persist(self._attempt, self._retry, wait=self._stopping.wait, failed=self._away)
            if not (self._begun or self._stopping.is_set() or self._failure):
                self._fail(InputError(f"{self._source.shown} has not shown a single picture: give another"))
        except SourceGone as error:
            if self._begun:
                self._note(f"{error}; that is the end")  # patience has ended, and the stream with it
            else:
                self._fail(error)
        except ToonstreamError as error:
            self._fail(error)
        except Exception as error:  # noqa: BLE001  whatever it is, outlets are to be closed properly
            self._fail(InputError(f"{self._source.shown}: {type(error).__name__}: {redact(str(error))}"))
        finally:
            self._state = "ended"
            self._end.set()

    def _attempt(self, worked: Callable[[], None]) -> None:
        self._state = "opening"
        for event in self._source.read(self._timeline, self._opened):
            if self._stopping.is_set():
                return
            if isinstance(event, Sound):
                with self._changed:
                    self._playout.hear(event)
                    self._changed.notify_all()
                continue
            if self._state != "open":
                self._state = "open"
                worked()
            if not self._begun and not self._begin(event.frame):
                return
            self._session.offer(event.frame, event.captured_at)

    def _opened(self, format_: SourceFormat) -> None:
        if self._format is not None:
            self._note(f"{self._source.shown} is there again")
        self._format = format_

    def _begin(self, frame: Frame) -> bool:
        """Tell everyone what will come; says whether it can."""
        assert self._format is not None
        height, width = frame.image.shape[:2]
        try:
            size = self._size(width, height)
            if self._prepare is not None:
                self._state = "preparing"
                self._prepare((width, height))
                self._state = "open"
        except ToonstreamError as error:
            self._fail(error)
            return False
        self._tee.begin(
            OutputFormat(
                width=2 * size[0] if self._beside else size[0],
                height=size[1],
                rate=self._format.rate,
                sound=self._format.sound,
                bit_rate=self._bit_rate,
            ),
            self._note_written,
        )
        self._begun = True
        return True

    def _away(self, error: ToonstreamError, pause: float) -> None:
        self._state = "away"
        self._note(f"{error}; again in {pause:.1f} s")

    # The session's thread.

    def _take(self, toon: LiveToon) -> None:
        frame = toon.toon
        if self._beside:
            height, width = frame.image.shape[:2]
            frame = replace(
                frame, image=side_by_side(fitted(toon.source.image, (width, height)), frame.image)
            )
        with self._changed:
            self._waiting.append(replace(toon, source=frame, toon=frame))  # not the source's large picture
            self._playout.show(frame, toon.captured_at, self._clock())
            self._changed.notify_all()

    def _session_ended(self, end: End | None) -> None:
        if end is not None and end.reason == "failed":
            self._fail(EngineError(end.message))
        with self._changed:
            self._drained = True
            self._changed.notify_all()
        self._end.set()

    # The playout's thread.

    def _play(self) -> None:
        try:
            self._play_until_drained()
        except Exception as error:  # noqa: BLE001  as in the source's thread
            self._fail(OutputError(f"{type(error).__name__}: {redact(str(error))}"))

    def _play_until_drained(self) -> None:
        while True:
            with self._changed:
                now = self._clock()
                items = self._playout.due(
                    now, everything=self._drained and self._hurry, keep_alive=not self._drained
                )
                self._going |= {toon.toon.index: toon for toon in self._shown(items)}
                while len(self._going) > _GOING:
                    self._going.pop(next(iter(self._going)))
                if not items:
                    if self._drained and not self._playout.waiting:
                        return
                    self._changed.wait(self._playout.wake_at(now) - now or _TICK)
                    continue
            for item in items:
                self._tee.offer(item)

    def _note_written(self, frame: Frame) -> None:
        """A destination has a frame, the first one: there its way ends."""
        with self._changed:
            toon = self._going.pop(frame.index, None)
        if toon is not None:
            self._session.note_shown(toon, self._clock())

    def _shown(self, items: list[Frame | Sound]) -> list[LiveToon]:
        """The toons among what goes out."""
        shown = {item.index for item in items if isinstance(item, Frame)}
        latest = max(shown, default=-1)
        out = []
        while self._waiting and self._waiting[0].toon.index <= latest:
            toon = self._waiting.popleft()
            if toon.toon.index in shown:
                out.append(toon)
        return out

    def _fail(self, error: ToonstreamError) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
        self._end.set()
