"""The sliding windows of Diffutoon (paper §3.1, eqs. 1-5): where they lie, how they weigh, what they cost.

Plain Python, no tensors. Frames and windows count from 0; a span is half open, [start, stop).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from toonstream.errors import SettingError

__all__ = ["OfflineCost", "Span", "Windows", "frame_weights"]


class Span(NamedTuple):
    """Consecutive frames [start, stop)."""

    start: int
    stop: int

    @property
    def frames(self) -> range:
        """The frame indices inside."""
        return range(self.start, self.stop)


@dataclass(frozen=True, kw_only=True)
class OfflineCost:
    """Frame evaluations of a whole clip when all frames are there from the start.

    Attributes:
        unet: of the UNet: steps × guidance sides × the lengths of all windows.
        controlnet: of all ControlNets together, each (frame, step, side) once.
        controlnet_textbook: the same, recomputed for every window as the reference code does.
    """

    unet: int
    controlnet: int
    controlnet_textbook: int


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The windows that start every `stride` frames and are `length` frames long.

    Attributes:
        length: frames in a window (d), at least 1.
        stride: frames from one window's start to the next (s), 1 to `length`; it need not divide `length`.

    Raises:
        SettingError: one of the two is out of range.
    """

    length: int
    stride: int

    def __post_init__(self) -> None:
        if self.length < 1:
            raise SettingError(f"A window of {self.length} frames holds nothing: use at least 1.")
        if not 1 <= self.stride <= self.length:
            raise SettingError(
                f"A stride of {self.stride} does not fit windows of {self.length} frames: "
                f"use 1 to {self.length}, best {max(self.length // 2, 1)}."
            )

    def count(self, frames: int) -> int:
        """How many windows a clip of `frames` frames has: none begins after one has reached its end."""
        if frames <= self.length:
            return min(frames, 1)
        return -(-(frames - self.length) // self.stride) + 1

    def span(self, number: int, frames: int | None = None) -> Span:
        """Where window `number` lies; truncated at `frames` where the clip's length is known."""
        start = number * self.stride
        stop = start + self.length
        return Span(start, stop if frames is None else min(stop, frames))

    def over(self, frames: int) -> Iterator[Span]:
        """All windows of a clip of `frames` frames, in order."""
        return (self.span(number, frames) for number in range(self.count(frames)))

    def last_needed(self, frame: int, *, steps: int, skewed: bool = False) -> int:
        """The index of the last frame that `frame` depends on (R_T), which is when a stream can commit it.

        A frame's last window reaches ⌊(d-1)/s⌋ window starts past its own, so every further step waits for
        that many strides more; the skewed wavefront waits for one stride more again.
        """
        strides_per_step = (self.length - 1) // self.stride + skewed
        return self.stride * (frame // self.stride + (steps - 1) * strides_per_step) + self.length - 1

    def lookahead(self, *, steps: int, skewed: bool = False) -> int:
        """The most frames that are ever in and not committed: that of the first frame of a stride."""
        return self.last_needed(0, steps=steps, skewed=skewed)

    def cost(self, frames: int, *, steps: int, sides: int, controlnets: int) -> OfflineCost:
        """What a clip of `frames` frames costs offline; `sides` is 2 with guidance, else 1."""
        passes = steps * sides
        covered = sum(len(span.frames) for span in self.over(frames))
        return OfflineCost(
            unet=passes * covered,
            controlnet=passes * frames * controlnets,
            controlnet_textbook=passes * covered * controlnets,
        )


def frame_weights(length: int) -> tuple[float, ...]:
    """The weight of each frame of a window (eq. 5): 1.01 in the middle, 0.01 at both ends; 1 for a lone one.

    The paper's form, with its division by zero at length 1 settled; the weights are not normalised.
    """
    if length == 1:
        return (1.0,)
    centre = (length - 1) / 2
    return tuple(1.01 - abs(place - centre) / centre for place in range(length))
