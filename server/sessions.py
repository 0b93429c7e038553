"""One publisher's session: its frames through the live core, and its toon to everybody who watches."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from av import AudioFrame

from toonstream.server.encode import VIDEO_CLOCK, OpusSound, Picture, VideoEncoder
from toonstream.server.fanout import Lane
from toonstream.server.intake import read_sound, read_video
from toonstream.server.live import Change, Live, OpenLive
from toonstream.server.metrics import Metrics
from toonstream.server.peers import Peer
from toonstream.server.sdp import Offer
from toonstream.server.settings import ServerSettings
from toonstream.server.tracks import LaneTrack
from toonstream.stream.clock import monotonic
from toonstream.stream.delay import Delay
from toonstream.stream.frame import Frame

__all__ = ["Session", "Watcher"]

_log = logging.getLogger(__name__)

_SPAN = 2.0  # seconds over which rates are counted
_CODECS = ("vp8", "h264")


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


class Latencies:
    """The last few seconds of latencies, and their percentiles."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=150)

    def add(self, seconds: float) -> None:
        """One more."""
        self._seconds.append(seconds)

    def percentiles(self) -> dict[str, float]:
        """Milliseconds at p50, p95 and p99; empty before there are any."""
        ordered = sorted(self._seconds)
        if not ordered:
            return {}
        return {f"p{p}": round(1000 * ordered[(len(ordered) - 1) * p // 100], 1) for p in (50, 95, 99)}


class Watcher:
    """Somebody who watches a session.

    Attributes:
        key: the secret in the URL of the watcher's resource.
        peer: the connection.
    """

    def __init__(self, peer: Peer, tracks: Sequence[LaneTrack]) -> None:
        self.key = secrets.token_urlsafe(24)
        self.peer = peer
        self.tracks = tracks

    async def close(self) -> None:
        """Say goodbye."""
        for track in self.tracks:
            track.stop()
        await self.peer.close()


class Session:
    """One publisher and its watchers. Knows nothing of any other session.

    Args:
        number: for the log, which shows no keys.
        settings: of the server.
        threads: for conversions and encoders.
        metrics: of the server.
        ended: told once, with the reason, when the session cannot go on. Whoever is told closes it.
        watch_key: for the watch link, or None for one that cannot be guessed.

    Attributes:
        over_because: why it has ended, once it has.
        key: the secret in the URL of the publisher's resource.
        watch_key: the one in the link for watchers.
    """

    def __init__(
        self,
        number: int,
        *,
        settings: ServerSettings,
        threads: Executor,
        metrics: Metrics,
        ended: Callable[["Session", str], None],
        watch_key: str | None = None,
    ) -> None:
        self.number = number
        self.key = secrets.token_urlsafe(24)
        self.watch_key = watch_key or secrets.token_urlsafe(16)
        self.watchers: dict[str, Watcher] = {}
        self._settings = settings
        self._threads = threads
        self._metrics = metrics
        self._ended = ended
        self.over_because: str | None = None
        self._loop = asyncio.get_running_loop()
        self._began = monotonic()
        self._delay = Delay(initial=settings.latency)
        self._in, self._out, self._latencies = Rate(), Rate(), Latencies()
        self._size: tuple[int, int] | None = None
        self._live: Live | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.change_so_far = Change()
        self._pictures = {codec: self._picture_lane(codec) for codec in _CODECS}
        self._sound: Lane[tuple[AudioFrame, float]] = Lane(
            lambda: OpusSound(self._began),
            lambda item: item[1],
            self._delay,
            threads=threads,
            dropped=metrics.dropped,
            leading=False,
            failed=self.over,
        )
        self.peer = self.make_peer(self.over)

    def make_peer(self, lost: Callable[[str], None]) -> Peer:
        """Prepare a connection with the server's settings."""
        return Peer(ice_servers=self._settings.ice_servers, codec=self._settings.codec, lost=lost)

    async def begin(self, offer: Offer, change: Change, open_live: OpenLive) -> str:
        """Answer the publisher, open the live core, and begin to read; gives the answer's SDP.

        Raises:
            InputError: the offer or the settings make no sense.
            ToonstreamError: the live core cannot be opened.
        """
        limits = self._settings.limits
        tracks = [LaneTrack("video"), LaneTrack("audio")]
        answer = await self.peer.answer(
            offer,
            tracks,
            receiving=True,
            candidates=limits.candidates,
            connect_seconds=limits.connect_seconds,
        )
        self._connect(self.peer, tracks)
        self.change_so_far = change
        self._live = await self._loop.run_in_executor(
            None, open_live, change, self._deliver_from_thread, self._fail_from_thread
        )
        self._tasks.append(asyncio.create_task(self._read_video(), name="video intake"))
        if "audio" in self.peer.received:
            self._tasks.append(asyncio.create_task(self._read_sound(), name="sound intake"))
        for task in self._tasks:
            task.add_done_callback(self._note_failure)
        return answer

    async def watch(self, offer: Offer, lost: Callable[[Watcher, str], None]) -> tuple[Watcher, str]:
        """Let somebody watch; gives the answer's SDP with it.

        Raises:
            InputError: the offer makes no sense.
        """
        limits = self._settings.limits
        tracks = [LaneTrack("video"), LaneTrack("audio")]
        peer = self.make_peer(lambda reason: lost(watcher, reason))
        watcher = Watcher(peer, tracks)
        try:
            answer = await peer.answer(
                offer,
                tracks,
                receiving=False,
                candidates=limits.candidates,
                connect_seconds=limits.connect_seconds,
            )
        except BaseException:
            await watcher.close()
            raise
        self._connect(peer, tracks)
        self.watchers[watcher.key] = watcher
        return watcher, answer

    def change(self, change: Change) -> None:
        """Take other settings from the next window on.

        Raises:
            SettingError: they make no sense.
        """
        if self._live is not None:
            self._live.change(change)
        self.change_so_far = Change(**{**_asked(self.change_so_far), **_asked(change)})

    def statistics(self) -> dict[str, object]:
        """What the page shows: figures of the last seconds."""
        now = monotonic()
        return {
            "seconds": round(now - self._began, 1),
            "frames_in_per_second": round(self._in.per_second(now), 1),
            "frames_out_per_second": round(self._out.per_second(now), 1),
            "latency_ms": self._latencies.percentiles(),
            "playout_ms": round(1000 * self._delay.seconds, 1),
            "size": self._size,
            "codec": self.peer.codecs.get("video"),
            "watchers": len(self.watchers),
            "state": self.peer.state,
            "settings": {
                name: value for name, value in asdict(self.change_so_far).items() if value is not None
            },
            "core": dict(self._live.statistics()) if self._live is not None else {},
        }

    def lane(self, codec: str) -> "Lane[Picture] | Lane[tuple[AudioFrame, float]]":
        """What encodes this session's toon, or its sound, with a codec."""
        return self._sound if codec == "opus" else self._pictures[codec]

    def core_drops(self) -> dict[tuple[str, str], int]:
        """(place, reason) → frames that the live core has left out."""
        dropped = self._live.statistics().get("dropped", {}) if self._live is not None else {}
        assert isinstance(dropped, dict)
        return {
            (str(place), str(reason)): int(count)
            for place, reasons in dropped.items()
            for reason, count in reasons.items()
        }

    def over(self, reason: str) -> None:
        """The session cannot go on."""
        if self.over_because is None:
            self.over_because = reason
            self._ended(self, reason)

    async def close(self, *, flush: float = 0.0) -> None:
        """End it: read no more, show what is in flight, say goodbye.

        Args:
            flush: seconds that showing what is in flight may take.
        """
        self.over_because = self.over_because or "it was closed"
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()  # and with them what they had open
        lanes: list[Lane[Picture] | Lane[tuple[AudioFrame, float]]] = [*self._pictures.values(), self._sound]
        if flush > 0.0 and self._live is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(flush):
                    await self._loop.run_in_executor(None, self._live.finish)
                    await asyncio.sleep(0)  # what was delivered last is on its way into the lanes
                    for lane in lanes:
                        lane.end()
                    await asyncio.gather(*(lane.drained() for lane in lanes))
        for lane in lanes:
            await lane.close()
        watchers = tuple(self.watchers.values())
        self.watchers.clear()
        await asyncio.gather(self.peer.close(), *(watcher.close() for watcher in watchers))
        if self._live is not None:
            await self._loop.run_in_executor(None, self._live.close)

    def _picture_lane(self, codec: str) -> Lane[Picture]:
        return Lane(
            lambda: VideoEncoder(codec, bitrate=self._settings.bitrate),
            lambda picture: picture.captured_at,
            self._delay,
            threads=self._threads,
            dropped=self._metrics.dropped,
            leading=True,
            sent=self._shown,
            failed=self.over,
        )

    def _connect(self, peer: Peer, tracks: Sequence[LaneTrack]) -> None:
        """Say to each track where its packets come from, now that the codec is known."""
        for track in tracks:
            codec = peer.codecs.get(track.kind)
            if track.kind == "audio" and codec == "opus":
                track.watch(self._sound)
            elif codec in self._pictures:
                track.watch(self._pictures[codec])

    async def _read_video(self) -> None:
        limits = self._settings.limits
        track = self.peer.received.get("video")
        live = self._live
        assert track is not None
        assert live is not None

        def offer(frame: Frame, captured_at: float) -> None:
            self._loop.call_soon_threadsafe(self._captured)
            live.offer(frame, captured_at)

        reason = await read_video(
            track,
            self.peer.receiver("video"),
            offer,
            threads=self._threads,
            dropped=self._metrics.dropped,
            frame_side=limits.frame_side,
            silence_seconds=limits.silence_seconds,
        )
        self.over(reason)

    async def _read_sound(self) -> None:
        await read_sound(self.peer.received["audio"], self._sound.feed)

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
        now = monotonic()
        self._out.count(now)
        self._metrics.frames.labels("out").inc()
        height, width = toon.image.shape[:2]
        self._size = (width, height)
        ticks = round((captured_at - self._began) * VIDEO_CLOCK)
        picture = Picture(toon.image, ticks, captured_at)
        for lane in self._pictures.values():
            lane.feed(picture)

    def _shown(self, latency: float) -> None:
        self._latencies.add(latency)
        self._metrics.latency.observe(latency)


def _asked(change: Change) -> dict[str, Any]:
    return {name: value for name, value in asdict(change).items() if value is not None}
