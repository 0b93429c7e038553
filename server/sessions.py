"""One publisher's session: its frames through the live core, onto the stage that others watch."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from av import AudioFrame

from toonstream.server.encode import Picture
from toonstream.server.fanout import Lane
from toonstream.server.intake import read_sound, read_video
from toonstream.server.live import Change, Figures, Live, OpenLive
from toonstream.server.metrics import Metrics
from toonstream.server.sdp import Offer
from toonstream.server.settings import ServerSettings
from toonstream.server.stage import Stage, Watcher
from toonstream.server.tracks import LaneTrack
from toonstream.stream.clock import monotonic
from toonstream.stream.frame import Frame
from toonstream.stream.live.statistics import LiveStatistics, Percentiles

__all__ = ["Session"]

_log = logging.getLogger(__name__)

_SPAN = 2.0  # seconds over which rates are counted
_LOGGED = ("plan", "promise", "source", "refused")  # kinds of events that hold nothing of the publisher's
_PARTS = ("p50", "p95", "p99")


class Rate:
    """Counts events per second over the last moments."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    def count(self, now: float) -> None:
        """One more."""
        self._times.append(now)
        self.per_second(now)

    def per_second(self, now: float) -> float:
        """How many a second, lately."""
        while self._times and self._times[0] < now - _SPAN:
            self._times.popleft()
        return len(self._times) / _SPAN


class Session:
    """One publisher, and the stage that others watch. Knows nothing of any other session.

    Args:
        number: for the log, which shows no keys.
        settings: of the server.
        threads: for conversions.
        metrics: of the server.
        ended: told once, with the reason, when the session cannot go on. Whoever is told closes it.
        stage: where its toon is shown.

    Attributes:
        over_because: why it has ended, once it has.
        cut_off: whether it ended without a goodbye, so that the publisher may come back.
        key: the secret in the URL of the publisher's resource.
    """

    def __init__(
        self,
        number: int,
        *,
        settings: ServerSettings,
        threads: Executor,
        metrics: Metrics,
        ended: Callable[["Session", str], None],
        stage: Stage,
    ) -> None:
        self.number = number
        self.key = secrets.token_urlsafe(24)
        self.stage = stage
        self.over_because: str | None = None
        self.cut_off = False
        self.change_so_far = Change()
        self._settings = settings
        self._threads = threads
        self._metrics = metrics
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._began = monotonic()
        self._in, self._out = Rate(), Rate()
        self._live: Live | None = None
        self._core: Mapping[str, Any] = {}
        self._here = LiveStatistics()
        self._told_at = float("-inf")
        self._tasks: list[asyncio.Task[None]] = []
        self._off_stage = False  # whether what is still delivered is for nobody
        self._changing = asyncio.Lock()  # changes are taken one at a time, in the order in which they came
        self._video = LaneTrack("video")
        self.peer = stage.make_peer(self.over)

    @property
    def watch_key(self) -> str:
        """The one in the link for watchers."""
        return self.stage.watch_key

    @property
    def watchers(self) -> dict[str, Watcher]:
        """Those who watch, by their keys."""
        return self.stage.watchers

    def lane(self, codec: str) -> "Lane[Picture] | Lane[tuple[AudioFrame, float]]":
        """What encodes this session's toon, or its sound, with a codec."""
        return self.stage.lane(codec)

    async def begin(self, offer: Offer, change: Change, open_live: OpenLive) -> str:
        """Answer the publisher, open the live core, and begin to read; gives the answer's SDP.

        Raises:
            InputError: the offer or the settings make no sense.
            ToonstreamError: the live core cannot be opened.
        """
        limits = self._settings.limits
        tracks = [self._video, LaneTrack("audio")]
        answer = await self.peer.answer(
            offer,
            tracks,
            receiving=True,
            candidates=limits.candidates,
            connect_seconds=limits.connect_seconds,
        )
        self.stage.connect(self.peer, tracks)
        self.change_so_far = change
        self.stage.promise(change.latency or self._settings.latency)
        self._live = await self._loop.run_in_executor(
            None, open_live, change, self._deliver_from_thread, self._fail_from_thread
        )
        self.stage.aged = self._live.aged
        self._tasks.append(asyncio.create_task(self._read_video(), name="video intake"))
        if "audio" in self.peer.received:
            self._tasks.append(asyncio.create_task(self._read_sound(), name="sound intake"))
        for task in self._tasks:
            task.add_done_callback(self._note_failure)
        return answer

    async def change(self, change: Change) -> None:
        """Take other settings from the next window on; on a thread, since a prompt may take its time to read.

        Raises:
            SettingError: they make no sense.
        """
        async with self._changing:
            if self._live is not None:
                await self._loop.run_in_executor(None, self._live.change, change)
            self.change_so_far = Change(**{**_asked(self.change_so_far), **_asked(change)})
            if change.latency:
                self.stage.promise(change.latency)

    @property
    def leaves_room(self) -> bool:
        """Whether the machine is thought to be fast enough for it, as of the last `refresh`.

        Who asks for less latency than the server promises, and does not get it, keeps nobody out for that.
        """
        figures, asked = self.figures(), self.change_so_far.latency
        if figures.kept or asked is None or asked >= self._settings.latency:
            return figures.kept
        return figures.latency.get("p95", 0.0) <= self._settings.latency

    async def refresh(self) -> None:
        """Read how everything does; on a thread, since there is a lot to sort."""
        self._core, self._here = await self._loop.run_in_executor(self._threads, self._read_figures)

    def figures(self) -> Figures:
        """How the whole of it does, as of the last `refresh`."""
        core, here = self._core, self._here
        return Figures(
            latency=_parts(here.shown),
            stages={**_each(here.stages), **_told(core.get("stages", {}))},
            waits={**_each(here.waits), **_told(core.get("waits", {}))},
            dropped=core.get("dropped", {}),
            events=tuple(core.get("events", ())),
            promise=core.get("promise"),
            kept=core.get("kept", True),
        )

    def statistics(self) -> dict[str, object]:
        """What the page shows: figures of the last seconds, as of the last `refresh`."""
        now, figures = monotonic(), self.figures()
        return {
            "seconds": round(now - self._began, 1),
            "frames_in_per_second": round(self._in.per_second(now), 1),
            "frames_out_per_second": round(self._out.per_second(now), 1),
            "latency_ms": _milliseconds(figures.latency),
            "stages_ms": {name: _milliseconds(parts) for name, parts in figures.stages.items()},
            "waits_ms": {name: _milliseconds(parts) for name, parts in figures.waits.items()},
            "dropped": figures.dropped,
            "playout_ms": round(1000 * self.stage.delay, 1),
            "size": self.stage.size,
            "codec": self.peer.codecs.get("video"),
            "watchers": len(self.watchers),
            "state": self.peer.state,
            "settings": {
                name: value for name, value in asdict(self.change_so_far).items() if value is not None
            },
            "core": dict(self._core),
        }

    def clock(self, asked_at: float) -> dict[str, float | None]:
        """For whoever asks, to tell the age of each picture where it is shown.

        Args:
            asked_at: when the question came in, on the server's clock.

        Returns:
            `rtp`, the RTP timestamp that a picture would have that is captured now, and `after_ms`,
            milliseconds that have passed since the question came.
        """
        return {
            "rtp": self.stage.timestamp(self._video),
            "after_ms": round(1000 * (monotonic() - asked_at), 3),
        }

    def summary(self) -> str:
        """How it does, in one line."""
        now, figures = monotonic(), self.figures()
        latency = "/".join(f"{1000 * figures.latency[part]:.0f}" for part in _PARTS if figures.latency)
        waits = {name: each["p50"] for name, each in figures.waits.items() if name != "playout"}
        longest = max(waits, key=lambda name: waits[name], default=None)
        waiting = "" if longest is None else f", longest queue {longest} ({1000 * waits[longest]:.0f} ms)"
        return (
            f"{self._in.per_second(now):.1f} fps in, {self._out.per_second(now):.1f} out"
            + (f", {latency} ms behind (p50/p95/p99)" if latency else "")
            + waiting
            + f", {len(self.watchers)} watching"
        )

    def news(self) -> list[str]:
        """What happened since it was asked last, as of the last `refresh`; no words of the publisher's."""
        events = [event for event in self.figures().events if event["at"] > self._told_at]
        self._told_at = max((event["at"] for event in events), default=self._told_at)
        return [event["message"] for event in events if event["kind"] in _LOGGED]

    def core_drops(self) -> dict[tuple[str, str], int]:
        """(place, reason) → frames that the live core has left out, as of the last `refresh`."""
        dropped = self._core.get("dropped", {})
        return {
            (str(place), str(reason)): int(count)
            for place, reasons in dropped.items()
            for reason, count in reasons.items()
        }

    def over(self, reason: str, *, cut_off: bool = False) -> None:
        """The session cannot go on.

        Args:
            reason: for people.
            cut_off: whether it is known that this is no goodbye.
        """
        if self.over_because is None:
            self.over_because = reason
            self.cut_off = cut_off
            self._ended(self, reason)

    async def close(self, *, flush: float = 0.0, leave: bool = False) -> None:
        """End it: read no more, show what is in flight, say goodbye.

        Args:
            flush: seconds that showing what is in flight may take.
            leave: whether to leave the stage to those who watch.
        """
        self.over_because = self.over_because or "it was closed"
        self._off_stage = leave
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()  # and with them what they had open
        if flush > 0.0 and self._live is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(flush):
                    await self._loop.run_in_executor(None, self._live.finish)
                    await asyncio.sleep(0)  # what was delivered last is on its way onto the stage
                    await self.stage.drain()
        if leave:
            await self.peer.close()
        else:
            await asyncio.gather(self.peer.close(), self.stage.close())
        if self._live is not None:
            self._core, self._here = await self._loop.run_in_executor(None, self._close_live, self._live)

    def _read_figures(self) -> tuple[Mapping[str, Any], LiveStatistics]:
        core = {} if self._live is None else self._live.statistics()
        return core, self.stage.meter.read(at=monotonic())

    def _close_live(self, live: Live) -> tuple[Mapping[str, Any], LiveStatistics]:
        live.close()
        return self._read_figures()

    async def _read_video(self) -> None:
        limits = self._settings.limits
        track = self.peer.received.get("video")
        live = self._live
        assert track is not None
        assert live is not None

        def offer(frame: Frame, captured_at: float) -> None:
            self._loop.call_soon_threadsafe(self._captured)
            live.offer(frame, captured_at)

        ending = await read_video(
            track,
            self.peer.receiver("video"),
            offer,
            threads=self._threads,
            dropped=self._metrics.dropped,
            frame_side=limits.frame_side,
            silence_seconds=limits.silence_seconds,
            timed=lambda kind, name, seconds: self.stage.meter.add(kind, name, seconds, at=monotonic()),
        )
        self.over(ending.reason, cut_off=ending.cut_off)

    async def _read_sound(self) -> None:
        await read_sound(self.peer.received["audio"], self.stage.hear)

    def _note_failure(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.over(f"reading failed: {type(error).__name__}: {error}")

    def _captured(self) -> None:
        self._in.count(monotonic())
        self._metrics.frames.labels("in").inc()

    def _deliver_from_thread(self, toon: Frame, captured_at: float) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody is left to see it
            self._loop.call_soon_threadsafe(self._deliver, toon, captured_at)

    def _fail_from_thread(self, reason: str) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.over, reason)

    def _deliver(self, toon: Frame, captured_at: float) -> None:
        self._out.count(monotonic())
        self._metrics.frames.labels("out").inc()
        if not self._off_stage:
            self.stage.show(toon, captured_at)


def _asked(change: Change) -> dict[str, Any]:
    return {name: value for name, value in asdict(change).items() if value is not None}


def _parts(values: Percentiles) -> dict[str, float]:
    """Seconds by p50, p95 and p99; empty where there are none."""
    return {part: getattr(values, part) for part in _PARTS} if values.count else {}


def _each(values: Mapping[str, Percentiles]) -> dict[str, dict[str, float]]:
    return {name: parts for name, each in values.items() if (parts := _parts(each))}


def _told(values: Mapping[str, Mapping[str, float | None]]) -> dict[str, dict[str, float]]:
    """The same, of what the live core says."""
    return {
        name: {part: seconds for part in _PARTS if (seconds := each.get(part)) is not None}
        for name, each in values.items()
        if each.get("p50") is not None
    }


def _milliseconds(parts: Mapping[str, float]) -> dict[str, float]:
    return {part: round(1000 * seconds, 1) for part, seconds in parts.items()}
