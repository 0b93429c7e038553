"""Denoising as a stream: frames go in one by one, clean latents come out in order.

Diffutoon's eqs. 1-8 over the rolling window. What a frame needs is kept with the frame while it is in flight,
at the one level it stands at, and goes when it climbs: its latents, its ControlNet residuals (the same for
every window that covers it) and the weighted sum of the windows' predictions so far.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.engines.parking import HostMemory, Parked
from toonstream.errors import SettingError
from toonstream.stream.noise import frame_noise
from toonstream.stream.rolling import Rolling, Task
from toonstream.stream.schedulers import Scheduler
from toonstream.stream.window import Windows, frame_weights

__all__ = ["Committed", "DenoiseSettings", "Denoiser", "Evaluations"]


@dataclass(frozen=True, kw_only=True)
class DenoiseSettings:
    """How to denoise.

    Attributes:
        window: frames that a run of the UNet sees together (d). stride: frames from one window to the next
        (s), 1 to `window`. steps: denoising steps (T), at least 1. guidance: scale of classifier-free
        guidance (g); 1.0 runs the prompt's side alone. seed: of all noise, any whole number. skewed: run the
        windows of an arrival as one batch of mixed timesteps, at a stride more of latency a step.
        controlnet_scales: how much each ControlNet weighs, by name, as in {"outline": 1.0}; at least one.
    """

    window: int
    stride: int
    steps: int
    guidance: float = 1.0
    seed: int = 0
    skewed: bool = False
    controlnet_scales: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """How often the networks have run.

    Attributes:
        unet_calls: runs of the UNet.
        unet_frames: frames that those runs had, guidance sides counted each.
        controlnet_calls: runs of the ControlNets, all together.
        controlnet_frames: frames that those runs had, guidance sides counted each.
        hints: hint embeddings made, one per frame and ControlNet.
    """

    unet_calls: int = 0
    unet_frames: int = 0
    controlnet_calls: int = 0
    controlnet_frames: int = 0
    hints: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Committed:
    """A frame's final latents.

    Attributes:
        index: position in the stream, from 0, without gaps.
        latents: (C, h, w) float32.
    """

    index: int
    latents: Tensor


@dataclass(kw_only=True, slots=True, eq=False)
class _InFlight:
    """What is kept of one frame, all of it at the level where the frame stands.

    Attributes:
        key: number that its noise belongs to. seed: of that noise.
        text: what it is to look like, (sides, 77, D); frames that are to look alike share one tensor.
        embeddings: of the hints, by ControlNet, each (C0, h, w); the same at every level. They wait in host
            memory until a window needs them, and so do the latents.
        latents: (C, h, w).
        residuals: the ControlNets' sum by output name, each (sides, Ci, hi, wi); empty until a window runs.
        total: Σ w·ε over the windows that have run, (C, h, w).
        weight: Σ w over the same windows.
    """

    key: int
    seed: int
    text: Tensor
    embeddings: Mapping[str, Parked]
    latents: Parked
    residuals: Mapping[str, Tensor] = field(default_factory=dict)
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    weight: float = 0.0

    def bring(self) -> None:
        """Begin to bring back what the next window needs."""
        self.latents.bring()
        if not self.residuals:
            for embedding in self.embeddings.values():
                embedding.bring()


class Denoiser:
    """Denoises one stream.

    Args:
        networks: `unet`, and `hint_NAME` and `controlnet_NAME` for each ControlNet in the settings.
        scheduler: of `settings.steps` steps.
        text: the prompt, (1, 77, D) float32; its device is where all tensors are kept.
        negative_text: the negative prompt, same shape; used with guidance only.
        settings: how to denoise.
        latent_channels: C of the latents.
        at_boundary: called between two windows, where networks may be replaced.

    Raises:
        SettingError: the settings do not fit one another or the networks.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        *,
        scheduler: Scheduler,
        text: Tensor,
        negative_text: Tensor | None,
        settings: DenoiseSettings,
        latent_channels: int,
        at_boundary: Callable[[], None] = lambda: None,
    ) -> None:
        self._windows = Windows(length=settings.window, stride=settings.stride)
        self._rolling = Rolling(self._windows, steps=settings.steps, skewed=settings.skewed)
        self._first = 0  # frame of the scene that the rolling window is in
        if scheduler.steps != settings.steps:
            raise SettingError(
                f"The scheduler makes {scheduler.steps} steps and the settings ask for {settings.steps}: "
                "make it for the settings."
            )
        if not settings.controlnet_scales:
            raise SettingError("No ControlNet is named: give at least one in controlnet_scales.")
        for name in settings.controlnet_scales:
            if f"controlnet_{name}" not in networks or f"hint_{name}" not in networks:
                raise SettingError(
                    f"The model has no ControlNet '{name}': leave it out of controlnet_scales."
                )
        sides = [text]
        if settings.guidance != 1.0:
            if negative_text is None:
                raise SettingError(
                    "Guidance needs a negative prompt: give one (it may be empty), or guidance 1."
                )
            sides = [negative_text, text]
        self._networks = networks
        self._scheduler = scheduler
        self._settings = settings
        self._text = torch.cat(sides)  # (sides, 77, D)
        self._latent_channels = latent_channels
        self._at_boundary = at_boundary
        self._host = HostMemory(text.device)
        self._frames: dict[int, _InFlight] = {}
        self._counts: Counter[str] = Counter()

    @property
    def evaluations(self) -> Evaluations:
        """How often the networks have run so far."""
        return Evaluations(**self._counts)

    @property
    def lookahead(self) -> int:
        """Frames that are in and not committed."""
        return self._rolling.arrived - self._rolling.committed

    def push(
        self,
        hints: Mapping[str, Tensor],
        *,
        text: Tensor | None = None,
        seed: int | None = None,
        key: int | None = None,
    ) -> list[Committed]:
        """Take in the next frame and run what became runnable.

        Words may change from frame to frame: a window is run with the mean of its frames' texts, the
        ControlNets with each frame's own.

        Args:
            hints: by ControlNet, each (3, H, W) float32 in [0, 1].
            text: the frame's own, (sides, 77, D): the negative prompt first, with guidance only; None for the
                stream's. Give frames that are to look alike the same tensor: then nothing is averaged.
            seed: of the frame's noise; None for the settings'.
            key: number that the frame's noise belongs to; None for its place in the stream.

        Returns:
            The frames that are final now, in order; often none.

        Raises:
            RuntimeError: the stream has ended.
        """
        with torch.inference_mode():
            index = self._rolling.arrived
            self._rolling.arrive()
            embeddings = {
                name: self._networks[f"hint_{name}"]({"hint": hints[name].unsqueeze(0)})["embedding"][0]
                for name in self._settings.controlnet_scales
            }
            self._counts["hints"] += len(embeddings)
            height, width = next(iter(embeddings.values())).shape[-2:]
            shape = (self._latent_channels, height, width)
            key = self._first + index if key is None else key
            seed = self._settings.seed if seed is None else seed
            noise = frame_noise(shape, seed=seed, frame=key).to(self._text.device)
            self._frames[index] = _InFlight(
                key=key,
                seed=seed,
                text=self._text if text is None else text,
                embeddings={name: self._host.park(embedding) for name, embedding in embeddings.items()},
                latents=self._host.park(noise * self._scheduler.initial_sigma),
            )
            return self._run()

    def finish(self) -> list[Committed]:
        """End the stream.

        Returns:
            All frames that were still in flight, in order.
        """
        with torch.inference_mode():
            return self._climb([(index, 0) for index in self._rolling.end()]) + self._run()

    def cut(self) -> list[Committed]:
        """End the scene: no window reaches from the frames so far to the next one.

        Returns:
            All frames that were still in flight, in order.
        """
        committed = self.finish()
        self._first += self._rolling.arrived
        self._rolling = Rolling(self._windows, steps=self._settings.steps, skewed=self._settings.skewed)
        return committed

    def _run(self) -> list[Committed]:
        committed: list[Committed] = []
        while tasks := self._rolling.ready():
            self._at_boundary()
            for index in {index for task in tasks for index in task.span.frames}:
                self._frames[index].bring()
            self._add_residuals(tasks)
            for _, alike in groupby(tasks, key=lambda task: len(task.span.frames)):
                self._run_windows(list(alike))
            climbed = [(index, task.step) for task in tasks for index in self._rolling.complete(task)]
            committed += self._climb(climbed)
        return committed

    def _add_residuals(self, tasks: Sequence[Task]) -> None:
        """Run the ControlNets, as one batch, on those frames that have no residuals at their level yet."""
        new = [
            (self._frames[index], task.step)
            for task in tasks
            for index in task.span.frames
            if not self._frames[index].residuals
        ]
        if not new:
            return
        frames = [frame for frame, _ in new]
        steps = torch.tensor([step for _, step in new])
        sides = len(self._text)
        inputs = {
            "sample": self._scaled(frames, steps).repeat(sides, 1, 1, 1),
            "timestep": self._timesteps(steps),
            "text": _by_side([frame.text for frame in frames]),
        }
        summed: dict[str, Tensor] = {}
        for name, scale in self._settings.controlnet_scales.items():
            embedding = torch.stack([frame.embeddings[name].take() for frame in frames]).repeat(
                sides, 1, 1, 1
            )
            outputs = self._networks[f"controlnet_{name}"]({**inputs, "embedding": embedding})
            for key, output in outputs.items():
                # A network's outputs are the caller's own, so they can be summed where they lie.
                scaled = output.mul_(scale)
                summed[key] = summed[key].add_(scaled) if key in summed else scaled
            self._counts["controlnet_calls"] += 1
            self._counts["controlnet_frames"] += sides * len(new)
        by_side = {
            key: residual.reshape(sides, len(new), *residual.shape[1:]) for key, residual in summed.items()
        }
        for place, frame in enumerate(frames):
            frame.residuals = {key: residual[:, place] for key, residual in by_side.items()}

    def _run_windows(self, tasks: Sequence[Task]) -> None:
        """Run the UNet on windows of one length, as one batch, and add what it says to the frames' sums."""
        sides, batch, length = len(self._text), len(tasks), len(tasks[0].span.frames)
        frames = [self._frames[index] for task in tasks for index in task.span.frames]
        steps = torch.tensor([task.step for task in tasks])
        # Axis 0 of the inputs: side after side, and window after window within a side.
        sample = self._scaled(frames, steps.repeat_interleave(length))
        residuals = {
            key: torch.stack([frame.residuals[key] for frame in frames], dim=1).reshape(
                sides * batch, length, *residual.shape[1:]
            )
            for key, residual in frames[0].residuals.items()
        }
        inputs = {
            "sample": sample.reshape(batch, length, *sample.shape[1:]).repeat(sides, 1, 1, 1, 1),
            "timestep": self._timesteps(steps),
            "text": _by_side(
                [_mean([self._frames[index].text for index in task.span.frames]) for task in tasks]
            ),
        }
        output = self._networks["unet"](inputs | residuals)["output"].float().chunk(sides)
        self._counts["unet_calls"] += 1
        self._counts["unet_frames"] += sides * batch * length
        # Both sides carry the same weights: guiding within the window is eq. 6, with one sum to keep.
        guided = output[0]
        if sides == 2:
            guided = guided + self._settings.guidance * (output[1] - guided)
        weights = frame_weights(length)
        weighted = guided * torch.tensor(weights, device=guided.device).reshape(-1, 1, 1, 1)
        for frame, part, weight in zip(frames, weighted.flatten(0, 1), weights * batch, strict=True):
            frame.total = frame.total + part
            frame.weight += weight

    def _climb(self, climbed: Sequence[tuple[int, int]]) -> list[Committed]:
        """Combine the predictions of frames (index, step) that have them all, and step on (eqs. 4 and 8)."""
        if not climbed:
            return []
        frames = [self._frames.pop(index) for index, _ in climbed]
        device = self._text.device
        steps = torch.tensor([step for _, step in climbed])
        weights = torch.tensor([frame.weight for frame in frames], device=device)
        predicted = torch.stack([frame.total for frame in frames]) / weights.reshape(-1, 1, 1, 1)
        sample = torch.stack([frame.latents.take() for frame in frames])
        noise = None
        if self._scheduler.needs_noise:
            shape = tuple(sample.shape[1:])
            keyed = [
                frame_noise(shape, seed=frame.seed, frame=frame.key, step=step)
                for frame, (_, step) in zip(frames, climbed, strict=True)
            ]
            noise = torch.stack(keyed).to(device)
        committed = []
        following = self._scheduler.step(sample, predicted, steps, noise)
        for (index, step), frame, latents in zip(climbed, frames, following, strict=True):
            if step + 1 == self._settings.steps:
                committed.append(Committed(index=self._first + index, latents=latents))
            else:
                self._frames[index] = _InFlight(
                    key=frame.key,
                    seed=frame.seed,
                    text=frame.text,
                    embeddings=frame.embeddings,
                    latents=self._host.park(latents),
                )
        return committed

    def _scaled(self, frames: Sequence[_InFlight], steps: Tensor) -> Tensor:
        """The frames' latents as the networks want them at `steps` (N,): (N, C, h, w)."""
        return self._scheduler.scale(torch.stack([frame.latents.take() for frame in frames]), steps)

    def _timesteps(self, steps: Tensor) -> Tensor:
        """The timesteps of `steps` (N,) for every side: (sides · N,) float32."""
        return self._scheduler.timesteps[steps].repeat(len(self._text)).to(self._text.device)


def _mean(texts: Sequence[Tensor]) -> Tensor:
    """The mean of texts (sides, 77, D); where all are one tensor, that tensor itself."""
    first = texts[0]
    if all(text is first for text in texts):
        return first
    return torch.stack(list(texts)).mean(dim=0)


def _by_side(texts: Sequence[Tensor]) -> Tensor:
    """N texts (sides, 77, D) as a batch, side after side: (sides · N, 77, D)."""
    first = texts[0]
    if all(text is first for text in texts):
        return first.repeat_interleave(len(texts), dim=0)
    return torch.stack(list(texts), dim=1).flatten(0, 1)
