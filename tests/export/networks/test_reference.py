"""Attention to remembered frames: exact where it can be, and gone without a trace when it is ejected."""

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from toonstream.errors import ModelError
from toonstream.export.networks.base import random_inputs
from toonstream.export.networks.reference import (
    BIAS,
    EMPTY,
    FEATURES,
    REMEMBERED,
    ReferenceAttention,
    ReferenceUnet,
    divisor,
    eject,
    inject,
)
from toonstream.export.networks.unet import MotionUnet

LAYERS = ("down_0", "down_1", "down_2", "mid", "up_0", "up_1", "up_2")
SIZES = {"batch": 2, "frames": 3, "h": 8, "w": 4, "remembered": 2}


@cache
def network(kind: str) -> Any:
    """A UNet with self-attention at every level, with and without motion modules; nothing left at zero."""
    from diffusers import UNetMotionModel

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 24, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
    }
    made: nn.Module
    if kind == "motion":
        made = UNetMotionModel(
            down_block_types=("CrossAttnDownBlockMotion",) * 3,
            up_block_types=("CrossAttnUpBlockMotion",) * 3,
            num_attention_heads=2,
            motion_num_attention_heads=2,
            **shape,
        )
    else:
        made = UNet2DConditionModel(
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            attention_head_dim=2,
            **shape,
        )
    for parameter in made.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return made.eval().requires_grad_(False)


def pair(kind: str, layers: tuple[str, ...] = ("down", "mid", "up")) -> tuple[MotionUnet, ReferenceUnet]:
    return (
        MotionUnet(deepcopy(network(kind))),
        ReferenceUnet(deepcopy(network(kind)), layers=layers),
    )


def run(module: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.inference_mode():
        made = module(*(inputs[name] for name in module.input_names))
    return dict(zip(module.output_names, made, strict=True))


def features(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What was seen, as it is to be remembered."""
    return {
        REMEMBERED + name.removeprefix(FEATURES): tensor
        for name, tensor in outputs.items()
        if name.startswith(FEATURES)
    }


@pytest.mark.parametrize("kind", ["motion", "plain"])
def test_with_all_places_empty_it_is_the_plain_network(kind: str) -> None:
    plain, reference = pair(kind)
    inputs = random_inputs(reference.inputs, SIZES)
    changed = run(reference, inputs)["output"]
    inputs[BIAS].fill_(EMPTY)
    expected = run(plain, inputs)["output"]
    torch.testing.assert_close(run(reference, inputs)["output"], expected, rtol=1e-5, atol=1e-5)
    assert (changed - expected).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["motion", "plain"])
def test_a_frame_that_remembers_itself_is_not_changed(kind: str) -> None:
    plain, reference = pair(kind)
    inputs = random_inputs(reference.inputs, {**SIZES, "frames": 1, "remembered": 1})
    inputs[BIAS].fill_(EMPTY)
    seen = run(reference, inputs)
    # Keys and values of its own, once more: the softmax gives each half of what it had.
    again = run(reference, {**inputs, **features(seen), BIAS: torch.tensor([[0.0], [1.5]])})
    torch.testing.assert_close(again["output"], seen["output"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen["output"], run(plain, inputs)["output"], rtol=1e-5, atol=1e-5)


def test_a_bias_of_log_2_is_to_remember_a_frame_twice() -> None:
    _, reference = pair("motion")
    inputs = random_inputs(reference.inputs, {**SIZES, "remembered": 1})
    bias = torch.tensor([[0.3], [-0.2]])
    twice = {
        name: tensor.repeat_interleave(2, 1) for name, tensor in inputs.items() if name.startswith(REMEMBERED)
    }
    once = run(reference, {**inputs, BIAS: bias + torch.tensor(2.0).log()})
    both = run(reference, {**inputs, **twice, BIAS: bias.expand(2, 2)})
    torch.testing.assert_close(once["output"], both["output"], rtol=1e-4, atol=1e-5)


def test_each_frame_attends_to_the_same_past_and_each_window_to_its_own() -> None:
    _, reference = pair("plain")
    inputs = random_inputs(reference.inputs, SIZES)
    before = run(reference, inputs)["output"]
    inputs[f"{REMEMBERED}0_at_1"][1, 1] += 1.0
    change = (run(reference, inputs)["output"] - before).abs().amax((2, 3, 4))
    assert change[0].max() == 0.0
    assert change[1].min() > 1e-4


def test_attention_is_that_of_the_formula() -> None:
    attention = network("plain").mid_block.attentions[0].transformer_blocks[0].attn1
    ours = ReferenceAttention(attention, divisor=1)
    torch.manual_seed(1)
    own, past, bias = torch.randn(3, 6, 32), torch.randn(1, 2, 5, 32), torch.tensor([[0.7, -1.0]])
    ours.remembered, ours.bias = past, bias
    with torch.inference_mode():
        actual = ours(own)
        for frame in range(3):
            tokens = torch.cat([own[frame], past[0].flatten(0, 1)])
            added = torch.cat([torch.zeros(6), bias[0].repeat_interleave(5)])
            query, key, value = (
                project(given).unflatten(1, (attention.heads, -1)).transpose(0, 1)
                for project, given in ((ours.to_q, own[frame]), (ours.to_k, tokens), (ours.to_v, tokens))
            )
            weights = torch.softmax(query @ key.transpose(1, 2) * attention.scale + added, -1)
            expected = attention.to_out[0]((weights @ value).transpose(0, 1).flatten(1))
            torch.testing.assert_close(actual[frame], expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    kind=st.sampled_from(["motion", "plain"]),
    layers=st.lists(st.sampled_from([*LAYERS, "down", "up", ""]), min_size=1, max_size=3),
)
def test_ejecting_restores_every_bit(kind: str, layers: list[str]) -> None:
    unet = network(kind)
    before = {name: (id(module), type(module)) for name, module in unet.named_modules()}
    state = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    sample, text = torch.randn(2, 4, 8, 4), torch.randn(2, 77, 16)

    def output() -> Tensor:
        more: Any = {"sample": sample.unsqueeze(2)} if kind == "motion" else {"sample": sample}
        with torch.inference_mode():
            made: Tensor = unet(timestep=500, encoder_hidden_states=text, **more).sample
        return made

    expected = output()
    injected = inject(unet, layers=layers)
    assert injected
    assert inject(unet, layers=layers) == injected
    assert unet.state_dict().keys() == state.keys()
    eject(unet)
    assert {name: (id(module), type(module)) for name, module in unet.named_modules()} == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in unet.state_dict().items())
    assert torch.equal(output(), expected)


def test_layers_are_chosen_by_their_names() -> None:
    _, reference = pair("motion", ("mid", "up_1"))
    assert [name for name in reference.input_names if name.startswith(REMEMBERED)] == [
        BIAS, "remembered_0_at_4", "remembered_1_at_2", "remembered_2_at_2",
    ]  # fmt: skip
    assert [divisor(name) for name in reference.output_names[1:]] == [4, 2, 2]
    made = run(reference, random_inputs(reference.inputs, SIZES))
    assert [tuple(tensor.shape) for tensor in features(made).values()] == [
        (2, 3, 2, 1, 32), (2, 3, 4, 2, 24), (2, 3, 4, 2, 24),
    ]  # fmt: skip
    with pytest.raises(ModelError, match=r"no layer 'sideways'.*down_0, down_1, down_2, mid, up_0"):
        inject(deepcopy(network("motion")), layers=["up", "sideways"])
    with pytest.raises(ModelError, match="says no resolution"):
        divisor(BIAS)


def test_nothing_of_a_call_stays_in_the_network() -> None:
    _, reference = pair("plain")
    inputs = random_inputs(reference.inputs, SIZES)
    run(reference, inputs)
    attentions = [module for module in reference.modules() if isinstance(module, ReferenceAttention)]
    assert len(attentions) == 10
    with pytest.raises(RuntimeError):
        run(reference, {**inputs, "text": inputs["text"][..., :3]})
    for attention in attentions:
        assert attention.remembered is attention.bias is attention.seen is None


def test_another_attention_is_refused() -> None:
    unet = deepcopy(network("plain"))
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.rescale_output_factor = 2.0
    with pytest.raises(ModelError, match=r"not SD 1\.5's; --reference and --remember"):
        inject(unet, layers=["mid"])
