"""Sources that go on by themselves: networks, cameras, screens; and files, read as fast as they play."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast
from urllib.parse import urlsplit

import av
import cv2
import numpy as np
from av.audio.stream import AudioStream
from av.codec.context import CodecContext, ThreadType
from av.container import InputContainer
from av.error import (
    ConnectionRefusedError as FFmpegConnectionRefusedError,
)
from av.error import (
    EOFError as FFmpegEOFError,
)
from av.error import (
    ExitError,
    FFmpegError,
    HTTPClientError,
    InvalidDataError,
    ProtocolNotFoundError,
)
from av.packet import Packet
from av.stream import Discard, Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from toonstream.errors import InputError
from toonstream.stream.frame import Frame
from toonstream.stream.sources.clip import MAX_PIXELS
from toonstream.stream.sources.coded import claimed_size
from toonstream.stream.sources.picture import PictureReader
from toonstream.stream.sources.rtmp import Publication, RtmpListener
from toonstream.stream.sources.sound import Sound, SoundFormat
from toonstream.stream.sources.timeline import TICK, ArrivalClock, Timeline

__all__ = ["LiveSource", "Opening", "Picture", "SourceFormat", "SourceGone", "SourceStatistics"]

_FALLBACK_RATE = Fraction(25)  # frames a second
_RATES = (Fraction(1), Fraction(120))
_NEARLY_SQUARE = Fraction(1, 50)
_THREADS = 2
_STORED = ("hls", "dash", "mov", "matroska", "avi", "gif")  # formats that come as fast as they are read
_LATE = 1.0  # seconds behind its own times from which a paced source takes a new start
_BLIND = 30.0  # seconds in which nothing can be decoded: more than from one key frame to the next
_RTSP_PORT = 554
_CALL_SECONDS = 0.5  # that reaching ourselves may take
_LISTEN_SECONDS = 60.0  # between two looks at whether somebody connected and then said nothing


class SourceGone(InputError):
    """A source that worked said goodbye, and may come back."""


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to open a source.

    Attributes:
        url: for FFmpeg.
        shown: its name for people, without secrets.
        format: FFmpeg's name of it, or None to find out.
        options: FFmpeg's.
        device: whether it is a camera or a screen of this machine.
        there: the devices of its kind that there are, for people; empty where nobody knows.
        listens: whether to wait for somebody to connect and publish.
        paced: whether the source comes as fast as it is read, and is to be slowed down to its own times.
            Where the format is one of stored clips and playlists, it is so anyway.
        ends: whether its end is meant, and not an interruption. Likewise.
        ahead: seconds that its times may jump ahead and be believed.
        open_timeout: seconds until the first picture must be known.
        read_timeout: seconds that nothing may come.
    """

    url: str = field(repr=False)
    shown: str
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    device: bool = False
    there: str = ""
    listens: bool = False
    paced: bool = False
    ends: bool = False
    ahead: float = 0.0
    open_timeout: float = 10.0
    read_timeout: float = 5.0


@dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """What a source shows and plays, known once it is open.

    Attributes:
        width: of its pictures in square pixels.
        height: likewise.
        rate: frames a second, as far as it says.
        sound: what its sound is in; None without sound.
    """

    width: int
    height: int
    rate: Fraction
    sound: SoundFormat | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A picture and when it was taken.

    Attributes:
        frame: its time is the stream's, continuous from 0.
        captured_at: in seconds, by the clock that the source was given.
    """

    frame: Frame
    captured_at: float


@dataclass(frozen=True, kw_only=True)
class SourceStatistics:
    """What a source did since it was made, through all its openings.

    Attributes:
        pictures: given.
        opened: how often it was opened.
        corrupt: packets that could not be decoded.
        disordered: pictures left out because their time was not after that of the one before.
        sizes: how often the size of its pictures changed.
    """

    pictures: int = 0
    opened: int = 0
    corrupt: int = 0
    disordered: int = 0
    sizes: int = 0


class LiveSource:
    """Opens a source and gives what comes, as often as asked.

    Args:
        opening: what to open, and how.
        clock: seconds; that of `Picture.captured_at`.
        stop: set it, or call `interrupt`, to end waiting and reading.
    """

    def __init__(
        self,
        opening: Opening,
        *,
        clock: Callable[[], float] = time.monotonic,
        stop: threading.Event | None = None,
    ) -> None:
        self.opening = opening
        self._clock = clock
        self._stop = stop or threading.Event()
        self._counts = dict.fromkeys(SourceStatistics.__dataclass_fields__, 0)
        self._last = Fraction(-1)
        self._arrival = ArrivalClock()

    @property
    def shown(self) -> str:
        """Its name for people."""
        return self.opening.shown

    @property
    def statistics(self) -> SourceStatistics:
        """The figures now."""
        return SourceStatistics(**self._counts)

    def read(self, timeline: Timeline, opened: Callable[[SourceFormat], None]) -> Iterator[Picture | Sound]:
        """Open the source and give its pictures and sound as they come, until it ends.

        Args:
            timeline: where they are placed in time; the same for every opening.
            opened: told what is to come, before it comes.

        Raises:
            InputError: it cannot be opened or read, or stopped sending.
            SourceGone: it ended, and that is not its nature.
        """
        with ExitStack() as stack:
            container = self._open(stack)
            if container is None:
                return
            stack.enter_context(closing(container))
            picture, sound = self._streams(container)
            self._counts["opened"] += 1
            timeline.restart()
            self._arrival = ArrivalClock()
            stored = any(name in _STORED for name in container.format.name.split(","))
            format_ = None
            if sound is not None:
                with suppress(ValueError):  # a codec that no container here holds: there is no sound then
                    format_ = SoundFormat.of(sound)
            opened(_describe(picture, format_))
            try:
                pace = _Pace(self._clock, self._stop) if stored or self.opening.paced else None
                yield from self._events(container, picture, sound, format_, timeline, pace)
            except FFmpegEOFError:
                pass
            except FFmpegError as error:
                if self._stop.is_set():
                    return
                raise self._lost(error) from error
        if not (stored or self.opening.ends or self._stop.is_set()):
            who = f"whoever published to {self.shown} left" if self.opening.listens else None
            raise SourceGone(who or f"{self.shown} stopped sending")

    def interrupt(self) -> None:
        """End waiting and reading, from any thread, as soon as FFmpeg lets go."""
        self._stop.set()
        if self.opening.listens and self.opening.url.startswith("rtsp"):
            _call(self.opening.url)

    def _open(self, stack: ExitStack) -> InputContainer | None:
        """Open it, and leave in `stack` what is to be closed later; None if a stop came first."""
        opening = self.opening
        url: str | Publication = opening.url
        if opening.listens and opening.url.startswith("rtmp"):
            listener = RtmpListener(opening.url, timeout=opening.read_timeout, stop=self._stop)
            with listener:
                publication = listener.accept()
            if publication is None:
                return None
            url = stack.enter_context(closing(publication))
        while not self._stop.is_set():
            try:
                return av.open(
                    url,
                    mode="r",
                    format=opening.format,
                    options={"max_pixels": str(MAX_PIXELS)},
                    container_options=opening.options,
                    metadata_errors="replace",
                    timeout=(
                        _LISTEN_SECONDS if opening.listens else opening.open_timeout,
                        opening.read_timeout,
                    ),
                )
            except InputError:  # a publisher's, who says nothing
                raise
            except (ExitError, TimeoutError) as error:
                if not opening.listens:
                    raise self._unopened(error) from error
            except (FFmpegError, OSError, ValueError) as error:
                if self._stop.is_set():
                    return None
                raise self._unopened(error) from error
        return None

    def _streams(self, container: InputContainer) -> tuple[VideoStream, AudioStream | None]:
        """Choose the pictures and the sound; FFmpeg need not fetch the others."""
        # Where FFmpeg has no decoder there is no context, whatever its stubs say.
        known = [stream for stream in container.streams if _context(stream) is not None]
        pictures = [
            stream
            for stream in known
            if isinstance(stream, VideoStream) and not stream.disposition & Disposition.attached_pic
        ]
        if not pictures:
            raise InputError(f"{self.shown} has no video: give a source with pictures in it")
        picture = max(pictures, key=lambda stream: stream.codec_context.width * stream.codec_context.height)
        self._check_size(picture.codec_context.width, picture.codec_context.height)
        sounds = [
            stream
            for stream in known
            if isinstance(stream, AudioStream) and stream.codec_context.sample_rate > 0
        ]
        sound = sounds[0] if sounds else None
        for stream in container.streams:
            if stream not in (picture, sound):
                stream.discard = Discard.all
        return picture, sound

    def _events(
        self,
        container: InputContainer,
        picture: VideoStream,
        sound: AudioStream | None,
        format_: SoundFormat | None,
        timeline: Timeline,
        pace: "_Pace | None",
    ) -> Iterator[Picture | Sound]:
        decoder = picture.codec_context
        decoder.options = {"max_pixels": str(MAX_PIXELS)}
        decoder.thread_type = ThreadType.SLICE  # threads over frames would hold frames back
        decoder.thread_count = _THREADS
        reader: PictureReader | None = None
        size = (0, 0)
        unit = picture.time_base or TICK
        aspect = picture.sample_aspect_ratio or Fraction(1)
        blind_since: float | None = None
        for packet in _packets(container, [picture] if sound is None else [picture, sound]):
            if self._stop.is_set():
                return
            if packet is not None and sound is not None and packet.stream_index == sound.index:
                heard = self._sound(cast("Packet[AudioStream]", packet), format_, timeline)
                if heard is not None:
                    yield heard
                continue
            try:
                frames = decoder.decode(cast("Packet[VideoStream] | None", packet))
            except FFmpegEOFError:
                continue
            except FFmpegError:
                self._counts["corrupt"] += 1
                self._check_claim(decoder, packet)
                blind_since = self._clock() if blind_since is None else blind_since
                if self._clock() - blind_since > _BLIND:
                    raise InputError(f"nothing that {self.shown} shows can be decoded") from None
                continue
            for frame in frames:
                blind_since = None
                time, captured = self._time(frame, unit, timeline, pace)
                if self._stop.is_set():
                    return
                if time <= self._last:
                    self._counts["disordered"] += 1
                    continue
                self._last = time
                if reader is None or size != (frame.width, frame.height):
                    self._counts["sizes"] += reader is not None
                    reader, size = PictureReader(frame), (frame.width, frame.height)
                self._counts["pictures"] += 1
                yield Picture(
                    frame=Frame(
                        index=self._counts["pictures"] - 1,
                        pts=round(time / TICK),
                        time_base=TICK,
                        image=_squared(reader.read(frame), reader.upright_aspect(aspect)),
                        duration=round(frame.duration * unit / TICK) or None,
                    ),
                    captured_at=captured,
                )

    def _check_claim(self, decoder: VideoCodecContext, packet: "Packet[Stream] | None") -> None:
        """See whether a packet was not decoded for the size that it claims; raises InputError then."""
        if packet is None:
            return
        data = bytes(packet.get_sidedata("new_extradata"))
        if not data and (decoder.extradata or b"")[:1] != b"\1":  # a record: no headers in its packets
            data = bytes(packet)
        size = None
        with suppress(ValueError):  # it is damaged, and no more is known
            size = claimed_size(decoder.name, data)
        if size is not None:
            self._check_size(*size)

    def _check_size(self, width: int, height: int) -> None:
        if width * height > MAX_PIXELS:
            raise InputError(
                f"{self.shown} shows {width}x{height}, over the limit of {MAX_PIXELS:,} pixels a frame:"
                " send smaller pictures"
            )

    def _time(
        self, frame: VideoFrame, unit: Fraction, timeline: Timeline, pace: "_Pace | None"
    ) -> tuple[Fraction, float]:
        """When a picture is shown, in the stream's time, and when it was captured, by the clock."""
        now = self._clock()
        # A source without times is as good as its arrival.
        stamp = Fraction(now) if frame.pts is None else frame.pts * unit
        time = timeline.place(stamp, now, track="pictures", ahead=self.opening.ahead)
        if pace is not None:
            return time, pace.keep(time)
        return time, self._arrival.captured(time, now)

    def _sound(
        self,
        packet: "Packet[AudioStream]",
        format_: SoundFormat | None,
        timeline: Timeline,
    ) -> Sound | None:
        stamp = packet.pts if packet.pts is not None else packet.dts
        if not packet.size or stamp is None or packet.is_corrupt or format_ is None:
            return None
        unit = packet.time_base
        time = timeline.place(stamp * unit, self._clock(), track="sound", ahead=self.opening.ahead)
        return Sound(
            data=format_.bare(bytes(packet)), begin=time, length=(packet.duration or 0) * unit, format=format_
        )

    def _lost(self, error: FFmpegError) -> InputError:
        opening = self.opening
        if isinstance(error, ExitError):
            return InputError(f"{opening.shown} has sent nothing for {opening.read_timeout:g} s")
        return InputError(f"{opening.shown} broke off ({_reason(error)})")

    def _unopened(self, error: Exception) -> InputError:
        opening, shown = self.opening, self.opening.shown
        if isinstance(error, ExitError | TimeoutError):
            return InputError(
                f"{shown} shows nothing within {opening.open_timeout:g} s: check that somebody publishes"
            )
        if isinstance(error, FFmpegConnectionRefusedError):
            return InputError(f"nobody answers at {shown}: start the server there, or check the address")
        if isinstance(error, ProtocolNotFoundError):
            return InputError(f"{shown}: FFmpeg as it comes with PyAV does not know this protocol")
        if isinstance(error, HTTPClientError):
            return InputError(f"{shown} refuses ({_reason(error)}): check the address, and who may see it")
        if isinstance(error, FileNotFoundError):
            return InputError(f"{shown} does not exist: check the name")
        if isinstance(error, PermissionError):
            return InputError(f"{shown} may not be read: change its permissions")
        if isinstance(error, InvalidDataError):
            return InputError(f"{shown} cannot be read as video: it is damaged or of another kind")
        if opening.device:
            return InputError(
                f"{shown} does not open ({_reason(error)}): check that it is there, that you may use it, and"
                f" that nobody else does{opening.there and f' (there are: {opening.there})'}"
            )
        if opening.listens:
            return InputError(f"cannot listen at {shown} ({_reason(error)}): take another address or port")
        return InputError(
            f"{shown} does not open ({_reason(error)}): check the address, the name of the stream and the key"
        )


class _Pace:
    """Slows reading down to the times of the pictures. Sound may stand a little before them, or behind."""

    def __init__(self, clock: Callable[[], float], stop: threading.Event) -> None:
        self._clock = clock
        self._stop = stop
        self._zero: float | None = None

    def keep(self, time: Fraction) -> float:
        """Wait until it is time. Gives the moment that it was due, by the clock."""
        now = self._clock()
        if self._zero is None or now - (self._zero + float(time)) > _LATE:
            self._zero = now - float(time)
        due = self._zero + float(time)
        while (rest := due - self._clock()) > 0.0 and not self._stop.is_set():
            self._stop.wait(rest)
        return due


def _packets(container: InputContainer, streams: "list[Stream]") -> "Iterator[Packet[Stream] | None]":
    """Give the packets that are not empty, and at the end, whatever it is, None, which drains the decoder."""
    failure: FFmpegError | None = None
    try:
        for packet in container.demux(*streams):
            if packet.size:
                yield packet
    except FFmpegError as error:
        failure = error
    yield None
    if failure is not None:
        raise failure


def _describe(stream: VideoStream, sound: SoundFormat | None) -> SourceFormat:
    context = stream.codec_context
    aspect = stream.sample_aspect_ratio or Fraction(1)
    rate = stream.average_rate or stream.guessed_rate or _FALLBACK_RATE
    return SourceFormat(
        width=max(1, round(context.width * aspect)),
        height=context.height,
        rate=rate if _RATES[0] <= rate <= _RATES[1] else _FALLBACK_RATE,
        sound=sound,
    )


def _squared(image: NDArray[np.uint8], aspect: Fraction) -> NDArray[np.uint8]:
    """Make the pixels of a picture square, if they were `aspect` times as wide as high."""
    height, width = image.shape[:2]
    if abs(aspect - 1) <= _NEARLY_SQUARE:
        return image
    size = max(1, round(width * aspect)), height
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def _call(url: str) -> None:
    """Connect to where FFmpeg listens, and hang up: nothing else ends its waiting."""
    parts = urlsplit(url)
    host = parts.hostname if parts.hostname not in (None, "0.0.0.0", "::") else "localhost"
    with suppress(OSError), socket.create_connection((host, parts.port or _RTSP_PORT), timeout=_CALL_SECONDS):
        pass


def _context(stream: Stream) -> CodecContext | None:
    return stream.codec_context


def _reason(error: Exception) -> str:
    """What FFmpeg says, without the address that it likes to repeat."""
    return getattr(error, "strerror", None) or type(error).__name__
