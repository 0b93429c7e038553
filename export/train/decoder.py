"""Stage 4: the decoder learns to show what the denoiser draws, and not only what the encoder wrote.

Each patch of a picture is one latent pixel. Where the denoiser is unsure of a smooth area, neighbours differ
a little, and a decoder that has only seen the encoder's latents shows the borders between them.
"""

import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from toonstream.export.configs import pixels_per_latent
from toonstream.export.train.common import Average, Run, image_loss, learning_rate, save_grid
from toonstream.export.train.data import Batch, Pictures, prefetch
from toonstream.export.train.diffusion import LAST, open_stack

__all__ = ["border_loss", "train_decoder"]

_RATE = 3e-4
_BORDERS_WEIGHT = 2.0


def border_loss(image: Tensor, target: Tensor, patch: int) -> Tensor:
    """How far the steps across the borders of patches are from the target's.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        target: the same shape.
        patch: side of a patch, in pixels.
    """
    difference = image - target
    across = difference.diff(dim=-1)[..., patch - 1 :: patch].abs().mean()
    return across + difference.diff(dim=-2)[..., patch - 1 :: patch, :].abs().mean()


def train_decoder(
    pictures: Pictures,
    autoencoder: AutoencoderTiny,
    drawn: Path,
    folder: Path,
    *,
    steps: int,
    size: int,
    seed: int,
) -> None:
    """Train the decoder alone, on what the denoiser that stage 2 left in `drawn` draws in one step."""
    torch.manual_seed(seed + 2)
    stack = open_stack(drawn, autoencoder)
    patch = pixels_per_latent(autoencoder.config)
    learning = list(autoencoder.decoder.parameters())
    optimiser = torch.optim.AdamW(learning, lr=_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average([autoencoder.decoder], decay=0.99)
    run = Run(folder, decoder=autoencoder.decoder, optimiser=optimiser, average=average)
    torch.manual_seed(run.step)

    def make(step: int) -> Batch:
        return pictures.batch(np.random.default_rng((seed, 4, step)), size=size, side=128)

    started = time.monotonic()
    for batch in prefetch(make, run.step, steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(run.step, steps, _RATE, warmup=20)
        target = batch.target[:, 0]
        side = target.shape[-1] // patch
        noise = torch.randn(len(target), 1, autoencoder.config.latent_channels, side, side)
        hints = {"outline": batch.outline, "colour": batch.colour}
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                x0 = stack.predict(noise, torch.full((len(target),), LAST), stack.text(batch.captions), hints)
            shown = stack.decode(x0[:, 0])
        pixels, borders = image_loss(shown, target), border_loss(shown, target, patch)
        optimiser.zero_grad(set_to_none=True)
        (pixels + _BORDERS_WEIGHT * borders).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        average.update()
        run.step += 1
        run.losses.append([float(pixels.detach()), float(borders.detach())])
        if run.step % 100 == 0 or run.step == steps:
            mean = np.mean(run.losses[-100:], axis=0)
            print(f"decoder {run.step}/{steps} {mean.round(4)} {time.monotonic() - started:.0f}s", flush=True)
        if run.step % 300 == 0 or run.step == steps:
            average.swap()
            autoencoder.save_pretrained(folder / "vae")
            with torch.inference_mode():
                save_grid([target, stack.decode(x0[:, 0])], folder / "samples.png")
            average.swap()
            run.save()
