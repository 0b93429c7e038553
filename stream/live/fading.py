"""From one form of a network to another in the middle of a stream, over a few windows."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor

from toonstream.engines.engine import Network, TensorSpec

__all__ = ["Fade", "FadedNetwork"]

T = TypeVar("T")


class Fade(Generic[T]):
    """What one stream is drawn with, and what it is going over to.

    Args:
        first: what it is drawn with.
    """

    def __init__(self, first: T) -> None:
        self.now = first
        self.coming: T | None = None
        self._passed = self._windows = 0

    @property
    def settled(self) -> bool:
        """Whether nothing is coming."""
        return self.coming is None

    @property
    def target(self) -> T:
        """What it is drawn with in the end."""
        return self.now if self.coming is None else self.coming

    @property
    def share(self) -> float:
        """Of what is coming in what is drawn, 0 to 1."""
        return self._passed / (self._windows + 1)

    def begin(self, to: T, *, windows: int) -> None:
        """Go over to something else within so many windows, the next one included; 0 goes at once."""
        self.coming, self._windows, self._passed = to, windows, 0
        self.step()

    def step(self) -> None:
        """A window is full: give what is coming a little more."""
        if self.coming is None:
            return
        self._passed += 1
        if self._passed > self._windows:
            self.now, self.coming, self._passed = self.coming, None, 0


class FadedNetwork(Generic[T]):
    """A network in the form that a fade has come to. While it goes over, both forms run.

    Args:
        fade: of the stream.
        form: gives the network in one form.
    """

    def __init__(self, fade: Fade[T], form: Callable[[T], Network]) -> None:
        self._fade = fade
        self._form = form

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """As declared by the form that is drawn with."""
        return self._form(self._fade.now).inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """As declared by the form that is drawn with."""
        return self._form(self._fade.now).outputs

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, or once in each form."""
        made = self._form(self._fade.now)(tensors)
        if self._fade.coming is None:
            return made
        new = self._form(self._fade.coming)(tensors)
        share = self._fade.share
        return {name: torch.lerp(old, new[name].to(old), share) for name, old in made.items()}
