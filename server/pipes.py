"""WHIP as a source of a pipe, and WHEP as a destination: `toonstream whip://HOST:PORT whep://HOST:PORT/NAME`."""

import asyncio
import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from queue import Empty, Queue
from typing import Self

import av
from av.audio.codeccontext import AudioCodecContext

from toonstream.errors import OutputError, ToonstreamError
from toonstream.server.background import Background, read_place
from toonstream.server.encode import AUDIO_CLOCK
from toonstream.server.live import Change, Deliver, Ended, Live
from toonstream.stream.clock import Clock, monotonic
from toonstream.stream.frame import Frame
from toonstream.stream.sinks.open import Destination
from toonstream.stream.sources.live import Picture, SourceFormat, SourceGone, SourceStatistics
from toonstream.stream.sources.sound import Sound, SoundFormat
from toonstream.stream.sources.timeline import TICK, Timeline

__all__ = ["WhepOutput", "WhipSource"]

_TICK = 0.1  # seconds between two looks at whether to stop
_PICTURES, _SOUNDS = 8, 256  # on their way out of the server, at most; the oldest give way
_RATE = Fraction(30)  # frames a second; WebRTC does not say
_LATENCY = 0.05  # seconds that the server may take on top of the pipe's
_BEHIND = 1.0  # seconds that the pipe may lag, see `_when`, without its pictures giving way
_GOODBYE = 5.0  # seconds that the last pictures may take to be sent


@dataclass(frozen=True, kw_only=True)
class _Captured:
    frame: Frame
    at: float


@dataclass(frozen=True, kw_only=True)
class _Heard:
    data: bytes
    at: float


class _Publication:
    """What one publisher brings: a ring of pictures and sound; that it began and ended gives way to nothing.

    Args:
        heard: whether there is sound.
    """

    def __init__(self, *, heard: bool) -> None:
        self.heard = heard
        self._changed = threading.Condition()
        self._items: deque[_Captured | _Heard] = deque()
        self._pictures = 0  # of them
        self._ended = False

    @property
    def over(self) -> bool:
        """Whether nothing comes any more, and nothing waits."""
        with self._changed:
            return self._ended and not self._items

    def put(self, item: _Captured | _Heard) -> None:
        """Add something; never waits."""
        with self._changed:
            self._items.append(item)
            self._pictures += isinstance(item, _Captured)
            while self._pictures > _PICTURES or len(self._items) - self._pictures > _SOUNDS:
                self._take()
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more comes."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def get(self, seconds: float) -> _Captured | _Heard | None:
        """The oldest item, waited for so long; None where there is none."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._ended, seconds)
            return self._take() if self._items else None

    def _take(self) -> _Captured | _Heard:
        item = self._items.popleft()
        self._pictures -= isinstance(item, _Captured)
        return item


class _Listening:
    """An end of a pipe that has a server of its own, as long as its context lasts."""

    def __init__(self, background: Background) -> None:
        self._background = background

    def __enter__(self) -> Self:
        """Begin to listen.

        Raises:
            OutputError: the address is taken, or not ours.
        """
        self._background.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._background.__exit__(*error)


class WhipSource(_Listening):
    """Waits for somebody who publishes by WHIP, one at a time; is a `relay.Source`, and a context manager.

    Args:
        address: `whip://HOST:PORT`.
        clock: seconds; that of `Picture.captured_at`, which has to be the server's.
        settings: others of the server, such as `tls_cert`.
    """

    def __init__(self, address: str, *, clock: Clock = monotonic, **settings: object) -> None:
        """Read the address.

        Raises:
            SettingError: it is none, or one that needs a token.
        """
        place = read_place(address, latency=_LATENCY, max_sessions=1, max_watchers=0, **settings)
        super().__init__(Background(place.settings, self._open))
        self._clock = clock
        self._publications: Queue[_Publication] = Queue(1)  # the latest, until it is read
        self._stop = threading.Event()
        self._format: SoundFormat | None = None
        self._counts = dict.fromkeys(SourceStatistics.__dataclass_fields__, 0)
        self._last = Fraction(-1)
        self._forwarding: asyncio.Task[None] | None = None

    @property
    def shown(self) -> str:
        """Where to publish."""
        return f"{self._background.server.url}whip"

    @property
    def statistics(self) -> SourceStatistics:
        """The figures now."""
        return SourceStatistics(**self._counts)

    def interrupt(self) -> None:
        """End waiting and reading, from any thread."""
        self._stop.set()

    def read(self, timeline: Timeline, opened: Callable[[SourceFormat], None]) -> Iterator[Picture | Sound]:
        """Wait for a publisher, and give its pictures and sound until it leaves.

        Raises:
            SourceGone: it left.
        """
        timeline.restart()
        publication = self._next_publication()
        if publication is None:
            return
        sound = self._opus() if publication.heard else None
        size: tuple[int, ...] | None = None
        while not self._stop.is_set():
            event = publication.get(_TICK)
            if event is None:
                if publication.over:
                    raise SourceGone(f"whoever published to {self.shown} left")
            elif isinstance(event, _Heard):
                if sound is not None and size is not None:
                    yield self._sound(event, sound, timeline)
            else:
                if size is None:
                    self._counts["opened"] += 1
                    height, width = event.frame.image.shape[:2]
                    opened(SourceFormat(width=width, height=height, rate=_RATE, sound=sound))
                self._counts["sizes"] += size not in (None, event.frame.image.shape)
                size = event.frame.image.shape
                picture = self._picture(event, timeline)
                if picture is not None:
                    yield picture

    def _next_publication(self) -> _Publication | None:
        """Wait for somebody who publishes; None if a stop came first."""
        while not self._stop.is_set():
            with suppress(Empty):
                return self._publications.get(timeout=_TICK)
        return None

    def _picture(self, event: _Captured, timeline: Timeline) -> Picture | None:
        stamp = event.frame.pts * event.frame.time_base
        time = timeline.place(stamp, self._clock(), track="pictures")
        if time <= self._last:
            self._counts["disordered"] += 1
            return None
        self._last = time
        self._counts["pictures"] += 1
        frame = Frame(
            index=self._counts["pictures"] - 1,
            pts=round(time / TICK),
            time_base=TICK,
            image=event.frame.image,
        )
        return Picture(frame=frame, captured_at=event.at)

    def _sound(self, event: _Heard, format_: SoundFormat, timeline: Timeline) -> Sound:
        stamp = Fraction(round(event.at * AUDIO_CLOCK), AUDIO_CLOCK)
        time = timeline.place(stamp, self._clock(), track="sound")
        length = Fraction(format_.frame_size, AUDIO_CLOCK)
        return Sound(data=event.data, begin=time, length=length, format=format_)

    def _opus(self) -> SoundFormat:
        """What the server encodes sound to."""
        if self._format is None:
            stream = av.open(io.BytesIO(), "w", format="nut").add_stream("libopus", rate=AUDIO_CLOCK)
            stream.codec_context.layout = "stereo"
            stream.codec_context.open()
            self._format = SoundFormat.of(stream)
        return self._format

    # On the server's threads.

    def _open(self, change: Change, deliver: Deliver, ended: Ended) -> Live:
        return _Tap(self)

    def begin(self, begun: "Future[_Publication]") -> None:
        """On the loop: the first picture is there; find out whether there is sound."""
        sessions = self._background.server.registry.sessions
        session = sessions[-1] if sessions else None
        heard = session is not None and "audio" in session.peer.received
        publication = _Publication(heard=heard)
        with suppress(Empty):
            self._publications.get_nowait()  # it is over: there is one at a time
        self._publications.put_nowait(publication)
        begun.set_result(publication)
        if session is not None and heard:
            subscription = session.lane("opus").subscribe()

            async def forward() -> None:
                while (encoded := await subscription.next()) is not None:
                    publication.put(_Heard(data=bytes(encoded.packet), at=encoded.captured_at))

            self._forwarding = asyncio.create_task(forward(), name="sound of a pipe")

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """On the server's loop."""
        self._background.call(function, *arguments)


class _Tap:
    """A live core that draws nothing, and passes on what comes in."""

    def __init__(self, source: WhipSource) -> None:
        self._source = source
        self._begun: Future[_Publication] | None = None

    def offer(self, frame: Frame, captured_at: float) -> None:
        """Pass a picture on."""
        if self._begun is None:
            self._begun = Future()
            self._source.call(self._source.begin, self._begun)
        if self._begun.done():
            self._begun.result().put(_Captured(frame=frame, at=captured_at))

    def change(self, change: Change) -> None:
        """Whoever runs the pipe decides."""

    def aged(self, seconds: float) -> None:
        """It makes no difference."""

    def finish(self) -> None:
        """Nothing is in flight."""

    def close(self) -> None:
        """The publisher is gone."""
        if self._begun is not None:
            self._begun.add_done_callback(lambda begun: begun.result().end())

    def statistics(self) -> dict[str, object]:
        """Nothing happens here."""
        return {}


class WhepOutput(_Listening):
    """Shows a pipe's toon to those who watch by WHEP, or on the page; a context manager.

    Args:
        address: `whep://HOST:PORT/NAME`.
        settings: others of the server, such as `bitrate`.
    """

    def __init__(self, address: str, **settings: object) -> None:
        """Read the address.

        Raises:
            SettingError: it is none, or one that needs a token.
            OutputError: it names no stream.
        """
        place = read_place(address, latency=_LATENCY, max_sessions=1, **settings)
        if not place.name:
            raise OutputError(f"{address} names no stream: write whep://HOST:PORT/NAME")
        self._name = place.name
        super().__init__(Background(place.settings, _refuse))

    @property
    def url(self) -> str:
        """Where a browser shows it."""
        return f"{self._background.server.url}#watch={self._name}"

    @property
    def destination(self) -> Destination:
        """For an `Outlet`."""
        return Destination(shown=self.url, open=lambda format_: _WhepSink(self._background, self._name))


def _refuse(change: Change, deliver: Deliver, ended: Ended) -> Live:
    raise ToonstreamError("this server shows a stream, and takes none")


class _WhepSink:
    """Where an outlet writes; is a `LiveSink`."""

    def __init__(self, background: Background, name: str) -> None:
        self._background = background
        self._name = name
        self._zero: float | None = None  # the server's clock where the stream's time is 0
        self._decoder: AudioCodecContext | None = None
        self._identity: object = None

        async def show() -> None:
            self._stage = background.server.registry.show(name)
            self._stage.promise(_BEHIND)

        background.run(show(), _GOODBYE)

    def write(self, frame: Frame) -> None:
        """Show a picture."""
        self._background.call(self._stage.show, frame, self._when(frame.pts * frame.time_base))

    def hear(self, sound: Sound) -> None:
        """Decode sound, for it to be encoded as WebRTC has it."""
        if self._identity != sound.format.identity:
            self._decoder, self._identity = sound.format.decoder(), sound.format.identity
        assert self._decoder is not None
        begin = self._when(sound.begin)
        with suppress(av.FFmpegError):  # what is damaged is not heard
            for frame in self._decoder.decode(av.Packet(sound.data)):
                self._background.call(self._stage.hear, (frame, begin))
                begin += frame.samples / frame.sample_rate

    def close(self) -> None:
        """Show what waits, and say goodbye."""
        with suppress(TimeoutError):
            self._background.run(self._background.server.registry.unshow(self._name), _GOODBYE)

    def abandon(self) -> None:
        """The same: nothing on the way can fail."""
        self.close()

    def abort(self) -> None:
        """Nobody waits here."""

    def _when(self, time: Fraction) -> float:
        """When something of the stream's time is to be seen or heard; what comes first is due now."""
        now = monotonic()
        if self._zero is None or abs(self._zero + float(time) - now) > 1.0:
            self._zero = now - float(time)
        return min(now, self._zero + float(time))
