"""The pictures of a toon, encoded: yuv420p in BT.709, which plays everywhere."""

from fractions import Fraction
from typing import TYPE_CHECKING, cast

import numpy as np
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.packet import Packet

__all__ = ["VideoTrack"]

_BT709 = 1  # as primaries, transfer and matrix alike
_KEY_FRAME_SECONDS = 1  # between key frames: what a killed process may lose
_THREADS = 2


class VideoTrack:
    """The video stream of an output file.

    An odd width or height is made even, as yuv420p asks for, by repeating the last column or row.
    """

    def __init__(
        self,
        container: OutputContainer,
        *,
        encoder: str,
        options: dict[str, str],
        width: int,
        height: int,
        sample_aspect_ratio: Fraction,
        rate: Fraction,
        time_base: Fraction,
    ) -> None:
        """Declare the stream in `container`, before its header is written."""
        self._size = (width, height)
        if (
            encoder == "libvpx-vp9"
        ):  # neither VP9 nor PyAV's WebM can state the shape of a pixel: make it square
            width, sample_aspect_ratio = max(1, round(width * sample_aspect_ratio)), Fraction(1)
        self._reformatter = VideoReformatter()
        self._durations: dict[int, int] = {}  # of the frames inside the encoder, by pts
        key_frames = str(max(1, round(rate * _KEY_FRAME_SECONDS)))
        stream = cast(
            VideoStream, container.add_stream(encoder, rate=rate, options={**options, "g": key_frames})
        )
        stream.time_base = time_base
        self._context = context = stream.codec_context
        context.width, context.height = width + width % 2, height + height % 2
        context.pix_fmt = "yuv420p"
        context.time_base = time_base
        context.sample_aspect_ratio = sample_aspect_ratio
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        context.flags |= Flags.frame_duration
        context.thread_count = _THREADS
        self._stream = stream

    def encode(
        self, image: NDArray[np.uint8], pts: int, duration: int, *, key: bool = False
    ) -> "list[Packet[VideoStream]]":
        """Encode one picture; what comes out may belong to earlier ones.

        Args:
            image: (H, W, 3) uint8 RGB in [0, 255].
            pts: in units of the time base.
            duration: likewise.
            key: whether to make it a key frame.

        Raises:
            ValueError: the picture is of another size than the stream.
        """
        height, width = image.shape[:2]
        if (width, height) != self._size:
            raise ValueError(f"the frame is {width}x{height}, the file {self._size[0]}x{self._size[1]}")
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        picture = self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"),
            width=self._context.width,
            height=self._context.height,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
            threads=1,
        )
        picture.pts, picture.duration, picture.time_base = pts, duration, self._context.time_base
        if key:
            picture.pict_type = PictureType.I
        self._durations[pts] = duration
        return self._timed(self._stream.encode(picture))

    def finish(self) -> "list[Packet[VideoStream]]":
        """Give what the encoder holds back."""
        return self._timed(self._stream.encode(None))

    def _timed(self, packets: "list[Packet[VideoStream]]") -> "list[Packet[VideoStream]]":
        for packet in packets:  # not every encoder hands durations on
            packet.duration = self._durations.pop(packet.pts or 0, 0)
        return packets
