from itertools import count

import pytest
import torch
from torch import Tensor

from toonstream.stream.clock import Stopwatch, TimedNetwork


class Doubling:
    inputs = ()
    outputs = ()

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"out": 2 * tensors["in"]}


def test_seconds_add_up_under_their_names() -> None:
    ticks = iter([0.0, 1.5, 10.0, 10.25, 20.0, 23.0])
    stopwatch = Stopwatch(lambda: next(ticks))
    for name in ("a", "b", "a"):
        with stopwatch.measure(name):
            pass
    assert stopwatch.seconds == {"a": 4.5, "b": 0.25}


def test_time_counts_even_when_the_block_fails() -> None:
    stopwatch = Stopwatch(count().__next__)
    with pytest.raises(OSError, match="no"), stopwatch.measure("a"):
        raise OSError("no")
    assert stopwatch.seconds == {"a": 1}


def test_a_timed_network_gives_what_the_network_gives() -> None:
    stopwatch = Stopwatch(count().__next__)
    network = TimedNetwork(Doubling(), "unet", stopwatch)
    assert network({"in": torch.tensor(3)}) == {"out": torch.tensor(6)}
    assert (network.inputs, network.outputs) == ((), ())
    assert stopwatch.seconds == {"unet": 1}
