"""The stream against a run of Diffutoon over a whole clip, written from the paper, on diffusers' networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.export.checkpoints import Model
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.noise import frame_noise
from toonstream.stream.schedulers import make_scheduler

WINDOW, STRIDE, STEPS, GUIDANCE = 4, 2, 3, 7.0
STRENGTHS = {"outline": 0.5, "colour": 0.5}


def diffutoon(
    originals: Mapping[str, Any],
    hints: Sequence[Mapping[str, Tensor]],
    noise: Sequence[Tensor],
    text: Tensor,
    negative: Tensor,
) -> Tensor:
    """§3.1 of the paper: the clean latents of all frames, (N, C, h, w)."""
    frames = len(hints)
    kept = torch.cumprod(1 - torch.linspace(0.00085, 0.012, 1000), 0)  # ᾱ
    timesteps = torch.linspace(999, 0, STEPS).round().long()
    latents = torch.stack(list(noise))
    for step, timestep in enumerate(timesteps):
        sides = []
        for prompt in (negative, text):
            total, weights = torch.zeros_like(latents), torch.zeros(frames)
            start = 0
            while True:
                window = list(range(start, min(start + WINDOW, frames)))
                predicted = predict(originals, latents[window], timestep, [hints[i] for i in window], prompt)
                for place, frame in enumerate(window):
                    radius = (len(window) - 1) / 2
                    weight = 1 + 0.01 - abs(place - radius) / radius if radius else 1.0
                    total[frame] += weight * predicted[place]
                    weights[frame] += weight
                if window[-1] == frames - 1:
                    break
                start += STRIDE
            sides.append(total / weights.reshape(-1, 1, 1, 1))
        epsilon = sides[0] + GUIDANCE * (sides[1] - sides[0])
        now = kept[timestep]
        then = kept[timesteps[step + 1]] if step + 1 < STEPS else torch.tensor(1.0)
        clean = (latents - (1 - now).sqrt() * epsilon) / now.sqrt()
        latents = then.sqrt() * clean + (1 - then).sqrt() * epsilon
    return latents


def predict(
    originals: Mapping[str, Any],
    latents: Tensor,
    timestep: Tensor,
    hints: Sequence[Mapping[str, Tensor]],
    prompt: Tensor,
) -> Tensor:
    """ε of one window: both ControlNets on its frames, then the UNet."""
    text = prompt.expand(len(latents), -1, -1)
    down: Any = 0
    mid: Any = 0
    for name, strength in STRENGTHS.items():
        more, more_mid = originals[f"controlnet_{name}"](
            latents,
            timestep,
            text,
            torch.stack([frame[name] for frame in hints]),
            conditioning_scale=strength,
            return_dict=False,
        )
        down = [one + other for one, other in zip(down or [0] * len(more), more, strict=True)]
        mid = mid + more_mid
    output = originals["unet"](
        latents.transpose(0, 1)[None],
        timestep,
        text,
        down_block_additional_residuals=tuple(down),
        mid_block_additional_residual=mid,
    ).sample
    return output[0].transpose(0, 1)


@pytest.mark.parametrize(("frames", "skewed"), [(1, False), (3, False), (4, False), (7, False), (7, True)])
def test_the_stream_is_diffutoon(
    model: Model, networks: Mapping[str, Network], originals: Mapping[str, Any], frames: int, skewed: bool
) -> None:
    generator = torch.Generator().manual_seed(frames)
    width = networks["unet"].inputs[2].shape[-1]
    text, negative = torch.randn(2, 1, 77, width, generator=generator).unbind()
    hints = [{name: torch.rand(3, 64, 64, generator=generator) for name in STRENGTHS} for _ in range(frames)]
    noise = [frame_noise((4, 8, 8), seed=5, frame=index) for index in range(frames)]
    with torch.inference_mode():
        expected = diffutoon(originals, hints, noise, text, negative)
    denoiser = Denoiser(
        networks,
        scheduler=make_scheduler(model.scheduler_config, kind="ddim", steps=STEPS),
        text=text,
        negative_text=negative,
        settings=DenoiseSettings(
            window=WINDOW,
            stride=STRIDE,
            steps=STEPS,
            guidance=GUIDANCE,
            seed=5,
            mode="skewed" if skewed else "wavefront",
            controlnet_scales=STRENGTHS,
        ),
        latent_channels=4,
    )
    committed = [frame for given in hints for frame in denoiser.push(given)] + denoiser.finish()
    actual = torch.stack([frame.latents for frame in committed])
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
