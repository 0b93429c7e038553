"""Whatever the batch, the network sees batches of one size, and each frame gets what is its own."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from toonstream.engines.engine import TensorSpec
from toonstream.stream.batching import EqualBatches

SPEC = TensorSpec(name="sample", dtype=torch.float32, shape=("batch", 2))


class Doubling:
    inputs = outputs = (SPEC,)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, tensors):
        self.sizes.append(len(tensors["sample"]))
        return {
            "sum": tensors["sample"] * 2 + tensors["timestep"][:, None],
            "first": tensors["sample"][:, :1],
        }


@given(st.integers(1, 20), st.integers(1, 8))
def test_every_frame_gets_its_own_in_batches_of_one_size(count: int, size: int) -> None:
    network = Doubling()
    tensors = {"sample": torch.rand(count, 2), "timestep": torch.rand(count)}
    made = EqualBatches(network, size)(tensors)
    assert network.sizes == [size] * -(-count // size)
    assert all(torch.equal(made[name], plain) for name, plain in Doubling()(tensors).items())


def test_it_declares_what_the_network_declares() -> None:
    assert EqualBatches(Doubling(), 3).inputs == EqualBatches(Doubling(), 3).outputs == (SPEC,)


def test_what_is_given_out_may_be_changed() -> None:
    given_in = torch.ones(3, 2)
    made = EqualBatches(Doubling(), 2)({"sample": given_in, "timestep": torch.zeros(3)})
    made["first"].mul_(7)
    assert torch.equal(given_in, torch.ones(3, 2))
