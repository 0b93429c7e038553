"""Eqs. 1-8 of Diffutoon over a whole clip that is there from the start, plainly: what the tests hold to."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from toonstream.engines.engine import Network, TensorSpec
from toonstream.stream.denoise import DenoiseSettings
from toonstream.stream.noise import frame_noise
from toonstream.stream.schedulers import Scheduler


def clip_windows(frames: int, length: int, stride: int) -> Iterator[list[int]]:
    """The frames of each window."""
    start = 0
    while True:
        stop = min(start + length, frames)
        yield list(range(start, stop))
        if stop == frames:
            return
        start += stride


def window_weight(place: int, length: int) -> float:
    """Eq. 5."""
    half = (length - 1) / 2
    return 1 + 0.01 - abs(place - half) / half if length > 1 else 1.0


def offline(
    networks: Mapping[str, Network],
    hints: Sequence[Mapping[str, Tensor]],
    *,
    scheduler: Scheduler,
    text: Tensor,
    negative_text: Tensor | None,
    settings: DenoiseSettings,
    latent_channels: int,
    textbook: bool = False,
) -> list[Tensor]:
    """The latents of all frames.

    With `textbook`, as the paper has it: each guidance side is swept on its own, with the ControlNets run
    anew for every window, and guided after the windows are combined (eq. 6). Without, calls have the shapes
    that the stream gives them: both sides in one batch, guided in the window, ControlNets on the frames that
    are new in it.
    """
    names = list(settings.controlnet_scales)
    embeddings = [
        {name: networks[f"hint_{name}"]({"hint": frame[name][None]})["embedding"][0] for name in names}
        for frame in hints
    ]
    size = embeddings[0][names[0]].shape[-2:]
    latents = [
        frame_noise((latent_channels, *size), seed=settings.seed, frame=index) * scheduler.initial_sigma
        for index in range(len(hints))
    ]

    def scaled(frame: int, step: int) -> Tensor:
        return scheduler.scale(latents[frame][None], step)[0]

    def control(frames: Sequence[int], step: int, text: Tensor) -> dict[str, Tensor]:
        """The ControlNets' sum, each (sides, frames, …)."""
        sides = len(text)
        total: dict[str, Tensor] = {}
        for name in names:
            outputs = networks[f"controlnet_{name}"](
                {
                    "sample": torch.stack([scaled(i, step) for i in frames] * sides),
                    "timestep": scheduler.timesteps[step].repeat(sides * len(frames)),
                    "text": text.repeat_interleave(len(frames), 0),
                    "embedding": torch.stack([embeddings[i][name] for i in frames] * sides),
                }
            )
            for key, output in outputs.items():
                output = output.reshape(sides, len(frames), *output.shape[1:])
                part = settings.controlnet_scales[name] * output
                total[key] = total[key] + part if key in total else part
        return total

    def unet(frames: Sequence[int], step: int, text: Tensor, residuals: Mapping[str, Tensor]) -> Tensor:
        """The prediction for a window, (sides, frames, C, h, w)."""
        sample = torch.stack([scaled(i, step) for i in frames])
        timestep = scheduler.timesteps[step].repeat(len(text))
        inputs = {
            "sample": torch.stack([sample] * len(text)),
            "timestep": timestep,
            "text": text,
            **residuals,
        }
        return networks["unet"](inputs)["output"]

    def swept(step: int, text: Tensor) -> list[Tensor]:
        """The windows' predictions combined (eq. 4), for every frame (sides, C, h, w)."""
        totals: list[Tensor | float] = [0.0] * len(hints)
        weights = [0.0] * len(hints)
        cached: list[dict[str, Tensor]] = []  # of each frame
        for frames in clip_windows(len(hints), settings.window, settings.stride):
            new = frames if textbook else frames[len(cached) - frames[0] :]
            if new:
                fresh = control(new, step, text)
                split = [{key: value[:, place] for key, value in fresh.items()} for place in range(len(new))]
                cached = cached[: new[0]] + split
            residuals = {key: torch.stack([cached[i][key] for i in frames], 1) for key in cached[frames[0]]}
            output = unet(frames, step, text, residuals)
            if len(text) == 2:
                output = output[:1] + settings.guidance * (output[1:] - output[:1])
            for place, i in enumerate(frames):
                totals[i] = totals[i] + window_weight(place, len(frames)) * output[:, place]
                weights[i] += window_weight(place, len(frames))
        return [total / weight for total, weight in zip(totals, weights, strict=True)]

    for step in range(settings.steps):
        if settings.guidance == 1:
            predictions = swept(step, text)
        elif textbook:
            pairs = zip(swept(step, negative_text), swept(step, text), strict=True)
            predictions = [
                negative + settings.guidance * (positive - negative) for negative, positive in pairs
            ]
        else:
            predictions = swept(step, torch.cat([negative_text, text]))
        for i, prediction in enumerate(predictions):
            noise = None
            if scheduler.needs_noise:
                noise = frame_noise(prediction.shape[1:], seed=settings.seed, frame=i, step=step)[None]
            latents[i] = scheduler.step(latents[i][None], prediction, step, noise)[0]
    return latents


class StandIn:
    """A small nonlinear function in a network's place, which counts its calls."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, function: object) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        return self._function(**tensors)


def stand_in_networks(names: Sequence[str] = ("outline", "colour")) -> dict[str, StandIn]:
    """Networks with the tensors of the real ones at an eighth of the hints' size; all inputs matter."""

    def hint_embedding(hint: Tensor) -> dict[str, Tensor]:
        pooled = torch.nn.functional.avg_pool2d(hint, 8)
        return {"embedding": torch.cat([pooled, pooled.square()], 1)}

    def controlnet(tilt: float) -> object:
        def residuals(sample: Tensor, timestep: Tensor, text: Tensor, embedding: Tensor) -> dict[str, Tensor]:
            noisy = torch.sin(sample + embedding[:, :1] * tilt + (timestep / 500)[:, None, None, None])
            said = text[:, :1, :1, None]
            return {
                "residual_0": noisy * (1 + said),
                "residual_mid": noisy[..., ::2, ::2] * embedding[:, 5:, :1, :1],
            }

        return residuals

    def unet(
        sample: Tensor, timestep: Tensor, text: Tensor, residual_0: Tensor, residual_mid: Tensor
    ) -> dict[str, Tensor]:
        batch, frames = sample.shape[:2]
        # Frames know their place in the window, so shifting a window is not the same.
        place = torch.arange(frames).reshape(1, -1, 1, 1, 1) / 7
        mid = residual_mid.repeat_interleave(2, -1).repeat_interleave(2, -2)
        seen = torch.tanh(sample + residual_0 + 0.5 * mid + place)
        seen = seen * (1.2 + torch.cos(timestep / 300)).reshape(-1, 1, 1, 1, 1)
        tokens = seen.reshape(batch, frames, -1)
        mixed = torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens
        return {"output": torch.sin(mixed.reshape(sample.shape) + seen + text[:, :1, :1, None, None])}

    networks = {"unet": StandIn(unet)}
    for number, name in enumerate(names):
        networks[f"hint_{name}"] = StandIn(hint_embedding)
        networks[f"controlnet_{name}"] = StandIn(controlnet(1.0 + number))
    return networks
