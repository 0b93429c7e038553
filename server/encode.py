"""Encoders of our own, so that one stream is encoded once for all of its watchers.

aiortc sends what a track gives: a frame it encodes itself, one encoder per peer; a packet it only packs.
Our tracks give packets. That is how the bitrate comes to be ours, too: aiortc's limits are those of its
own encoders.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

__all__ = ["AUDIO_CLOCK", "VIDEO_CLOCK", "Encoded", "Encoder", "OpusSound", "Picture", "VideoEncoder"]

VIDEO_CLOCK = 90_000  # ticks per second of RTP video
AUDIO_CLOCK = 48_000  # of Opus
NOMINAL_RATE = 30  # frames per second that the bitrate is meant for
KEY_FRAMES = 300  # frames at most from one key frame to the next; lost ones are asked for
OPUS_BITRATE = 96_000
SOUND_GAP = AUDIO_CLOCK // 50  # ticks that sound may be out of its time before it is put right
LOOKAHEAD = 312  # samples that Opus holds back


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to be sent.

    Attributes:
        image: (H, W, 3) uint8 RGB; odd last rows and columns are not sent.
        ticks: when it was captured, in 1/90000 s from the stream's beginning.
        captured_at: the same on the server's clock, in seconds.
    """

    image: NDArray[np.uint8]
    ticks: int
    captured_at: float


@dataclass(frozen=True, slots=True)
class Encoded:
    """A packet ready to be packed, and when what is in it was captured."""

    packet: "av.Packet[Any]"
    captured_at: float
    key: bool


class Encoder(Protocol):
    """Called from one thread at a time."""

    def encode(self, item: object, *, key: bool) -> list[Encoded]:
        """Encode one item; `key` asks for one that can be decoded without the ones before it."""
        ...


class VideoEncoder:
    """VP8 or H.264 for low delay; follows the picture's size.

    Args:
        codec: `vp8` or `h264`.
        bitrate: in bits per second.
        threads: of the encoder.
    """

    def __init__(self, codec: str, *, bitrate: int, threads: int = 1) -> None:
        self._make: Callable[[int, int], VideoCodecContext] = {"vp8": self._vp8, "h264": self._h264}[codec]
        self._bitrate = bitrate
        self._threads = threads
        self._context: VideoCodecContext | None = None
        self._reformatter = VideoReformatter()  # a frame's own would be made anew each time: 1.5 ms

    def encode(self, item: object, *, key: bool) -> list[Encoded]:
        """Encode a `Picture`."""
        assert isinstance(item, Picture)
        height, width = (side - side % 2 for side in item.image.shape[:2])
        image = np.ascontiguousarray(item.image[:height, :width])
        frame = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"), format="yuv420p"
        )
        context = self._context
        if context is None or (context.width, context.height) != (width, height):
            context = self._context = self._make(width, height)
            key = True
        frame.pts = item.ticks
        frame.time_base = Fraction(1, VIDEO_CLOCK)
        if key:
            frame.pict_type = PictureType.I
        return [Encoded(packet, item.captured_at, packet.is_keyframe) for packet in context.encode(frame)]

    def _context_for(self, name: str, width: int, height: int) -> VideoCodecContext:
        context = av.CodecContext.create(name, "w")
        assert isinstance(context, VideoCodecContext)
        context.width, context.height = width, height
        context.pix_fmt = "yuv420p"
        context.bit_rate = self._bitrate
        context.framerate = Fraction(NOMINAL_RATE)
        context.time_base = Fraction(1, VIDEO_CLOCK)
        context.gop_size = KEY_FRAMES
        context.colorspace, context.color_range = Colorspace.SMPTE170M, ColorRange.MPEG  # what swscale makes
        context.thread_count = self._threads
        return context

    def _vp8(self, width: int, height: int) -> VideoCodecContext:
        context = self._context_for("libvpx", width, height)
        context.qmin, context.qmax = 2, 56
        context.options = {
            "deadline": "realtime",
            "cpu-used": "-6",
            "lag-in-frames": "0",
            "maxrate": str(self._bitrate),
            "minrate": str(self._bitrate),
            "bufsize": str(self._bitrate // 2),
            "overshoot-pct": "15",
            "undershoot-pct": "100",
            "static-thresh": "1",
        }
        return context

    def _h264(self, width: int, height: int) -> VideoCodecContext:
        context = self._context_for("libx264", width, height)
        context.options = {
            "preset": "veryfast",
            "tune": "zerolatency",
            "profile": "baseline",
            "maxrate": str(self._bitrate),
            "bufsize": str(self._bitrate // 2),
            "forced-idr": "1",
        }
        return context


class OpusSound:
    """Opus in packets of 20 ms, with the times that the sound came with.

    Args:
        origin: the server's clock in seconds where the stream's time is 0.
    """

    def __init__(self, origin: float) -> None:
        self._origin = origin
        self._context: AudioCodecContext | None = None
        self._resampler: av.AudioResampler | None = None
        self._skew = 0  # ticks between the encoder's count of samples and the stream's time
        self._fed = 0  # samples

    def encode(self, item: object, *, key: bool) -> list[Encoded]:
        """Encode a (frame, captured_at) pair; every Opus packet can be decoded alone."""
        assert isinstance(item, tuple)
        frame, captured_at = item
        ticks = round((captured_at - self._origin) * AUDIO_CLOCK)
        early = ticks - self._fed - self._skew
        if self._context is None or early > SOUND_GAP:
            self._begin(ticks)
        elif early < -SOUND_GAP:
            return []  # more sound than time: leave some out
        assert self._context is not None
        assert self._resampler is not None
        resampled = self._resampler.resample(_untimed(frame))
        return [packet for chunk in resampled for packet in self._encode(chunk)]

    def _begin(self, ticks: int) -> None:
        """Start over at a time of the stream: at the first sound, and after a gap."""
        context = av.CodecContext.create("libopus", "w")
        assert isinstance(context, AudioCodecContext)
        context.format, context.layout, context.sample_rate = "s16", "stereo", AUDIO_CLOCK
        context.bit_rate = OPUS_BITRATE
        context.time_base = Fraction(1, AUDIO_CLOCK)
        context.options = {"application": "audio"}
        self._context = context
        self._resampler = av.AudioResampler(
            format="s16", layout="stereo", rate=AUDIO_CLOCK, frame_size=AUDIO_CLOCK // 50
        )
        self._skew, self._fed = ticks, 0

    def _encode(self, chunk: av.AudioFrame) -> Sequence[Encoded]:
        assert self._context is not None
        result = []
        chunk.pts, chunk.time_base = self._fed, Fraction(1, AUDIO_CLOCK)
        ticks = max(0, self._fed + self._skew - LOOKAHEAD)
        self._fed += chunk.samples
        for packet in self._context.encode(chunk):
            packet.pts = packet.dts = ticks
            packet.time_base = Fraction(1, AUDIO_CLOCK)
            result.append(Encoded(packet, self._origin + ticks / AUDIO_CLOCK, True))
        return result


def _untimed(frame: av.AudioFrame) -> av.AudioFrame:
    """Let the resampler count samples itself: arrival times are ours to keep."""
    frame.pts = None
    return frame
