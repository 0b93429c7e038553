"""A clip in a file as a stream of upright RGB frames with exact times."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from toonstream.errors import InputError
from toonstream.stream.frame import Frame
from toonstream.stream.sources.decode import Damage, VideoDecoder
from toonstream.stream.sources.picture import PictureReader

__all__ = ["Damage", "FileSource", "SourceInfo"]

_MICROSECOND = Fraction(1, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """What is known of a clip before it is read.

    Attributes:
        width: of the upright pictures, in stored pixels.
        height: of the upright pictures, in stored pixels.
        sample_aspect_ratio: width of an upright pixel over its height; 1 is square.
        average_rate: frames a second.
        time_base: seconds per unit of `Frame.pts`.
        origin: where the clip's own time begins, in seconds; `start` counts from here.
        begin: the time of the clip that is 0 in a copy of the selected part, in seconds: the origin, or after
            a start the first frame's, so that no copy begins with a gap.
        end: where the selected part ends, in seconds of the clip, or None at its end.
        duration: of the selected part, in seconds, or None where the clip does not say.
        frame_count: of the selected part, an estimate, or None where the clip does not say.
    """

    width: int
    height: int
    sample_aspect_ratio: Fraction
    average_rate: Fraction
    time_base: Fraction
    origin: Fraction
    begin: Fraction
    end: Fraction | None
    duration: float | None
    frame_count: int | None


class FileSource:
    """Reads a clip lazily, with as many pictures in memory as the decoder needs, whatever the length.

    Orientation metadata is applied to the pixels. Times are those of the file, never resampled; only a
    missing time is filled in from the frame before, and one that does not increase is moved to the next unit.
    A part is chosen by times: frames with origin + start <= time < origin + start + length. It can be
        iterated once.

    Attributes:
        path: of the clip.
        start: of the selected part, in seconds from the clip's origin.
        length: of the selected part, in seconds, or None up to the end.
        info: what is known beforehand.
    """

    def __init__(self, path: Path, *, start: float = 0.0, duration: float | None = None) -> None:
        """Open the clip and decode the first picture of the selected part.

        Raises:
            InputError: it cannot be used; the message says why and what to do.
        """
        if not 0 <= start < math.inf:
            raise InputError(f"start must be 0 seconds or more, not {start:g}")
        if duration is not None and not 0 < duration < math.inf:
            raise InputError(f"duration must be more than 0 seconds, not {duration:g}")
        self.path = path
        # By way of the decimal text, 0.1 means a tenth and not the nearest binary fraction.
        self.start = Fraction(str(start))
        self.length = None if duration is None else Fraction(str(duration))
        self._decoder = VideoDecoder(path)
        try:
            wanted = self._decoder.origin + self.start
            frames = self._decoder.frames_from(wanted if start else None)
            first = next(frames, None)
            if first is None:
                raise InputError(self._no_frames())
            self._reader = PictureReader(first[0])
            self._frames = chain([first], frames)
            self.info = self._describe(first[1])
        except BaseException:
            self._decoder.close()
            raise

    @property
    def damage(self) -> Damage:
        """What has been found wrong so far; complete once the iteration has ended."""
        return self._decoder.damage

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Once is enough, more does no harm."""
        self._decoder.close()

    def __iter__(self) -> Iterator[Frame]:
        """Give the frames of the selected part, in order."""
        end = self.info.end
        for index, (picture, pts) in enumerate(self._frames):
            if end is not None and pts * self.info.time_base >= end:
                return
            yield Frame(
                index=index,
                pts=pts,
                time_base=self.info.time_base,
                image=self._reader.read(picture),
                duration=picture.duration or None,
            )

    def _no_frames(self) -> str:
        total = self._total()
        if self.start and total is not None:
            lasts = f"it lasts {float(total):.2f} s"
            return f"{self.path} has no frame at {float(self.start):g} s, {lasts}: start earlier"
        if self.start:
            return f"{self.path} has no frame at {float(self.start):g} s: start earlier"
        return f"{self.path} holds no frame that can be decoded, or lasts no time: give another clip"

    def _total(self) -> Fraction | None:
        """How long the whole clip lasts, in seconds: its pictures or, where that is not known, all of it."""
        stream = self._decoder.stream
        if stream.duration:
            return stream.duration * self._decoder.time_base
        return self._decoder.container.duration * _MICROSECOND if self._decoder.container.duration else None

    def _describe(self, first_pts: int) -> SourceInfo:
        total = self._total()
        selected = None
        if total is not None:
            rest = max(total - self.start, Fraction(0))
            selected = rest if self.length is None else min(rest, self.length)
        rate = self._decoder.rate
        known = self._decoder.stream.frames
        count = None
        if selected is not None and total:
            count = max(1, round(known * selected / total if known else rate * selected))
        origin, unit = self._decoder.origin, self._decoder.time_base
        return SourceInfo(
            width=self._reader.width,
            height=self._reader.height,
            sample_aspect_ratio=self._reader.upright_aspect(
                self._decoder.stream.sample_aspect_ratio or Fraction(1)
            ),
            average_rate=rate,
            time_base=unit,
            origin=origin,
            begin=first_pts * unit if self.start else origin,
            end=None if self.length is None else origin + self.start + self.length,
            duration=None if selected is None else float(selected),
            frame_count=count,
        )
