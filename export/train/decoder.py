"""Stage 4: the decoder learns to show what the denoiser draws, and not only what the encoder wrote.

Each patch of a picture is one latent pixel. Where the denoiser is unsure of a smooth area, neighbours differ
a little, and a decoder that has only seen the encoder's latents shows the borders between them.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor

from toonstream.export.configs import pixels_per_latent
from toonstream.export.train.common import (
    Average,
    Run,
    flat_loss,
    image_loss,
    learning_rate,
    lower_precision,
    save_grid,
)
from toonstream.export.train.data import Batch, Pictures, prefetch
from toonstream.export.train.diffusion import LAST, Stack, open_stack

__all__ = ["train_decoder"]

_RATE = 4e-4
_FLAT_WEIGHT = 0.3  # flat areas are the denoiser's: with more, edges get softer, and these no better


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
    decoder = autoencoder.decoder
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    run = Run(folder, modules=decoder, optimiser=optimiser, average=Average([decoder], decay=0.99))
    torch.manual_seed(run.step)

    def make(step: int) -> Batch:
        return pictures.batch(np.random.default_rng((seed, 4, step)), size=size, side=128)

    for batch in prefetch(make, run.step, steps):
        target = batch.target[:, 0]
        side = target.shape[-1] // patch
        noise = torch.randn(len(target), 1, autoencoder.config.latent_channels, side, side)
        hints = {"outline": batch.outline, "colour": batch.colour}
        with lower_precision():
            with torch.no_grad():
                x0 = stack.predict(noise, torch.full((len(target),), LAST), stack.text(batch.captions), hints)
            shown = stack.decode(x0[:, 0])
        pixels, flat = image_loss(shown, target), flat_loss(shown, target)
        run.learn(
            pixels + _FLAT_WEIGHT * flat,
            (pixels, flat),
            rate=learning_rate(run.step, steps, _RATE, warmup=20),
        )
        run.tell(steps, partial(_save, stack, target, x0[:, 0], folder))


@torch.inference_mode()
def _save(stack: Stack, target: Tensor, latents: Tensor, folder: Path) -> None:
    """The autoencoder, and what `latents` were to be, (N, 3, H, W), over what is shown of them."""
    stack.autoencoder.save_pretrained(folder / "vae")
    save_grid([target, stack.decode(latents)], folder / "samples.png")
