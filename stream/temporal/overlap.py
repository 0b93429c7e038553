"""Overlapped blending (LVCD, §3): what was committed stands as it is in the segment that comes after it.

At every step of a segment the clean latents of the frames that it begins with are replaced by those recorded
at that step when the frames were made, and their noise is their own. A step of the scheduler takes nothing
else, so that replacing is standing at every step where they stood then: the latents at each step are what is
recorded, and what the networks say of these frames is left out. What was sent is reproduced exactly, and what
is new grows out of it. What the ControlNets said of them is the same, too, and is recorded with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from toonstream.engines.parking import HostMemory, Parked
from toonstream.stream.evaluate import InFlight

__all__ = ["Overlap"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Record:
    """A frame at one level; its residuals wait in host memory, too."""

    frame: InFlight
    residuals: Mapping[str, Parked]

    def bring(self) -> None:
        for tensor in (self.frame.latents, *self.residuals.values()):
            tensor.bring()


class Overlap:
    """The last frames that were committed, as they stood at every step.

    Args:
        frames: how many of them (o), 0 or more.
        host: where tensors wait.
    """

    def __init__(self, frames: int, host: HostMemory) -> None:
        self._overlap = frames
        self._host = host
        self._records: dict[tuple[int, int], _Record] = {}  # by frame and step

    def keep(self, climbed: Sequence[tuple[int, int]], frames: Sequence[InFlight]) -> None:
        """Record the last ones of a segment.

        Args:
            climbed: index and step of each of its new frames, all of them.
            frames: what they are there.
        """
        first = max(0, len(frames) - self._overlap)
        for (index, step), frame in zip(climbed[first:], frames[first:], strict=True):
            # Its part of a batch: alone it does not hold the whole of it.
            residuals = {
                name: self._host.park(residual.clone()) for name, residual in frame.residuals.items()
            }
            self._records[index, step] = _Record(frame=frame.at(frame.latents), residuals=residuals)

    def at(self, index: int, step: int) -> InFlight:
        """A frame as it stood at a step when it was made. Begins to bring back what it was at the next."""
        if following := self._records.get((index, step + 1)):
            following.bring()
        record = self._records[index, step]
        residuals = {name: parked.take() for name, parked in record.residuals.items()}
        return record.frame.at(record.frame.latents, residuals)

    def forget(self, *, below: int) -> None:
        """Of the frames with an index below this number keep the last ones only."""
        for index, step in [key for key in self._records if key[0] < below - self._overlap]:
            del self._records[index, step]

    def clear(self) -> None:
        """Forget all frames."""
        self._records.clear()
