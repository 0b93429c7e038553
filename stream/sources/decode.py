"""The pictures of a clip in order, each with its time, past whatever is damaged."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from heapq import heapify, heappop, heappush
from itertools import chain, dropwhile
from pathlib import Path
from typing import cast

from av.codec import Codec
from av.codec.context import ThreadType
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from toonstream.errors import InputError
from toonstream.stream.sources.clip import MAX_PIXELS, open_clip
from toonstream.stream.sources.interlace import deinterlaced

__all__ = ["Damage", "VideoDecoder"]

_THREADS = 2
_FALLBACK_RATE = Fraction(25)  # frames a second, where a clip does not say
# How far before the wanted time to look for a key frame, in seconds: containers differ in whether they seek
# by decoding time or by presentation time, so the nearest one may turn out to be too late.
_SEEK_MARGINS = (0, 2, 10)
# A file that ends this much before its header says is cut off; less is how muxers round. Seconds.
_MISSING_END = Fraction(1, 2)
# Containers whose header states a duration; of others FFmpeg estimates one from the file's size.
_STATES_DURATION = ("mov", "matroska", "avi", "flv", "asf")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """What was wrong with a clip, as far as it has been read. False where nothing was.

    Attributes:
        skipped_packets: packets that could not be decoded; their frames are missing, the others keep their
            times.
        concealed_frames: frames that the decoder patched up from their neighbours; they are in the stream.
        truncated: whether the file ends before it should.
    """

    skipped_packets: int = 0
    concealed_frames: int = 0
    truncated: bool = False

    def __bool__(self) -> bool:
        return self != Damage()

    @property
    def message(self) -> str:
        """One line for people, empty where nothing was wrong."""
        found = (
            (self.truncated, "the file is cut off and was read up to there"),
            (self.skipped_packets, f"{self.skipped_packets} corrupt packet(s) skipped"),
            (self.concealed_frames, f"{self.concealed_frames} damaged frame(s) patched up"),
        )
        return "; ".join(text for happened, text in found if happened)


class VideoDecoder:
    """Decodes the first video stream of a clip.

    Attributes:
        container: the open clip.
        stream: the video stream.
        time_base: seconds per unit of pts.
        origin: where the clip's own time begins, in seconds: the earliest start of a stream. Sound that
            begins before 0 is a codec's run-in and not heard, and does not count.
        rate: average frames a second.
        damage: what has been found so far.
    """

    def __init__(self, path: Path) -> None:
        """Open the clip, choose the stream and prepare its decoder.

        Raises:
            InputError: the clip cannot be opened, or there is no stream in it that can be decoded.
        """
        self._path = path
        self._open()
        self.time_base = self.stream.time_base or 1 / _FALLBACK_RATE
        self.rate = self.stream.average_rate or self.stream.guessed_rate or _FALLBACK_RATE
        others = [max(_start(other), Fraction(0)) for other in self.container.streams if other != self.stream]
        self.origin = min([_start(self.stream), *others])

    def close(self) -> None:
        """Let go of the file."""
        self.container.close()

    def frames_from(self, time: Fraction | None) -> Iterator[tuple[VideoFrame, int]]:
        """Give every picture at or after `time` with its pts, strictly increasing; no longer interlaced.

        Args:
            time: in seconds, or None for all pictures.
        """
        if time is None:
            return deinterlaced(self._timed_frames())
        for margin in _SEEK_MARGINS:
            frames = self._seek(time - margin)
            first = next(frames, None)
            if first is not None and first[1] * self.time_base <= time:
                return dropwhile(lambda timed: timed[1] * self.time_base < time, chain([first], frames))
        self.close()
        self._open()
        return dropwhile(lambda timed: timed[1] * self.time_base < time, deinterlaced(self._timed_frames()))

    def _open(self) -> None:
        self.damage = Damage()
        self.container = open_clip(self._path)
        try:
            self.stream = _pick_stream(self.container, self._path)
            self._decoder = _make_decoder(self.stream)
        except BaseException:
            self.container.close()
            raise

    def _seek(self, time: Fraction) -> Iterator[tuple[VideoFrame, int]]:
        self.damage = Damage()
        self._decoder.flush_buffers()
        try:
            self.container.seek(int(time / self.time_base), stream=self.stream)
        except FFmpegError:  # there is nothing there, or the container cannot be searched
            return iter(())
        return deinterlaced(self._timed_frames())

    def _timed_frames(self) -> Iterator[tuple[VideoFrame, int]]:
        """Fill in a missing pts from the frame before; move one that does not increase to the next unit."""
        last: int | None = None
        usual = max(1, round(1 / (self.rate * self.time_base)))
        step = usual
        for frame in self._frames():
            pts = frame.pts
            if pts is None:
                pts = (self.stream.start_time or 0) if last is None else last + step
            elif last is not None and pts <= last:
                pts = last + 1
            yield frame, pts
            last, step = pts, frame.duration or usual

    def _frames(self) -> Iterator[VideoFrame]:
        # AVI knows decoding times only, and what is made of them is wrong where frames are reordered. But
        # there is a frame for each, and they come in order: the next frame has the earliest time not yet
        # used.
        sorts = self.container.format.name == "avi"
        times: list[int] = []
        for packet in self._packets():
            if sorts and packet is not None and packet.dts is not None:
                heappush(times, packet.dts)
            try:
                frames = self._decoder.decode(packet)
            except FFmpegError:
                self.damage = replace(self.damage, skipped_packets=self.damage.skipped_packets + 1)
                if sorts and packet is not None and packet.dts in times:
                    times.remove(packet.dts)
                    heapify(times)
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.damage = replace(self.damage, concealed_frames=self.damage.concealed_frames + 1)
                if sorts:
                    frame.pts = heappop(times) if times else None
                yield frame

    def _packets(self) -> "Iterator[Packet[VideoStream] | None]":
        """Give the video packets and then None, which drains the decoder."""
        waiting: Packet[VideoStream] | None = None
        seen = self.origin
        try:
            for packet in self.container.demux():
                if not packet.size:  # the container's end mark, or an empty sample: nothing to decode
                    continue
                seen = max(seen, _end(packet))
                if packet.stream_index == self.stream.index:
                    if waiting is not None:
                        yield waiting
                    waiting = cast("Packet[VideoStream]", packet)
            truncated = self._ends_early(seen, waiting)
        except FFmpegError:
            truncated = True
        if waiting is not None:
            # The last packet of a cut file is cut itself.
            truncated = truncated or waiting.is_corrupt
            if not waiting.is_corrupt:
                yield waiting
        self.damage = replace(self.damage, truncated=truncated)
        yield None

    def _ends_early(self, seen: Fraction, last: "Packet[VideoStream] | None") -> bool:
        """Whether the file ended before its index or header says; `seen` is the end of all, in seconds."""
        formats = self.container.format.name.split(",")
        index = self.stream.index_entries
        if "mov" in formats and last is not None and last.dts is not None and len(index):
            return last.dts < index[-1].timestamp
        stated = self.container.duration
        if stated is None or not any(name in _STATES_DURATION for name in formats):
            return False
        begin = Fraction(self.container.start_time or 0, 1_000_000)
        return seen < begin + Fraction(stated, 1_000_000) - _MISSING_END


def _start(stream: Stream) -> Fraction:
    return (stream.start_time or 0) * (stream.time_base or Fraction(0))


def _end(packet: "Packet[Stream]") -> Fraction:
    """When a packet ends, in seconds."""
    begin = packet.pts if packet.pts is not None else packet.dts
    return ((begin or 0) + (packet.duration or 0)) * packet.time_base


def _pick_stream(container: InputContainer, path: Path) -> VideoStream:
    streams = [
        stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise InputError(f"{path} has no video stream: give a clip with pictures in it")
    stream = streams[0]
    if stream.codec_context is None:
        raise InputError(
            f"{path} is in a video format that cannot be decoded here: convert it to H.264 first"
        )
    width, height = stream.codec_context.width, stream.codec_context.height
    if not width:  # FFmpeg forgets a size above the limit, the container does not
        with open_clip(path, decodes=False) as undecoded:
            claimed = undecoded.streams[stream.index].codec_context
            width, height = (
                (claimed.width, claimed.height) if isinstance(claimed, VideoCodecContext) else (0, 0)
            )
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path} is {width}x{height}, over the limit of {MAX_PIXELS:,} pixels a frame (7680x4320):"
            " scale it down first"
        )
    return stream


def _make_decoder(stream: VideoStream) -> VideoCodecContext:
    decoder = stream.codec_context
    # FFmpeg's own VP8 and VP9 decoders leave the alpha plane out, libvpx's do not.
    with_alpha = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(decoder.name)
    if with_alpha and stream.metadata.get("alpha_mode") == "1":
        decoder = Codec(with_alpha).create("video")
    decoder.options = {"max_pixels": str(MAX_PIXELS)}
    # Threads over slices, not over frames: an error then belongs to the packet just given, and is counted.
    decoder.thread_type = ThreadType.SLICE
    decoder.thread_count = _THREADS
    return decoder
