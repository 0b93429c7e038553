"""One window of the stream against diffusers' own pipeline, step by step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AnimateDiffControlNetPipeline, DDIMScheduler
from PIL import Image
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.export.checkpoints import Model
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.noise import frame_noise
from toonstream.stream.schedulers import make_scheduler

FRAMES, STEPS, GUIDANCE = 5, 4, 7.5
SCALES = {"outline": 0.5, "colour": 0.8}
WIDTH, HEIGHT = 64, 128  # pixels


def pictures(seed: int) -> list[Image.Image]:
    pixels = torch.randint(256, (FRAMES, HEIGHT, WIDTH, 3), generator=torch.Generator().manual_seed(seed))
    return [Image.fromarray(frame.byte().numpy()) for frame in pixels]


def hint(picture: Image.Image) -> Tensor:
    raw = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return raw.reshape(HEIGHT, WIDTH, 3).permute(2, 0, 1) / 255


class Recorder:
    """A network that remembers its inputs."""

    def __init__(self, network: Network) -> None:
        self.network, self.inputs, self.outputs = network, network.inputs, network.outputs
        self.samples: list[Tensor] = []

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.samples.append(tensors["sample"][0])  # (F, C, h, w)
        return self.network(tensors)


def theirs(
    originals: Mapping[str, Any], hints: Mapping[str, Sequence[Image.Image]], scheduler: Any, **given: Tensor
) -> list[Tensor]:
    """The latents after each step, (F, C, h, w)."""
    pipeline = AnimateDiffControlNetPipeline(
        vae=originals["vae"],
        text_encoder=None,
        tokenizer=None,
        unet=originals["unet"],
        motion_adapter=None,
        controlnet=[originals[f"controlnet_{name}"] for name in SCALES],
        scheduler=scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    after = []

    def note(
        _pipeline: object, _step: int, _timestep: object, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        after.append(tensors["latents"][0].transpose(0, 1).clone())
        return {}

    pipeline(
        width=WIDTH,
        height=HEIGHT,
        num_frames=FRAMES,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        conditioning_frames=[hints[name] for name in SCALES],
        controlnet_conditioning_scale=list(SCALES.values()),
        callback_on_step_end=note,
        output_type="latent",
        **given,
    )
    return after


def test_a_window_is_what_the_pipeline_computes(
    model: Model, networks: Mapping[str, Network], originals: Mapping[str, Any]
) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    generator = torch.Generator().manual_seed(1)
    width = networks["unet"].inputs[2].shape[-1]
    text, negative = torch.randn(2, 1, 77, width, generator=generator).unbind()
    hints = {name: pictures(seed) for seed, name in enumerate(SCALES)}
    noise = [frame_noise((4, HEIGHT // 8, WIDTH // 8), seed=3, frame=index) for index in range(FRAMES)]
    expected = theirs(
        originals,
        hints,
        scheduler,
        prompt_embeds=text,
        negative_prompt_embeds=negative,
        latents=torch.stack(noise, 1)[None].clone(),
    )

    unet = Recorder(networks["unet"])
    denoiser = Denoiser(
        {**networks, "unet": unet},
        scheduler=make_scheduler(dict(scheduler.config), kind="ddim", steps=STEPS),
        text=text,
        negative_text=negative,
        settings=DenoiseSettings(
            window=FRAMES, stride=FRAMES, steps=STEPS, guidance=GUIDANCE, seed=3, controlnet_scales=SCALES
        ),
        latent_channels=4,
    )
    committed = [
        frame
        for index in range(FRAMES)
        for frame in denoiser.push({name: hint(hints[name][index]) for name in SCALES})
    ]
    committed += denoiser.finish()
    actual = [*unet.samples[1:], torch.stack([frame.latents for frame in committed])]
    assert len(actual) == len(expected) == STEPS
    for step, (one, other) in enumerate(zip(actual, expected, strict=True)):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * scale, msg=lambda m, s=step: f"{s}: {m}")
