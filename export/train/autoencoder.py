"""Stage 1: the tiny VAE, on drawings. Its latents come out with mean 0 and spread 1, channel by channel."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toonstream.export.train.common import Average, Run, image_loss, learning_rate, save_grid
from toonstream.export.train.data import Batch, Pictures, prefetch
from toonstream.export.train.networks import load_part, new_autoencoder

__all__ = ["train_autoencoder"]

_RATE = 5e-4
_SPREAD_WEIGHT = 0.4
_LATENT_NOISE = 0.05  # what the decoder must bear: the denoiser's error


def train_autoencoder(
    pictures: Pictures, folder: Path, *, steps: int, size: int, seed: int, start: Path | None = None
) -> None:
    """Train on single drawings up to `steps`, from where the run in `folder` stopped.

    Where there is no run yet, it starts from the model folder `start`, or from nothing.
    """
    torch.manual_seed(seed)
    network = new_autoencoder()
    if start is not None:
        load_part(network, start / "vae")
    network.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average([network], decay=0.998)
    run = Run(folder, network=network, optimiser=optimiser, average=average)

    def make(step: int) -> Batch:
        return pictures.batch(np.random.default_rng((seed, step)), size=size, side=128)

    started = time.monotonic()
    for batch in prefetch(make, run.step, steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(run.step, steps, _RATE)
        target = batch.target[:, 0].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = network.encoder(target).float()
            decoded = network.decoder(latents + _LATENT_NOISE * torch.randn_like(latents)).float()
        reconstruction = image_loss(decoded, target)
        spread = _spread_loss(latents)
        optimiser.zero_grad(set_to_none=True)
        (reconstruction + _SPREAD_WEIGHT * spread).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        average.update()
        run.step += 1
        run.losses.append([float(reconstruction.detach()), float(spread.detach())])
        if run.step % 100 == 0 or run.step == steps:
            mean = np.mean(run.losses[-100:], axis=0)
            print(f"vae {run.step}/{steps} {mean.round(4)} {time.monotonic() - started:.0f}s", flush=True)
        if run.step % 300 == 0 or run.step == steps:
            average.swap()
            network.save_pretrained(folder / "vae")
            with torch.inference_mode():
                save_grid([target, network(target).sample], folder / "samples.png")
            average.swap()
            run.save()


def _spread_loss(latents: Tensor) -> Tensor:
    """How far the channels are from mean 0 and standard deviation 1 over a batch (B, C, h, w)."""
    spread, mean = torch.std_mean(latents, dim=(0, 2, 3))
    return mean.square().mean() + (spread - 1.0).square().mean()
