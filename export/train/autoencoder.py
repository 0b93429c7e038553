"""Stage 1: the tiny VAE, on drawings. Its latents, scaled, have mean 0 and spread 1 in every channel."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn.utils import parametrize

from toonstream.export.networks.patches import from_patches, to_patches
from toonstream.export.train.common import Average, Run, image_loss, learning_rate, lower_precision, save_grid
from toonstream.export.train.data import Batch, Pictures, prefetch
from toonstream.export.train.networks import load_part, new_autoencoder, principal_components

__all__ = ["decode", "encode", "start_linear", "train_autoencoder"]

_RATE = 3e-4
_SPREAD_WEIGHT = 0.4
_LATENT_NOISE = 0.05  # what the decoder must bear, in shares of the spread: the denoiser's error
_FITTED = 20  # batches that the start is fitted to
_EVENING = 0.7  # how much of the difference between strong and weak components is taken from the optimiser


def encode(network: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """(N, 3, H, W) pictures in [-1, 1] → (N, C, h, w) latents of spread 1."""
    patches = to_patches(pictures, network.config.in_channels)
    encoded = network.encoder(patches.contiguous(memory_format=torch.channels_last))
    return encoded.float() * network.config.scaling_factor


def decode(network: AutoencoderTiny, latents: Tensor) -> Tensor:
    """(N, C, h, w) latents of spread 1 → (N, 3, H, W) pictures, nominally in [-1, 1]."""
    unscaled = latents / network.config.scaling_factor
    return from_patches(network.decoder(unscaled.contiguous(memory_format=torch.channels_last)).float())


def start_linear(network: AutoencoderTiny, pictures: Tensor) -> None:
    """Let a fresh network begin as the best linear one, nearly, and learn from there what bends.

    Its latents are the principal components of the patches of `pictures` (N, 3, H, W); pictures come back
    from them and their neighbours by least squares. The components are carried through the network's
    rectifiers twice, once with each sign: it is to be twice as wide as the latents. The residual blocks keep
    their small random start.
    """
    count, spread = network.config.latent_channels, 1.0 / network.config.scaling_factor
    patches = _patches(network, pictures)
    mean, scales, components = principal_components(patches)
    down = (components[:, :count] / scales[:count] * spread).T
    latents = torch.einsum("kc,nchw->nkhw", down, patches - mean[:, None, None])
    latents = 3.0 * torch.tanh(latents / 3.0)  # as the decoder begins
    noisy = latents + _LATENT_NOISE * spread * torch.randn_like(latents)
    given = F.unfold(noisy, 3, padding=1).transpose(1, 2).flatten(0, 1)
    given = torch.cat([given, torch.ones(len(given), 1)], dim=1)
    wanted = patches.permute(0, 2, 3, 1).flatten(0, 2)
    up = torch.linalg.lstsq(given.T @ given, given.T @ wanted).solution
    kernel, bias = up[:-1].T.unflatten(1, (count, 3, 3)), up[-1]
    signs = ((slice(0, count), 1.0), (slice(count, 2 * count), -1.0))
    first_in, last_in = network.encoder.layers[0], network.encoder.layers[-1]
    first_out, last_out = network.decoder.layers[0], network.decoder.layers[-1]
    unit = torch.eye(count)
    with torch.no_grad():
        last_in.weight.mul_(0.02)
        last_out.weight.mul_(0.02)
        for channels, sign in signs:
            for layer in (first_in, first_out):
                layer.weight[channels] = 0.0
            first_in.weight[channels, :, 1, 1] = sign * down
            first_in.bias[channels] = -sign * (down @ mean)
            last_in.weight[:, channels] = 0.0
            last_in.weight[:, channels, 1, 1] = sign * unit
            first_out.weight[channels, :, 1, 1] = sign * unit
            last_out.weight[:, channels] = sign * kernel
        last_out.bias.copy_(bias)


def train_autoencoder(
    pictures: Pictures, folder: Path, *, steps: int, size: int, seed: int, start: Path | None = None
) -> None:
    """Train on single drawings up to `steps`, from where the run in `folder` stopped.

    Where there is no run yet, it starts from the model folder `start`, or from the linear one.
    """
    torch.manual_seed(seed)
    network = new_autoencoder()
    randoms = (np.random.default_rng((seed, 1, number)) for number in range(_FITTED))
    drawings = torch.cat([pictures.batch(random, size=size, side=128).target[:, 0] for random in randoms])
    if start is not None:
        load_part(network, start / "vae")
    else:
        start_linear(network, drawings)
    network.to(memory_format=torch.channels_last)
    _even(network, drawings)
    optimiser = torch.optim.AdamW(network.parameters(), lr=_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = Average([network], decay=0.998)
    run = Run(folder, modules=network, optimiser=optimiser, average=average)

    def make(step: int) -> Batch:
        return pictures.batch(np.random.default_rng((seed, step)), size=size, side=128)

    for batch in prefetch(make, run.step, steps):
        target = batch.target[:, 0]
        with lower_precision():
            latents = encode(network, target)
            decoded = decode(network, latents + _LATENT_NOISE * torch.randn_like(latents))
        reconstruction = image_loss(decoded, target)
        spread = _spread_loss(latents)
        run.learn(
            reconstruction + _SPREAD_WEIGHT * spread,
            (reconstruction, spread),
            rate=learning_rate(run.step, steps, _RATE),
        )
        run.tell(steps, partial(_save, network, target, folder))


@torch.inference_mode()
def _save(network: AutoencoderTiny, drawings: Tensor, folder: Path) -> None:
    """The network as others read it, and `drawings` (N, 3, H, W) over what comes back of them."""
    _plain(network).save_pretrained(folder / "vae")
    save_grid([drawings, decode(network, encode(network, drawings))], folder / "samples.png")


def _patches(network: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Patches (N, C, h, w) of pictures in [-1, 1], in [0, 1] as the network sees them inside."""
    return to_patches((pictures + 1.0) / 2.0, network.config.in_channels)


class _Along(nn.Module):
    """A convolution's weights, learned along other axes than the patch's: W = A W' on one of its sides."""

    def __init__(self, axes: Tensor, *, out: bool) -> None:
        super().__init__()
        self._back = torch.linalg.inv(axes)
        self._axes = axes
        self._equation = "ab,bcij->acij" if out else "cb,abij->acij"

    def forward(self, weight: Tensor) -> Tensor:
        return torch.einsum(self._equation, self._axes, weight)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return torch.einsum(self._equation, self._back, weight)


def _even(network: AutoencoderTiny, pictures: Tensor) -> None:
    """Learn the first and the last weights along the principal components of patches, weak ones faster.

    Pixels of a patch are nearly the same pixel: without this the optimiser sees little but their mean.
    """
    _, scales, components = principal_components(_patches(network, pictures))
    strength = scales**_EVENING
    parametrize.register_parametrization(
        network.encoder.layers[0], "weight", _Along(components / strength, out=False)
    )
    parametrize.register_parametrization(
        network.decoder.layers[-1], "weight", _Along(components * (strength / strength.mean()), out=True)
    )


def _plain(network: AutoencoderTiny) -> AutoencoderTiny:
    """A copy whose weights are along the patch's own axes again."""
    copied = new_autoencoder()
    with torch.no_grad():
        for name, module in copied.named_modules():
            if isinstance(module, nn.Conv2d):
                learned = network.get_submodule(name)
                module.weight.copy_(learned.weight)
                if module.bias is not None:
                    module.bias.copy_(learned.bias)
    return copied


def _spread_loss(latents: Tensor) -> Tensor:
    """How far the channels are from mean 0 and standard deviation 1 over a batch (B, C, h, w)."""
    spread, mean = torch.std_mean(latents, dim=(0, 2, 3))
    return mean.square().mean() + (spread - 1.0).square().mean()
