"""How a live stream is doing: figures that are frozen, and the meter that they are read from."""

import math
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from toonstream.stream.live.settings import Plan

__all__ = ["Drop", "Event", "LiveStatistics", "Meter", "Percentiles"]

_SPAN = 10.0  # seconds that percentiles and rates look back
_MOST = 1200  # values kept of each kind, however fast they come
_KEPT_EVENTS = 50


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of the values of the last seconds; in seconds, and None where there were none.

    Attributes:
        count: values that they are of.
    """

    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Percentiles":
        """The smallest value that 50, 95 and 99 % are not above."""
        ordered = sorted(values)
        if not ordered:
            return cls()
        p50, p95, p99 = (ordered[math.ceil(part * len(ordered)) - 1] for part in (0.5, 0.95, 0.99))
        return cls(count=len(ordered), p50=p50, p95=p95, p99=p99)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Frames that did not come through.

    Attributes:
        place: where: `input` (before anything was drawn), `window` (before it was decoded), `output` (when it
            was final), `flight` (at the end), or what a consumer calls its own, such as `screen`.
        reason: why: `late` (a newer one came, or it would be shown later than promised), `rate` (the plan
            keeps fewer), `clock` (it was not after the one before), `closed`, `failed`, or a consumer's own.
        count: how many since the start.
    """

    place: str
    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a person may want to read.

    Attributes:
        at: seconds by the session's clock.
        kind: `plan` (another plan runs), `promise` (it cannot be kept, or can again), `source` (it changes
            too often), `refused` (what was asked for cannot be had, what runs goes on), `words`, `loras` or
            `end`.
        message: one line.
    """

    at: float
    kind: str
    message: str


@dataclass(frozen=True, kw_only=True)
class LiveStatistics:
    """How a session is doing. Rates, percentiles and ages are of the last 10 seconds.

    Attributes:
        frames_in: frames offered since the start. frames_out: toons delivered since the start.
        fps_in: frames offered a second. fps_out: toons delivered a second.
        latency: seconds from capture to commit.
        shown: seconds from capture to where consumers say it was shown, see `LiveSession.note_shown`.
        stages: seconds of one turn of each stage or network: `conditions`, `hint_NAME`, `controlnet_NAME`,
            `unet`, `vae_decoder`, `deliver`; and `rest`, what a frame's way takes besides.
        waits: how long frames wait in each queue: `input` (for the worker), `window` (for later frames);
            and `turn`, how long a network call waits for those of other sessions.
        drops: by place and reason, since the start.
        plan: what runs; None until the first frame came.
        promise: seconds promised, or None. kept: whether the plan is thought to keep it.
        events: the latest ones, oldest first.
    """

    frames_in: int = 0
    frames_out: int = 0
    fps_in: float = 0.0
    fps_out: float = 0.0
    latency: Percentiles = Percentiles()
    shown: Percentiles = Percentiles()
    stages: Mapping[str, Percentiles] = field(default_factory=dict)
    waits: Mapping[str, Percentiles] = field(default_factory=dict)
    drops: tuple[Drop, ...] = ()
    plan: Plan | None = None
    promise: float | None = None
    kept: bool = True
    events: tuple[Event, ...] = ()

    @property
    def dropped(self) -> int:
        """All drops together."""
        return sum(drop.count for drop in self.drops)

    def facts(self) -> dict[str, object]:
        """Ready for JSON."""
        return asdict(self)


class Meter:
    """Collects what `LiveStatistics` show; for any thread.

    Memory is bounded: of each kind the last values within some seconds are kept, and not more than a number.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], deque[tuple[float, float]]] = {}
        self._times: dict[str, deque[float]] = {"in": deque(maxlen=_MOST), "out": deque(maxlen=_MOST)}
        self._counts: Counter[str] = Counter()
        self._drops: Counter[tuple[str, str]] = Counter()
        self._events: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._lock = threading.Lock()

    def add(self, kind: str, name: str, seconds: float, *, at: float) -> None:
        """Note a value of `latency`, `shown`, `stage` or `wait`."""
        with self._lock:
            self._values.setdefault((kind, name), deque(maxlen=_MOST)).append((at, seconds))

    def count(self, what: str, *, at: float) -> None:
        """Note a frame `in` or `out`."""
        with self._lock:
            self._counts[what] += 1
            self._times[what].append(at)

    def drop(self, place: str, reason: str, count: int = 1) -> None:
        """Note frames that did not come through."""
        with self._lock:
            self._drops[place, reason] += count

    def note(self, event: Event) -> None:
        """Note an event."""
        with self._lock:
            self._events.append(event)

    def read(
        self,
        *,
        at: float,
        plan: Plan | None = None,
        promise: float | None = None,
        kept: bool = True,
    ) -> LiveStatistics:
        """The figures now."""
        with self._lock:
            collected = {key: tuple(values) for key, values in self._values.items()}
            times = {what: tuple(when) for what, when in self._times.items()}
            counts, drops, events = dict(self._counts), dict(self._drops), tuple(self._events)
        recent = {
            key: Percentiles.of(seconds for when, seconds in values if when >= at - _SPAN)
            for key, values in collected.items()
        }
        return LiveStatistics(
            frames_in=counts.get("in", 0),
            frames_out=counts.get("out", 0),
            fps_in=_rate(times["in"], at),
            fps_out=_rate(times["out"], at),
            latency=recent.get(("latency", ""), Percentiles()),
            shown=recent.get(("shown", ""), Percentiles()),
            stages={name: value for (kind, name), value in recent.items() if kind == "stage"},
            waits={name: value for (kind, name), value in recent.items() if kind == "wait"},
            drops=tuple(
                Drop(place=place, reason=reason, count=count)
                for (place, reason), count in sorted(drops.items())
            ),
            plan=plan,
            promise=promise,
            kept=kept,
            events=events,
        )


def _rate(times: Iterable[float], at: float) -> float:
    """How many a second: of the recent ones, over the time since the first of them."""
    recent = [time for time in times if time >= at - _SPAN]
    seconds = at - recent[0] if recent else 0.0
    return (len(recent) - 1) / seconds if len(recent) > 1 and seconds > 0.0 else 0.0
