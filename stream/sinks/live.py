"""A live toon on its way out: pictures and sound, encoded at once and written into one container."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import av
from av.container import OutputContainer
from av.error import FFmpegError

from toonstream.errors import OutputError
from toonstream.stream.compose import fitted
from toonstream.stream.frame import Frame
from toonstream.stream.sinks.place import OutputPlace
from toonstream.stream.sinks.sound import SoundTrack
from toonstream.stream.sinks.video import VideoTrack
from toonstream.stream.sinks.wire import Writer
from toonstream.stream.sources.sound import Sound, SoundFormat

__all__ = ["LiveSink", "MuxSink", "OutputFormat", "Recipe"]

_KEY_FRAME_SECONDS = 1
_INTERLEAVE = "200000"  # microseconds that pictures wait for sound, or sound for pictures, in the muxer
_BITS_A_PIXEL = 0.15  # toons have hard edges
_BIT_RATES = (400_000, 8_000_000)  # a second; the least and the most where nobody says


@dataclass(frozen=True, kw_only=True)
class OutputFormat:
    """What is going to be written.

    Attributes:
        width: of the pictures in pixels, even.
        height: likewise.
        rate: frames a second, about.
        sound: what the sound is in; None without sound.
        bit_rate: of the pictures, in bits a second, where a network carries them; None: by their size.
    """

    width: int
    height: int
    rate: Fraction
    sound: SoundFormat | None = None
    bit_rate: int | None = None

    @property
    def bits(self) -> int:
        """The bit rate, chosen where it was left open."""
        usual = round(self.width * self.height * self.rate * Fraction(_BITS_A_PIXEL))
        return self.bit_rate or min(max(usual, _BIT_RATES[0]), _BIT_RATES[1])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to write a kind of stream.

    Attributes:
        muxer: FFmpeg's name of the container.
        muxer_options: for it.
        time_base: seconds per unit of its times.
        copied: the codecs of sound that it takes as they are.
        sound_encoder: for other sound.
        encoder: of the pictures.
        crf: their quality, for files; None: a steady bit rate without delay, for networks.
    """

    muxer: str
    muxer_options: dict[str, str]
    time_base: Fraction = Fraction(1, 90_000)
    copied: frozenset[str]
    sound_encoder: str = "aac"
    encoder: str = "libx264"
    crf: int | None = None

    def encoder_options(self, format_: OutputFormat) -> dict[str, str]:
        """The encoder's options."""
        if self.encoder != "libx264":
            options = {"deadline": "realtime", "cpu-used": "8", "row-mt": "1"}
            return options | {"crf": str(self.crf), "b": "0"}
        options = {"preset": "veryfast", "forced-idr": "1"}
        if self.crf is not None:
            return options | {"crf": str(self.crf)}
        bits = str(format_.bits)
        return options | {"tune": "zerolatency", "b": bits, "maxrate": bits, "bufsize": bits}


class LiveSink(Protocol):
    """Where one outlet of a live stream writes. Used on one thread, but for `abort`."""

    def write(self, frame: Frame) -> None:
        """Write one picture; times are the stream's, and rise."""
        ...

    def hear(self, sound: Sound) -> None:
        """Write one packet of sound."""
        ...

    def close(self) -> None:
        """Finish what is there, properly."""
        ...

    def abandon(self) -> None:
        """Let go after a failure."""
        ...

    def abort(self) -> None:
        """Wake up whoever writes, from any thread."""
        ...


class MuxSink:
    """Encodes and writes. The first picture is at time 0; sound from before it is left out.

    Args:
        name: for people, without secrets.
        target: a path, or what to write into.
        recipe: how to write.
        format_: what is going to be written.
        place: where the file is in the making, if it is one.
    """

    def __init__(
        self,
        name: str,
        target: str | Writer,
        recipe: Recipe,
        format_: OutputFormat,
        *,
        place: OutputPlace | None = None,
    ) -> None:
        """Begin the output.

        Raises:
            OutputError: it cannot be written.
        """
        self._name = name
        self._writer = None if isinstance(target, str) else target
        self._place = place
        self._unit = recipe.time_base
        self._usual = 1 / format_.rate
        self._zero: Fraction | None = None
        self._key: Fraction | None = None
        self._last: int | None = None
        self._size = format_.width, format_.height
        self._sound: SoundTrack | None = None
        with self._reported():
            self._container: OutputContainer = av.open(
                target,
                "w",
                format=recipe.muxer,
                container_options={"max_interleave_delta": _INTERLEAVE, **recipe.muxer_options},
            )
        try:
            with self._reported():
                self._video = VideoTrack(
                    self._container,
                    encoder=recipe.encoder,
                    options=recipe.encoder_options(format_),
                    width=format_.width,
                    height=format_.height,
                    sample_aspect_ratio=Fraction(1),
                    rate=format_.rate,
                    time_base=recipe.time_base,
                )
                if format_.sound is not None:
                    self._sound = SoundTrack(
                        self._container,
                        format_.sound,
                        copied=recipe.copied,
                        encoder=recipe.sound_encoder,
                    )
                self._container.start_encoding()
        except BaseException:
            self.abandon()
            raise

    def write(self, frame: Frame) -> None:
        """Encode one picture of any size; it is fitted in.

        Raises:
            OutputError: it cannot be written.
        """
        time = frame.pts * frame.time_base
        if self._zero is None:
            self._zero = time
        time -= self._zero
        pts = round(time / self._unit)
        if self._last is not None and pts <= self._last:
            return
        self._last = pts
        key = self._key is None or time - self._key >= _KEY_FRAME_SECONDS
        if key:
            self._key = time
        length = frame.duration * frame.time_base if frame.duration else self._usual
        with self._reported():
            self._container.mux(
                self._video.encode(
                    fitted(frame.image, self._size), pts, max(1, round(length / self._unit)), key=key
                )
            )

    def hear(self, sound: Sound) -> None:
        """Write one packet of sound.

        Raises:
            OutputError: it cannot be written.
        """
        if self._sound is None or self._zero is None:
            return
        with self._reported():
            self._container.mux(self._sound.take(sound, sound.begin - self._zero))

    def close(self) -> None:
        """Write what the encoders hold, and finish.

        Raises:
            OutputError: it cannot be written; of a file, what plays is kept.
        """
        try:
            with self._reported():
                if self._zero is not None:
                    self._container.mux(self._video.finish())
                    if self._sound is not None:
                        self._container.mux(self._sound.finish())
                self._container.close()
            if self._place is not None and self._zero is not None:
                with self._reported():
                    self._place.commit()
        except OutputError:
            self.abandon()
            raise
        if self._place is not None and self._zero is None:
            self._place.discard()
        if self._writer is not None:
            self._writer.close()

    def abandon(self) -> None:
        """Let go; of a file, what plays is kept under a partial name."""
        if self._writer is not None:
            self._writer.abort()
        with suppress(FFmpegError, OSError):
            if self._writer is None and self._zero is not None:
                self._container.mux(self._video.finish())
        with suppress(FFmpegError, OSError):
            self._container.close()
        if self._writer is not None:
            self._writer.close()
        if self._place is not None and self._place.temporary.exists():
            if self._zero is None:
                self._place.discard()
            else:
                self._place.keep_partial()

    def abort(self) -> None:
        """Wake up whoever writes, from any thread."""
        if self._writer is not None:
            self._writer.abort()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except (FFmpegError, OSError) as error:
            if error.errno == errno.ENOSPC:
                raise OutputError(
                    f"the disk is full, {self._name} is not finished: free some space"
                ) from error
            reason = error.strerror or type(error).__name__
            raise OutputError(f"{self._name} cannot be written ({reason}): choose another place") from error
