"""From a publisher's tracks to frames with a capture time, off the event loop where it costs."""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from aiortc import MediaStreamTrack, RTCRtpReceiver
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from toonstream.server.fanout import Drop, Timed
from toonstream.server.live import Deliver
from toonstream.server.peers import too_large
from toonstream.server.seams import ask_for_missing, ask_for_picture, go_on_without_missing
from toonstream.server.timing import CaptureClock
from toonstream.stream.clock import Clock, monotonic
from toonstream.stream.frame import Frame

__all__ = ["Ending", "read_sound", "read_video"]

ASK_AGAIN = 0.5  # seconds without a picture until the first one, or what is missing, is asked for
ASK_TWICE = 1.0  # seconds without a picture until what is missing is no longer waited for
DEPTH = 2  # frames that wait to be converted

# aiortc hands over a picture when the next one begins to come, and a packet of sound when four more are in.
SOUND_HELD = 4  # packets
PICTURE_HELD = 0.1  # seconds at most

_TICKS = Fraction(1, 90_000)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why there are no more pictures.

    Attributes:
        reason: for people.
        cut_off: whether they ended without a word.
    """

    reason: str
    cut_off: bool = False


async def read_video(
    track: MediaStreamTrack,
    receiver: RTCRtpReceiver | None,
    offer: Deliver,
    *,
    threads: Executor,
    dropped: Drop,
    frame_side: int,
    silence_seconds: float,
    timed: Timed = lambda kind, name, seconds: None,
    clock: Clock = monotonic,
) -> Ending:
    """Read pictures until the track ends; gives the reason.

    Reading and converting are two tasks: aiortc queues what is not read without a bound, so we read
    whatever comes and keep the newest.

    Args:
        track: of the publisher.
        receiver: of the track, to ask for a first picture.
        offer: is given every frame, on a thread.
        threads: where to convert.
        dropped: is told of frames that were not converted.
        frame_side: pixels that the longer side may have.
        silence_seconds: without a picture, after which we give up.
        timed: is told how long converting takes, and how long pictures wait for it.
        clock: the time.
    """
    newest: deque[tuple[VideoFrame, float]] = deque()
    arrived = asyncio.Event()
    ended = False

    async def read() -> Ending:
        nonlocal ended
        quiet = 0.0
        seen = False
        while True:
            pause = min(ASK_AGAIN, silence_seconds)
            try:
                async with asyncio.timeout(pause):
                    frame = await track.recv()
            except TimeoutError:
                quiet += pause
                if quiet >= silence_seconds:
                    return Ending(reason=f"no picture came for {silence_seconds:g} s", cut_off=True)
                if receiver is not None:
                    missed = ask_for_missing if quiet <= ASK_TWICE else go_on_without_missing
                    await (missed if seen else ask_for_picture)(receiver)
                continue
            except MediaStreamError:
                return Ending(reason="the publisher went away")
            quiet, seen = 0.0, True
            assert isinstance(frame, VideoFrame)
            if max(frame.width, frame.height) > frame_side:
                return Ending(reason=too_large(frame.width, frame.height, frame_side))
            if len(newest) >= DEPTH:
                newest.popleft()
                dropped("intake", "slow")
            newest.append((frame, clock()))
            arrived.set()

    async def convert() -> None:
        loop = asyncio.get_running_loop()
        capture, held, reformatter = CaptureClock(), _PictureHeld(), VideoReformatter()
        index = 0
        while True:
            while not newest:
                if ended:
                    return
                arrived.clear()
                await arrived.wait()
            frame, arrival = newest.popleft()
            pts, time_base = _time_of(frame, arrival)
            captured_at = capture.captured_at(pts, time_base, arrival - held.seconds(float(pts * time_base)))
            begin = clock()
            timed("wait", "intake", begin - arrival)
            await loop.run_in_executor(threads, _pass_on, reformatter, frame, index, captured_at, offer)
            timed("stage", "intake", clock() - begin)
            index += 1

    reading = asyncio.create_task(read(), name="read")
    converting = asyncio.create_task(convert(), name="convert")
    try:
        await asyncio.wait({reading, converting}, return_when=asyncio.FIRST_COMPLETED)
        if converting.done():  # it only ends before reading does where it failed
            converting.result()
        ending = reading.result()
        ended = True
        arrived.set()
        await converting
        return ending
    finally:
        reading.cancel()
        converting.cancel()


async def read_sound(
    track: MediaStreamTrack,
    feed: Callable[[tuple[AudioFrame, float]], None],
    *,
    clock: Clock = monotonic,
) -> None:
    """Read sound until the track ends, and pass it on with its capture time."""
    capture = CaptureClock()
    while True:
        try:
            frame = await track.recv()
        except MediaStreamError:
            return
        assert isinstance(frame, AudioFrame)
        arrival = clock() - SOUND_HELD * frame.samples / frame.sample_rate
        feed((frame, capture.captured_at(*_time_of(frame, arrival), arrival)))


class _PictureHeld:
    """How long the least delayed of the last pictures was held back: the shortest time between two."""

    def __init__(self) -> None:
        self._before: float | None = None
        self._steps: deque[float] = deque(maxlen=30)

    def seconds(self, time: float) -> float:
        """Take note of a picture's time in seconds."""
        if self._before is not None and 0.0 < time - self._before < PICTURE_HELD:
            self._steps.append(time - self._before)
        self._before = time
        return min(self._steps, default=0.0)


def _time_of(frame: AudioFrame | VideoFrame, arrival: float) -> tuple[int, Fraction]:
    """Pts and time base; a frame without is taken to be captured as it comes."""
    if frame.pts is None or frame.time_base is None:
        return round(arrival / _TICKS), _TICKS
    return frame.pts, Fraction(frame.time_base.numerator, frame.time_base.denominator)


def _pass_on(
    reformatter: VideoReformatter, frame: VideoFrame, index: int, captured_at: float, offer: Deliver
) -> None:
    rgb = reformatter.reformat(frame, format="rgb24")
    image: NDArray[np.uint8] = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
    offer(Frame(index=index, pts=round(captured_at / _TICKS), time_base=_TICKS, image=image), captured_at)
