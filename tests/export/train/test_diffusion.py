"""How the denoiser is judged: its own steps are DDIM's, and words by the difference that they make."""

from pathlib import Path

import pytest
import torch
from torch import nn

from toonstream.export.train.captions import vocabulary_texts
from toonstream.export.train.common import lower_precision
from toonstream.export.train.data import Batch
from toonstream.export.train.diffusion import Stack, _words_loss, new_scheduler
from toonstream.export.train.networks import (
    CONTROLS,
    new_autoencoder,
    new_controlnet,
    new_text_encoder,
    new_unet,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Stack:
    torch.manual_seed(0)
    unet = new_unet()
    controls = {name: new_controlnet(unet) for name in CONTROLS}
    for control in controls.values():
        nn.init.normal_(control.controlnet_mid_block.weight, std=0.1)
    path: Path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return Stack(
        unet=unet,
        controls=controls,
        text_encoder=new_text_encoder(),
        tokenizer=train_tokenizer(vocabulary_texts(), path),
        autoencoder=new_autoencoder(),
        alphas=new_scheduler().alphas_cumprod,
    )


@torch.no_grad()
def test_what_a_run_holds_so_far_is_what_ddim_holds(stack: Stack) -> None:
    torch.manual_seed(1)
    noise = torch.randn(2, 1, 32, 8, 8)
    hints = {name: torch.zeros(2, 1, 3, 64, 64) for name in CONTROLS}
    text = stack.text(["hosoda style", "ink style"])
    stops = [torch.tensor([666, 666]), torch.tensor([332, 332])]
    held = stack.drawn_so_far(noise, stops, text, hints)
    scheduler = new_scheduler()
    scheduler.set_timesteps(3)
    expected = noise
    for timestep in scheduler.timesteps[:2]:
        with lower_precision():
            x0 = stack.predict(expected, timestep.repeat(2), text, hints)
        expected = scheduler.step(x0, timestep, expected).prev_sample
    assert torch.allclose(held, expected, atol=1e-2)


@pytest.mark.parametrize("last", [0.0, 1.0])
def test_a_batch_is_judged_wherever_its_samples_stand(stack: Stack, last: float) -> None:
    torch.manual_seed(2)
    pictures = torch.rand(2, 1, 3, 64, 64)
    batch = Batch(
        colour=pictures,
        outline=pictures,
        target=pictures * 2.0 - 1.0,
        captions=["hosoda style", "ink style"],
        flow=torch.zeros(2, 0, 2, 64, 64),
        steady=torch.zeros(2, 0, 1, 64, 64),
    )
    losses = stack.loss(batch, last=last)
    (losses.latents + losses.pixels + losses.words).backward()
    assert losses.pixels > 0.0
    assert losses.motion == 0.0
    assert all(torch.isfinite(p.grad).all() for p in stack.unet.parameters() if p.grad is not None)


def test_words_are_judged_by_the_share_of_their_difference_that_is_drawn() -> None:
    target = torch.zeros(4, 3, 8, 8)
    target[0] += 0.4  # a pair that differs much
    target[2] += 0.04  # and one that differs little
    assert _words_loss(target, target) == 0.0
    assert _words_loss(target + torch.rand(2, 3, 8, 8).repeat_interleave(2, 0), target) < 1e-5
    nothing = torch.zeros_like(target)
    assert _words_loss(nothing, target) > 0.5 * (0.4 / 0.44 + 0.04 / 0.08) - 1e-6
