"""Denoising as a stream: frames go in one by one, clean latents come out in order.

Diffutoon's eqs. 1-8 over the rolling window: windows run when their frames stand at one level, and frames
climb when all windows that cover them have run. Or LVCD's overlapped blending: windows run all their steps
one after the other, and each begins with frames of the one before, which stand as they were committed. What
keeps frames like one another takes hold in between.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from toonstream.config import Mode
from toonstream.engines.engine import Network
from toonstream.engines.memory import out_of_memory
from toonstream.engines.parking import HostMemory
from toonstream.errors import SettingError
from toonstream.stream.controlnets import ControlNets
from toonstream.stream.evaluate import Evaluations, Evaluator, InFlight, Window, as_taken
from toonstream.stream.noise import mixed_noise
from toonstream.stream.rolling import Rolling, Task
from toonstream.stream.schedulers import Scheduler
from toonstream.stream.temporal.hooks import Fusion, ReferenceMemory
from toonstream.stream.temporal.overlap import Overlap
from toonstream.stream.temporal.segments import Segments
from toonstream.stream.window import Windows, frame_weights

__all__ = ["Committed", "DenoiseSettings", "Denoiser"]

_FRAMES = "the frames in flight"  # what memory is for, beside the networks


@dataclass(frozen=True, kw_only=True)
class DenoiseSettings:
    """How to denoise.

    Attributes:
        window: frames that a run of the UNet sees together (d). stride: frames from one window to the next
        (s), 1 to `window`. steps: denoising steps (T), at least 1. guidance: scale of classifier-free
        guidance (g); 1.0 runs the prompt's side alone. seed: of all noise, any whole number.
        mode: "wavefront"; "skewed": the windows of an arrival as one batch of mixed timesteps, at a stride
        more of latency a step; or "anchored": window after window, each of which begins with what is
        committed of the one before it, `window - stride` frames (o).
        shared_noise: part of the noise that all frames have in common, 0 to 1.
        controlnet_scales: how much each ControlNet weighs, by name, as in {"outline": 1.0}; at least one.
    """

    window: int
    stride: int
    steps: int
    guidance: float = 1.0
    seed: int = 0
    mode: Mode = "wavefront"
    shared_noise: float = 0.0
    controlnet_scales: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Committed:
    """A frame's final latents.

    Attributes:
        index: position in the stream, from 0, without gaps.
        latents: (C, h, w) float32.
    """

    index: int
    latents: Tensor


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
        fusion: lets frames share what they look like, at every step.
        reference: lets windows attend to frames that are final; the UNet must be made for it.
        early: run the ControlNets of the first step on each frame alone, in `prepare`: they see its noise and
            its hints, which is known before any window is.

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
        fusion: Fusion | None = None,
        reference: ReferenceMemory | None = None,
        early: bool = False,
    ) -> None:
        self._windows = Windows(length=settings.window, stride=settings.stride)
        self._rolling = self._begin(settings)
        self._first = 0  # frame of the scene that the rolling window is in
        self._scene = 0
        if scheduler.steps != settings.steps:
            raise SettingError(
                f"The scheduler makes {scheduler.steps} steps and the settings ask for {settings.steps}: "
                "make it for the settings."
            )
        sides = [text]
        if settings.guidance != 1.0:
            if negative_text is None:
                raise SettingError(
                    "Guidance needs a negative prompt: give one (it may be empty), or guidance 1."
                )
            sides = [negative_text, text]
        self._controlnets = ControlNets(
            networks,
            scheduler=scheduler,
            scales=settings.controlnet_scales,
            sides=len(sides),
            device=text.device,
        )
        self._evaluator = Evaluator(
            networks["unet"],
            self._controlnets,
            scheduler=scheduler,
            guidance=settings.guidance,
            device=text.device,
            reference=reference,
        )
        self._networks = networks
        self._scheduler = scheduler
        self._settings = settings
        self._text = torch.cat(sides)  # (sides, 77, D)
        self._latent_channels = latent_channels
        self._at_boundary = at_boundary
        self._fusion = fusion
        self._reference = reference
        self._early = early
        self._host = HostMemory(text.device)
        overlap = settings.window - settings.stride
        self._overlap = Overlap(overlap, self._host) if settings.mode == "anchored" else None
        self._frames: dict[int, InFlight] = {}

    @property
    def evaluations(self) -> Evaluations:
        """How often the networks have run so far."""
        return self._evaluator.evaluations

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
        image: NDArray[np.uint8] | None = None,
    ) -> list[Committed]:
        """Take in the next frame and run what became runnable: `prepare` and `enter` in one.

        Args:
            hints: see `prepare`, as for `text` and `seed`.
            text: likewise.
            seed: likewise.
            key: number that the frame's noise belongs to; None for its place in the stream.
            image: see `enter`.

        Returns:
            The frames that are final now, in order; often none.

        Raises:
            RuntimeError: the stream has ended.
            ValueError: the fusion has no image to go by.
        """
        key = self._first + self._rolling.arrived if key is None else key
        return self.enter(self.prepare(hints, text=text, seed=seed, key=key, scene=self._scene), image=image)

    def prepare(
        self,
        hints: Mapping[str, Tensor],
        *,
        text: Tensor | None = None,
        seed: int | None = None,
        key: int,
        scene: int,
    ) -> InFlight:
        """Make of a frame what depends on no other; on any thread, one at a time, while others are run.

        Words may change from frame to frame: a window is run with the mean of its frames' texts, the
        ControlNets with each frame's own.

        Args:
            hints: by ControlNet, each (3, H, W) float32 in [0, 1].
            text: the frame's own, (sides, 77, D): the negative prompt first, with guidance only; None for the
                stream's. Give frames that are to look alike the same tensor: then nothing is averaged.
            seed: of the frame's noise; None for the settings'.
            key: number that the frame's noise belongs to.
            scene: number of its scene, to which the noise belongs that frames have in common.
        """
        with torch.inference_mode(), out_of_memory(_FRAMES):
            embeddings = {
                name: as_taken(self._networks[f"controlnet_{name}"], {"embedding": embedding})["embedding"]
                for name, embedding in self._controlnets.embed(hints).items()
            }
            height, width = next(iter(embeddings.values())).shape[-2:]
            shape = (self._latent_channels, height, width)
            seed = self._settings.seed if seed is None else seed
            text = self._text if text is None else text
            noise = self._noise(shape, seed=seed, key=key, scene=scene).to(
                self._text.device, non_blocking=True
            )
            latents = noise * self._scheduler.initial_sigma
            frame = InFlight(
                key=key,
                seed=seed,
                scene=scene,
                text=text,
                embeddings={name: self._host.park(embedding) for name, embedding in embeddings.items()},
                latents=self._host.park(latents),
            )
            if self._early:
                (residuals,) = self._controlnets.residuals(
                    latents.unsqueeze(0), torch.tensor([0]), texts=[text], embeddings=[embeddings]
                )
                frame.residuals = as_taken(self._networks["unet"], residuals)
                frame.rest(self._host)
            return frame

    def enter(self, frame: InFlight, *, image: NDArray[np.uint8] | None = None) -> list[Committed]:
        """Take in the next frame, as `prepare` made it, and run what became runnable.

        Args:
            frame: not taken in yet.
            image: the frame itself, for the fusion: see `Fusion.arrive`.

        Returns:
            The frames that are final now, in order; often none.

        Raises:
            RuntimeError: the stream has ended.
            ValueError: the fusion has no image to go by.
        """
        with torch.inference_mode(), out_of_memory(_FRAMES):
            index = self._rolling.arrived
            self._rolling.arrive()
            if self._fusion is not None:
                if image is None:
                    raise ValueError("Fusion goes by the frames themselves: pass `image`.")
                self._fusion.arrive(self._first + index, image)
            self._frames[index] = frame
            return self._run()

    def finish(self) -> list[Committed]:
        """End the stream.

        Returns:
            All frames that were still in flight, in order.
        """
        with torch.inference_mode(), out_of_memory(_FRAMES):
            committed = self._climb([(index, 0) for index in self._rolling.end()]) + self._run()
        if self._overlap is not None:
            self._overlap.clear()
        return committed

    def cut(self) -> list[Committed]:
        """End the scene: no window reaches from the frames so far to the next one.

        Returns:
            All frames that were still in flight, in order.
        """
        committed = self.finish()
        self._first += self._rolling.arrived
        self._scene += 1
        self._rolling = self._begin(self._settings)
        for part in (self._fusion, self._reference):
            if part is not None:
                part.cut()
        return committed

    def _begin(self, settings: DenoiseSettings) -> Rolling | Segments:
        """The order in which a scene's windows run."""
        if settings.mode == "anchored":
            return Segments(self._windows, steps=settings.steps)
        return Rolling(self._windows, steps=settings.steps, skewed=settings.mode == "skewed")

    def _run(self) -> list[Committed]:
        committed: list[Committed] = []
        while tasks := self._rolling.ready():
            self._at_boundary()
            self._evaluator.run([self._window(task) for task in tasks])
            climbed = [(index, task.step) for task in tasks for index in self._rolling.complete(task)]
            committed += self._climb(climbed)
            for frame in self._frames.values():
                frame.rest(self._host)
        return committed

    def _window(self, task: Task) -> Window:
        span = task.span
        if self._overlap is None:
            frames = [self._frames[index] for index in span.frames]
            weights = frame_weights(len(frames))
        else:  # frames are new in one window only, and what is said of the others is left out
            new = [index in self._frames for index in span.frames]
            frames = [
                self._frames[index] if is_new else self._overlap.at(index, task.step)
                for index, is_new in zip(span.frames, new, strict=True)
            ]
            weights = tuple(map(float, new))
        return Window(
            indices=range(self._first + span.start, self._first + span.stop),
            frames=frames,
            step=task.step,
            weights=weights,
        )

    def _climb(self, climbed: Sequence[tuple[int, int]]) -> list[Committed]:
        """Combine the predictions of frames (index, step) that have them all, and step on (eqs. 4 and 8)."""
        if not climbed:
            return []
        if self._reference is not None:
            for step, alike in groupby(climbed, key=lambda each: each[1]):
                self._reference.climbed(step, [self._first + index for index, _ in alike])
        frames = [self._frames.pop(index) for index, _ in climbed]
        if self._overlap is not None:
            self._overlap.keep(climbed, frames)
        device = self._text.device
        steps = torch.tensor([step for _, step in climbed])
        weights = torch.tensor([frame.weight for frame in frames]).to(device, non_blocking=True)
        predicted = torch.stack([frame.total for frame in frames]) / weights.reshape(-1, 1, 1, 1)
        sample = torch.stack([frame.latents.take() for frame in frames])
        x0 = self._fused(climbed, self._scheduler.predict_x0(sample, predicted, steps))
        noise = None
        if self._scheduler.needs_noise:
            shape = tuple(sample.shape[1:])
            keyed = [
                self._noise(shape, seed=frame.seed, key=frame.key, scene=frame.scene, step=step)
                for frame, (_, step) in zip(frames, climbed, strict=True)
            ]
            noise = torch.stack(keyed).to(device, non_blocking=True)
        committed = []
        following = self._scheduler.step_from_x0(sample, predicted, x0, steps, noise)
        for (index, step), frame, latents in zip(climbed, frames, following, strict=True):
            if step + 1 == self._settings.steps:
                committed.append(Committed(index=self._first + index, latents=latents))
            else:
                self._frames[index] = frame.at(self._host.park(latents.clone()))
        if self._overlap is not None:
            self._overlap.forget(below=self._rolling.committed)
        return committed

    def _noise(
        self, shape: tuple[int, ...], *, seed: int, key: int, scene: int, step: int | None = None
    ) -> Tensor:
        shared = self._settings.shared_noise
        return mixed_noise(shape, seed=seed, frame=key, step=step, shared=shared, scene=scene)

    def _fused(self, climbed: Sequence[tuple[int, int]], x0: Tensor) -> Tensor:
        """Let frames (index, step) of one step share what they look like, (N, C, h, w)."""
        if self._fusion is None:
            return x0
        parts, place = [], 0
        for step, alike in groupby(climbed, key=lambda each: each[1]):
            indices = [self._first + index for index, _ in alike]
            parts.append(self._fusion.fuse(indices, step, x0[place : place + len(indices)]))
            place += len(indices)
        return torch.cat(parts)
