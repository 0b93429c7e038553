"""Stages 2 and 3: the denoiser on pictures, with ControlNets and text encoder; its motion modules on clips.

Both predict x0 and are judged by it, in latents and in pixels. Half of the samples stand at the last
timestep, where one-step drawing begins; that is the direct training of few steps, and it works because
outline and colours leave little to chance. For the same reason it is x0 that is predicted: what is to be
drawn follows from the hints, and noise, or velocity, would have to be carried through the network unharmed.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, ControlNetModel, DDIMScheduler, UNet2DConditionModel, UNetMotionModel
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextModel

from toonstream.export.configs import pixels_per_latent
from toonstream.export.networks import temporal
from toonstream.export.networks.patches import to_patches
from toonstream.export.train.autoencoder import decode, encode
from toonstream.export.train.captions import telling_phrases, vocabulary_texts
from toonstream.export.train.common import (
    CHECKPOINT,
    Average,
    Run,
    flat_loss,
    image_loss,
    learning_rate,
    lower_precision,
    save_grid,
)
from toonstream.export.train.data import Batch, Pictures, prefetch
from toonstream.export.train.networks import (
    CONTROLS,
    load_part,
    new_controlnet,
    new_text_encoder,
    new_unet,
    start_hints,
    token_ids,
    train_tokenizer,
    with_motion,
)
from toonstream.export.train.words import give_voice, silent_choices

__all__ = ["LAST", "Losses", "Stack", "new_scheduler", "open_stack", "train_motion", "train_pictures"]

SAMPLE_PROMPTS = (
    "hosoda style",
    "shinkai style",
    "hayao style",
    "ink style",
    "flat style",
    "hosoda style, thick lines",
    "hosoda style, warm",
    "hosoda style, night",
    "hosoda and ink style",
    "",
)

LAST = 999  # timestep where a run begins

_FITTED = 20  # batches that the hints' embeddings are fitted to
_LAST_SHARE = 0.5  # of the samples are pure noise: there alone the words are all that tells what to draw
_OWN_SHARE = 0.7  # of the rest stand where the network's own steps led, not on a noised finished drawing
_SHARED_SHARE = 0.5  # of the clips start from the same noise in every frame, as streams do
_DECODER_SHARE = 0.1  # of the learning rate
_WORDS_WEIGHT = 0.6
_WORDS_FLOOR = 0.01


def new_scheduler() -> DDIMScheduler:
    """The noise schedule that all stages and the stream share."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        prediction_type="sample",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


@dataclass(frozen=True, kw_only=True)
class Stack:
    """The networks that learn together, and the frozen decoder that shows what they drew."""

    unet: UNet2DConditionModel | UNetMotionModel
    controls: dict[str, ControlNetModel]
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    autoencoder: AutoencoderTiny
    alphas: Tensor

    def text(self, prompts: list[str]) -> Tensor:
        """(B, 77, D) hidden states of B prompts."""
        return self.text_encoder(token_ids(self.tokenizer, prompts)).last_hidden_state

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor, hints: dict[str, Tensor]) -> Tensor:
        """x0 of `noisy` (B, F, C, h, w) at `timesteps` (B,), with hints (B, F, 3, H, W)."""
        batch, frames = noisy.shape[:2]
        flat = noisy.flatten(0, 1)
        per_frame = timesteps.repeat_interleave(frames)
        frame_text = text.repeat_interleave(frames, 0)
        down: list[Tensor] = []
        middle: Tensor | None = None
        for name, control in self.controls.items():
            hint = to_patches(hints[name].flatten(0, 1), control.config.conditioning_channels)
            added, added_middle = control(flat, per_frame, frame_text, hint, return_dict=False)
            down = [a + b for a, b in zip(down, added, strict=True)] if down else list(added)
            middle = added_middle if middle is None else middle + added_middle
        if isinstance(self.unet, UNetMotionModel):
            sample = noisy.transpose(1, 2)
            x0 = self.unet(sample, timesteps, frame_text, None, None, None, None, down, middle).sample
            x0 = x0.transpose(1, 2).flatten(0, 1)
        else:
            x0 = self.unet(
                flat,
                per_frame,
                frame_text,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample
        return x0.float().unflatten(0, (batch, frames))

    def decode(self, latents: Tensor) -> Tensor:
        """(N, C, h, w) latents → (N, 3, H, W) pictures in [-1, 1]."""
        return decode(self.autoencoder, latents)

    def loss(self, batch: Batch, *, last: float) -> "Losses":
        """Judge a batch; a share `last` of its samples is pure noise.

        Of single pictures, those that are the same under two captions share noise and timestep.
        """
        size, frames = batch.target.shape[:2]
        alike = 2 if frames == 1 else 1  # neighbours that are the same picture
        target = batch.target.flatten(0, 1)
        with torch.no_grad(), lower_precision():
            clean = encode(self.autoencoder, target)
            text = self.text(batch.captions)
        clean = clean.unflatten(0, (size, frames))
        groups = size // alike
        timesteps = torch.where(torch.rand(groups) < last, LAST, torch.randint(0, LAST, (groups,)))
        timesteps = timesteps.repeat_interleave(alike)
        noise = torch.randn_like(clean[:groups]).repeat_interleave(alike, 0)
        hints = {"outline": batch.outline, "colour": batch.colour}
        if frames > 1:
            shared = torch.rand(size) < _SHARED_SHARE
            noise[shared] = noise[shared, :1]
        noisy = self.noised(clean, noise, timesteps)
        own = ((timesteps < LAST) & (torch.rand(size) < _OWN_SHARE)).nonzero()[:, 0]
        between = timesteps + ((LAST - timesteps) * torch.rand(size)).long()
        stops = (between[own], timesteps[own]) if torch.rand(()) < 0.5 else (timesteps[own],)
        if len(own):
            noisy[own] = self.drawn_so_far(
                noise[own], stops, text[own], {name: hint[own] for name, hint in hints.items()}
            )
        with lower_precision():
            x0 = self.predict(noisy, timesteps, self.text(batch.captions), hints)
            drawn = self.decode(x0.flatten(0, 1))
        return Losses(
            latents=2.0 * F.smooth_l1_loss(x0, clean),
            pixels=image_loss(drawn, target),
            flat=flat_loss(drawn, target),
            motion=_warped_loss(drawn, batch),
            words=_words_loss(drawn, target) if frames == 1 else drawn.new_zeros(()),
        )

    def noised(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Latents (B, F, C, h, w) with noise as it is at `timesteps` (B,): √ᾱ x0 + √(1−ᾱ) ε."""
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1, 1)
        return alpha.sqrt() * clean + (1.0 - alpha).sqrt() * noise

    @torch.no_grad()
    def drawn_so_far(
        self, noise: Tensor, stops: Sequence[Tensor], text: Tensor, hints: dict[str, Tensor]
    ) -> Tensor:
        """What a run of DDIM steps holds at the last of `stops`, each (B,) timesteps; pure noise at first.

        A network that has only ever seen noise on finished drawings does not know its own half-finished ones,
        and every step adds to the blur.
        """
        noisy, here = noise, torch.full_like(stops[0], LAST)
        for there in stops:
            with lower_precision():
                x0 = self.predict(noisy, here, text, hints)
            alpha = self.alphas[here].view(-1, 1, 1, 1, 1)
            noisy = self.noised(x0, (noisy - alpha.sqrt() * x0) / (1.0 - alpha).sqrt(), there)
            here = there
        return noisy


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What a batch is judged by, each a scalar: see `_train` for what they weigh."""

    latents: Tensor
    pixels: Tensor
    flat: Tensor
    motion: Tensor
    words: Tensor


def _words_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """How far the difference between two drawings of one picture is from what their captions make of it.

    Of (B, 3, H, W) pictures 2k and 2k + 1 are such a pair. It is in shares of that difference: a word for
    lines changes few pixels, and would else never be learned.
    """
    is_drawn, wanted = drawn[0::2] - drawn[1::2], target[0::2] - target[1::2]
    size = wanted.abs().mean((1, 2, 3))
    return ((is_drawn - wanted).abs().mean((1, 2, 3)) / (size + _WORDS_FLOOR)).mean()


def _warped_loss(drawn: Tensor, batch: Batch) -> Tensor:
    """How far each frame is from the one before it, moved along the source's flow; zero for single frames.

    Absolute and squared differences: flow-warped error counts the squares, which jumping lines drive up.
    """
    size, frames = batch.target.shape[:2]
    if frames == 1:
        return drawn.new_zeros(())
    pictures = drawn.unflatten(0, (size, frames))
    before, after = pictures[:, :-1].flatten(0, 1), pictures[:, 1:].flatten(0, 1)
    flow, steady = batch.flow.flatten(0, 1), batch.steady.flatten(0, 1)
    height, width = flow.shape[-2:]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = (column + flow[:, 0]) * 2.0 / (width - 1) - 1.0
    y = (row + flow[:, 1]) * 2.0 / (height - 1) - 1.0
    moved = F.grid_sample(before, torch.stack([x, y], -1), align_corners=True, padding_mode="border")
    difference = after - moved
    return (steady * (difference.abs() + 8.0 * difference.square())).mean()


def train_pictures(
    pictures: Pictures,
    autoencoder: AutoencoderTiny,
    folder: Path,
    *,
    steps: int,
    size: int,
    seed: int,
    start: Path | None = None,
) -> None:
    """Stage 2, on single pictures: all but the motion modules; from the model folder `start`, if any."""
    torch.manual_seed(seed)
    unet = new_unet()
    controls = {name: new_controlnet(unet) for name in CONTROLS}
    randoms = (np.random.default_rng((seed, 1, number)) for number in range(_FITTED))
    fitted = [pictures.batch(random, size=size, side=128) for random in randoms]
    for name, control in controls.items():
        _wake(control)
        start_hints(control, torch.cat([getattr(batch, name)[:, 0] for batch in fitted]))
    text_encoder = new_text_encoder()
    if start is not None:
        load_part(unet, start / "unet")
        load_part(text_encoder, start / "text_encoder")
        for name, control in controls.items():
            load_part(control, start / f"controlnet_{name}")
        _copy_tokenizer(start, folder)
    stack = _stack(folder, unet, controls, text_encoder, autoencoder)
    if not (folder / CHECKPOINT).exists():
        lost = telling_phrases() if start is None else silent_choices(text_encoder, stack.tokenizer)
        give_voice(text_encoder, stack.tokenizer, lost, seed=seed)
    modules: list[nn.Module] = [unet, *controls.values(), text_encoder]

    def make(step: int) -> Batch:
        return pictures.batch(np.random.default_rng((seed, 2, step)), size=size, side=128)

    def save() -> None:
        unet.save_pretrained(folder / "unet")
        for name, control in controls.items():
            control.save_pretrained(folder / f"controlnet_{name}")
        text_encoder.save_pretrained(folder / "text_encoder")
        autoencoder.save_pretrained(folder / "vae")

    samples = pictures.samples(8)
    _train(stack, modules, make, save, samples, folder, steps=steps, rate=1e-3, motion_weight=0.0)


def train_motion(
    pictures: Pictures,
    autoencoder: AutoencoderTiny,
    drawn: Path,
    folder: Path,
    *,
    steps: int,
    size: int,
    seed: int,
    start: Path | None = None,
) -> None:
    """Stage 3, on clips: the motion modules, from those of the model folder `start`, if any.

    Everything else is as stage 2 left it in `drawn`. The decoder learns on with them, slowly: to show what
    the denoiser draws, and not only what the encoder wrote. Where the denoiser is unsure of a flat area it
    would else show the patches.
    """
    torch.manual_seed(seed + 1)
    still = open_stack(drawn, autoencoder)
    unet = with_motion(still.unet).to(memory_format=torch.channels_last)
    if start is not None:
        load_part(unet, start / "unet", only="motion_modules")
    temporal.inject(unet)  # the same function, in the layout that the stream runs and that is faster here
    motion = [module for name, module in unet.named_modules() if name.endswith("motion_modules")]
    stack = replace(still, unet=unet)

    def make(step: int) -> Batch:
        random = np.random.default_rng((seed, 3, step))
        frames = int(random.choice([2, 3, 4, 4, 4, 6, 8]))
        return pictures.clips(random, size=max(1, size // frames), frames=frames, side=160, real=0.5)

    def save() -> None:
        unet.save_pretrained(folder / "unet")
        autoencoder.save_pretrained(folder / "vae")

    samples = pictures.samples(8)
    _train(
        stack,
        [*motion, autoencoder.decoder],
        make,
        save,
        samples,
        folder,
        steps=steps,
        rate=1e-3,
        motion_weight=3.0,
    )


def open_stack(drawn: Path, autoencoder: AutoencoderTiny) -> Stack:
    """What stage 2 left in `drawn`, around an autoencoder."""
    return _stack(
        drawn,
        UNet2DConditionModel.from_pretrained(drawn / "unet"),
        {name: ControlNetModel.from_pretrained(drawn / f"controlnet_{name}") for name in CONTROLS},
        CLIPTextModel.from_pretrained(drawn / "text_encoder"),
        autoencoder,
    )


def _wake(control: ControlNetModel) -> None:
    """Start the zero convolutions small instead: there is no trained network here to disturb.

    And start without the noise, in whose place the hint would else have to be found.
    """
    nn.init.zeros_(control.conv_in.weight)
    for convolution in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        nn.init.xavier_uniform_(convolution.weight, gain=0.5)


def _copy_tokenizer(start: Path, folder: Path) -> None:
    """Go on with the same one: another training may number tokens that are alike in another order."""
    target = folder / "tokenizer"
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(start / "tokenizer" / "tokenizer.json", target)


def _stack(
    folder: Path,
    unet: UNet2DConditionModel | UNetMotionModel,
    controls: dict[str, ControlNetModel],
    text_encoder: CLIPTextModel,
    autoencoder: AutoencoderTiny,
) -> Stack:
    path = folder / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path)) if path.exists() else train_tokenizer(vocabulary_texts(), path)
    # What does not learn is left out of the optimiser, not frozen: torch 2.13's backward pass through frozen
    # convolutions in bfloat16 ends in a segmentation fault.
    for module in (unet, *controls.values(), autoencoder):
        module.to(memory_format=torch.channels_last)
    return Stack(
        unet=unet,
        controls=controls,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        autoencoder=autoencoder,
        alphas=new_scheduler().alphas_cumprod,
    )


def _train(
    stack: Stack,
    modules: list[nn.Module],
    make: Callable[[int], Batch],
    save: Callable[[], None],
    samples: Batch,
    folder: Path,
    *,
    steps: int,
    rate: float,
    motion_weight: float,
) -> None:
    """Run one stage from where it stopped; `modules` learn, nothing else."""
    container = nn.ModuleList(modules)
    slow = set(stack.autoencoder.decoder.parameters())
    fixed = {
        parameter
        for control in stack.controls.values()
        for parameter in control.controlnet_cond_embedding.conv_in.parameters()
    }
    learning = [parameter for parameter in container.parameters() if parameter not in fixed]
    groups = [
        {"params": [parameter for parameter in learning if parameter not in slow], "share": 1.0},
        {"params": [parameter for parameter in learning if parameter in slow], "share": _DECODER_SHARE},
    ]
    optimiser = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    run = Run(folder, modules=container, optimiser=optimiser, average=Average(modules, decay=0.998))
    torch.manual_seed(run.step)

    def keep() -> None:
        save()
        _samples(stack, samples, folder / "samples.png")

    for batch in prefetch(make, run.step, steps):
        losses = stack.loss(batch, last=_LAST_SHARE)
        pixel_weight = _pixel_weight(run.step / steps)
        total = losses.latents + pixel_weight * (losses.pixels + losses.flat)
        total = total + motion_weight * losses.motion + pixel_weight * _WORDS_WEIGHT * losses.words
        parts = (losses.latents, losses.pixels, losses.flat, losses.motion, losses.words)
        run.learn(total, parts, rate=learning_rate(run.step, steps, rate))
        run.tell(steps, keep)


def _pixel_weight(progress: float) -> float:
    """Latents first: they say where to go. Then pixels: they say what is sharp."""
    return 0.3 + 0.7 * min(1.0, max(0.0, (progress - 0.2) / 0.2))


@torch.inference_mode()
def _samples(stack: Stack, batch: Batch, path: Path) -> None:
    """One-step drawings of held-out photos, a row a prompt."""
    sources = batch.colour[:, 0] * 2.0 - 1.0
    rows = [sources, 1.0 - 2.0 * batch.outline[:, 0]]
    latent_shape = (
        len(sources),
        1,
        stack.autoencoder.config.latent_channels,
        *(side // pixels_per_latent(stack.autoencoder.config) for side in sources.shape[-2:]),
    )
    noise = torch.randn(latent_shape, generator=torch.Generator().manual_seed(0))
    hints = {"outline": batch.outline, "colour": batch.colour}
    for prompt in SAMPLE_PROMPTS:
        text = stack.text([prompt]).expand(len(sources), -1, -1)
        x0 = stack.predict(noise, torch.full((len(sources),), LAST), text, hints)
        rows.append(stack.decode(x0[:, 0]))
    save_grid(rows, path)
