"""One picture of a stream."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

__all__ = ["Frame"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """One picture with its place in time.

    Attributes:
        index: position in the stream, from 0, without gaps.
        pts: presentation time in units of `time_base`, as in the source.
        time_base: seconds per unit of `pts`.
        image: (H, W, 3) uint8 RGB in [0, 255], upright (rotation metadata applied).
        duration: in units of `time_base`, or None where the source does not say.
    """

    index: int
    pts: int
    time_base: Fraction
    image: NDArray[np.uint8]
    duration: int | None = None
