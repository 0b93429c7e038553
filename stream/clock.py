"""Where the time goes: a clock that tests can replace, and a stopwatch around every network."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor

from toonstream.engines.engine import Network, NetworkAround

__all__ = ["Clock", "Stopwatch", "TimedNetwork", "monotonic"]

Clock = Callable[[], float]
"""Gives seconds since some fixed moment; never goes back."""

monotonic: Clock = time.perf_counter


class Stopwatch:
    """Adds up seconds under names. Each name belongs to one thread at a time."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}

    def now(self) -> float:
        """Seconds by the clock."""
        return self._clock()

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time that the block takes."""
        begin = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - begin

    @property
    def seconds(self) -> Mapping[str, float]:
        """Name → seconds so far."""
        return dict(self._seconds)


class TimedNetwork(NetworkAround):
    """A network that notes how long its calls take."""

    def __init__(self, network: Network, name: str, stopwatch: Stopwatch) -> None:
        super().__init__(network)
        self._name = name
        self._stopwatch = stopwatch

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once, and add the time it took."""
        with self._stopwatch.measure(self._name):
            return self._network(tensors)
