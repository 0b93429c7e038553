"""What is watched: a toon and its sound, encoded once per codec, whoever publishes it."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress

from av import AudioFrame

from toonstream.server.encode import VIDEO_CLOCK, OpusSound, Picture, VideoEncoder
from toonstream.server.fanout import Lane
from toonstream.server.metrics import Metrics
from toonstream.server.peers import Peer
from toonstream.server.sdp import Offer
from toonstream.server.settings import ServerSettings
from toonstream.server.tracks import LaneTrack
from toonstream.stream.clock import monotonic
from toonstream.stream.delay import Delay, longest_delay
from toonstream.stream.frame import Frame
from toonstream.stream.live.statistics import Meter

__all__ = ["Stage", "Watcher", "is_name"]

HELD_PERIOD = 0.5  # seconds between two showings of the last picture, while nobody publishes

_CODECS = ("vp8", "h264")
_SECRET = "~"  # begins every key that cannot be guessed; no name that may be chosen has it


def is_name(watch_key: str) -> bool:
    """Whether somebody chose it: then others may guess it."""
    return not watch_key.startswith(_SECRET)


class Watcher:
    """Somebody who watches a stage.

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


class Stage:
    """One toon and its watchers. Outlives a publisher who is cut off, and shows the last picture meanwhile.

    Args:
        settings: of the server.
        threads: for encoders.
        metrics: of the server.
        failed: told why it cannot go on.
        watch_key: for the watch link, or None for one that cannot be guessed.

    Attributes:
        watch_key: the one in the link for watchers.
        watchers: those who watch, by their keys.
        meter: how long everything takes here.
        failed: see above; another publisher's comes in its place.
        aged: told how many seconds old every picture is when it could go out; the publisher's, likewise.
        size: (width, height) of the last picture, or None.
    """

    def __init__(
        self,
        *,
        settings: ServerSettings,
        threads: Executor,
        metrics: Metrics,
        failed: Callable[[str], None],
        watch_key: str | None = None,
    ) -> None:
        self.watch_key = watch_key or _SECRET + secrets.token_urlsafe(16)
        self.watchers: dict[str, Watcher] = {}
        self.meter = Meter()
        self.failed = failed
        self.aged: Callable[[float], None] = _nobody
        self.size: tuple[int, int] | None = None
        self._settings = settings
        self._threads = threads
        self._metrics = metrics
        self._began = monotonic()
        self._delay = Delay(initial=settings.latency, limit=longest_delay(settings.latency))
        self._last: Frame | None = None
        self._holding: asyncio.Task[None] | None = None
        self._pictures = {codec: self._picture_lane(codec) for codec in _CODECS}
        self._sound: Lane[tuple[AudioFrame, float]] = Lane(
            lambda: OpusSound(self._began),
            lambda item: item[1],
            self._delay,
            threads=threads,
            dropped=metrics.dropped,
            leading=False,
            failed=self._fail,
        )

    @property
    def delay(self) -> float:
        """Seconds from capture to the network."""
        return self._delay.seconds

    @property
    def held(self) -> bool:
        """Whether nobody publishes, and the last picture is shown."""
        return self._holding is not None

    def promise(self, seconds: float) -> None:
        """So many seconds from capture are promised now: what is much later delays nothing else."""
        self._delay.limit = longest_delay(seconds)

    def lane(self, codec: str) -> Lane[Picture] | Lane[tuple[AudioFrame, float]]:
        """What encodes the toon, or its sound, with a codec."""
        return self._sound if codec == "opus" else self._pictures[codec]

    def timestamp(self, track: LaneTrack) -> int | None:
        """The RTP timestamp on this track of a picture that is captured now; None where it is not known."""
        if track.zero is None:
            return None
        return (track.zero + round((monotonic() - self._began) * VIDEO_CLOCK)) % 2**32

    def make_peer(self, lost: Callable[[str], None]) -> Peer:
        """Prepare a connection with the server's settings."""
        settings = self._settings
        return Peer(
            ice_servers=settings.ice_servers,
            codec=settings.codec,
            frame_side=settings.limits.frame_side,
            lost=lost,
        )

    def connect(self, peer: Peer, tracks: Sequence[LaneTrack]) -> None:
        """Say to each track where its packets come from, now that the codec is known."""
        for track in tracks:
            codec = peer.codecs.get(track.kind)
            if track.kind == "audio" and codec == "opus":
                track.watch(self._sound)
            elif codec in self._pictures:
                track.watch(self._pictures[codec])

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
        self.connect(peer, tracks)
        self.watchers[watcher.key] = watcher
        return watcher, answer

    def show(self, toon: Frame, captured_at: float) -> None:
        """Take the next picture."""
        height, width = toon.image.shape[:2]
        self.size = (width, height)
        self._last = toon
        ticks = round((captured_at - self._began) * VIDEO_CLOCK)
        picture = Picture(toon.image, ticks, captured_at)
        for lane in self._pictures.values():
            lane.feed(picture)

    def hear(self, item: tuple[AudioFrame, float]) -> None:
        """Take sound, and when it was captured."""
        self._sound.feed(item)

    def hold(self, failed: Callable[[str], None]) -> None:
        """Nobody publishes now: show the last picture until somebody does, so that players stay."""
        self.failed, self.aged = failed, _nobody
        if self._holding is None:
            self._holding = asyncio.create_task(self._hold(), name="stage held")

    def take_up(self, failed: Callable[[str], None]) -> None:
        """Somebody publishes again."""
        self.failed = failed
        self._stop_holding()

    async def drain(self) -> None:
        """No more comes: send what waits."""
        lanes = self._lanes
        for lane in lanes:
            lane.end()
        await asyncio.gather(*(lane.drained() for lane in lanes))

    async def close(self) -> None:
        """Say goodbye to all who watch."""
        holding = self._holding
        self._stop_holding()
        if holding is not None:
            with suppress(asyncio.CancelledError):
                await holding
        for lane in self._lanes:
            await lane.close()
        watchers = tuple(self.watchers.values())
        self.watchers.clear()
        await asyncio.gather(*(watcher.close() for watcher in watchers))

    @property
    def _lanes(self) -> "list[Lane[Picture] | Lane[tuple[AudioFrame, float]]]":
        return [*self._pictures.values(), self._sound]

    def _picture_lane(self, codec: str) -> Lane[Picture]:
        return Lane(
            lambda: VideoEncoder(codec, bitrate=self._settings.bitrate),
            lambda picture: picture.captured_at,
            self._delay,
            threads=self._threads,
            dropped=self._metrics.dropped,
            leading=True,
            sent=self._sent,
            failed=self._fail,
            timed=self._timed,
            aged=self._note_age,
        )

    async def _hold(self) -> None:
        while True:
            await asyncio.sleep(HELD_PERIOD)
            if self._last is not None:
                self.show(self._last, monotonic())

    def _stop_holding(self) -> None:
        if self._holding is not None:
            self._holding.cancel()
            self._holding = None

    def _fail(self, reason: str) -> None:
        self.failed(reason)

    def _note_age(self, seconds: float) -> None:
        self.aged(seconds)

    def _timed(self, kind: str, name: str, seconds: float) -> None:
        self.meter.add(kind, name, seconds, at=monotonic())

    def _sent(self, latency: float) -> None:
        if self._holding is None:
            self.meter.add("shown", "", latency, at=monotonic())
            self._metrics.latency.observe(latency)


def _nobody(seconds: float) -> None:
    """Nobody wants to know."""
