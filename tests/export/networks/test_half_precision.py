"""Every network in half precision, as torch runs it on a GPU: eagerly, all of its weights narrow.

bfloat16 stands in for float16, which CPUs compute slowly; what may not be mixed with float32 is the same.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from toonstream.engines.engine import NetworkSource
from toonstream.engines.torch import TorchEngine
from toonstream.export.checkpoints import Model, reference_source
from toonstream.export.networks.base import random_inputs

SIZES = {"batch": 2, "frames": 3, "h": 8, "w": 8, "remembered": 2}
CPU = torch.device("cpu")


def differences(source: NetworkSource) -> Iterator[tuple[str, float]]:
    """Give how far each output is from what float32 makes of the same, relatively."""
    rough, exact = TorchEngine(device=CPU, dtype=torch.bfloat16), TorchEngine(device=CPU)
    network, reference = rough.load(source), exact.load(source)
    inputs = random_inputs(reference.inputs, SIZES)
    expected = reference(inputs)
    for name, made in network(inputs).items():
        assert made.dtype == torch.float32
        yield name, float((made - expected[name]).norm() / expected[name].norm())


def sources(model: Model) -> dict[str, NetworkSource]:
    return {**model.sources, "unet_reference": reference_source(model)}


@pytest.mark.parametrize(
    "name",
    [
        "text_encoder",
        "vae_encoder",
        "vae_decoder",
        "unet",
        "unet_reference",
        "hint_colour",
        "controlnet_colour",
    ],
)
def test_a_small_models_networks_do(model: Model, name: str) -> None:
    for output, difference in differences(sources(model)[name]):
        assert difference < 0.05, output


@pytest.mark.parametrize("name", ["unet", "unet_reference", "vae_decoder", "controlnet_outline"])
def test_networks_shaped_as_sd15s_do(sd15: Model, name: str) -> None:
    for output, difference in differences(sources(sd15)[name]):
        assert difference < 0.05, output


def test_timesteps_are_not_rounded(model: Model) -> None:
    """999 is no bfloat16, and 998.5 no float16."""
    network: Any = TorchEngine(device=CPU, dtype=torch.bfloat16).load(model.sources["unet"])
    inputs = random_inputs(network.inputs, SIZES)
    apart = [
        network({**inputs, "timestep": torch.tensor([timestep, timestep])})["output"]
        for timestep in (999.0, 1000.0)
    ]
    assert not torch.equal(*apart)
