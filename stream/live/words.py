"""What the frames are to look like, as it changes: blended from frame to frame."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["WordTrack", "Words"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """What a frame is to look like. Frames that are to look alike share one object.

    Attributes:
        text: the prompt, (1, 77, D) float32.
        negative: the negative prompt, the same shape.
        seed: of the noise.
    """

    text: Tensor
    negative: Tensor
    seed: int = 0

    @cached_property
    def both(self) -> Tensor:
        """The negative prompt and the prompt, (2, 77, D), for guidance."""
        return torch.cat([self.negative, self.text])

    def sides(self, guidance: float) -> Tensor:
        """What a denoiser of this guidance takes: always the same tensor."""
        return self.text if guidance == 1.0 else self.both

    def towards(self, other: "Words", part: float) -> "Words":
        """Linearly between the two, 0 here and 1 there; noise as in the other."""
        return Words(
            text=torch.lerp(self.text, other.text, part),
            negative=torch.lerp(self.negative, other.negative, part),
            seed=other.seed,
        )


class WordTrack:
    """Gives every frame its words.

    Args:
        words: of the first frames.
    """

    def __init__(self, words: Words) -> None:
        self._from = self._now = self._to = words
        self._frames = self._passed = 0

    @property
    def blending(self) -> bool:
        """Whether the next frame's words are still on their way."""
        return self._passed < self._frames

    def change(self, words: Words, *, frames: int) -> None:
        """Go to other words within the next `frames` frames, from where the last frame was."""
        self._from, self._to = self._now, words
        self._frames, self._passed = max(0, frames), 0

    def next(self) -> Words:
        """The words of the next frame."""
        if self.blending:
            self._passed += 1
            self._now = self._from.towards(self._to, self._passed / (self._frames + 1))
        else:
            self._now = self._to
        return self._now
