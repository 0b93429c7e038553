"""Running the networks on frames in flight: ControlNets once for a frame and level, the UNet on windows.

What a frame needs is kept with the frame while it is in flight, at the one level it stands at, and goes when
it climbs: its latents, its ControlNet residuals (the same for every window that covers it) and the weighted
sum of the windows' predictions so far (eqs. 4 and 6). All but the last is large: between two windows it waits
in host memory, so that a GPU holds what one window needs, however many levels there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.engines.parking import HostMemory, Parked
from toonstream.stream.controlnets import ControlNets, by_side, on_sides
from toonstream.stream.schedulers import Scheduler
from toonstream.stream.temporal.hooks import ReferenceMemory

__all__ = ["Evaluations", "Evaluator", "InFlight", "Window", "as_taken"]


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


@dataclass(kw_only=True, slots=True, eq=False)
class InFlight:
    """What is kept of one frame, all of it at the level where the frame stands.

    What only networks see is kept as they take it, in half precision where they compute in that.

    Attributes:
        key: number that its noise belongs to. seed: of that noise. scene: that it is in, from 0.
        text: what it is to look like, (sides, 77, D); frames that are to look alike share one tensor.
        embeddings: of the hints, by ControlNet, each (C0, h, w); the same at every level. They wait in host
            memory until a window needs them, and so do the latents.
        latents: (C, h, w).
        residuals: the ControlNets' sum by output name, each (sides, Ci, hi, wi); empty until a window runs,
            and between two. Those of the first step may be there before.
        waiting: the same from the first of these windows on.
        total: Σ w·ε over the windows that have run, (C, h, w).
        weight: Σ w over the same windows.
    """

    key: int
    seed: int
    scene: int = 0
    text: Tensor
    embeddings: Mapping[str, Parked]
    latents: Parked
    residuals: Mapping[str, Tensor] = field(default_factory=dict)
    waiting: Mapping[str, Parked] = field(default_factory=dict)
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    weight: float = 0.0

    def at(self, latents: Parked, residuals: Mapping[str, Tensor] | None = None) -> "InFlight":
        """The same frame at another level, where nothing is said of it yet."""
        return InFlight(
            key=self.key,
            seed=self.seed,
            scene=self.scene,
            text=self.text,
            embeddings=self.embeddings,
            latents=latents,
            residuals=residuals or {},
        )

    @property
    def is_new(self) -> bool:
        """Whether the ControlNets have yet to be run on it here."""
        return not (self.residuals or self.waiting)

    def rest(self, host: HostMemory) -> None:
        """Let the residuals wait until the next window runs it."""
        self.waiting = self.waiting or {name: host.park(tensor) for name, tensor in self.residuals.items()}
        self.residuals = {}

    def wake(self) -> None:
        """Take the residuals back; what waits goes on waiting, as they do not change."""
        if not self.residuals:
            self.residuals = {name: parked.take() for name, parked in self.waiting.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Consecutive frames to run at one step.

    Attributes:
        indices: of the frames in the stream. frames: what is kept of them, all at level `step`.
        step: of the scheduler, 0 the noisiest.
        weights: how much what is said of each frame counts; what is said at weight 0 is left out.
    """

    indices: range
    frames: Sequence[InFlight]
    step: int
    weights: Sequence[float]


class Evaluator:
    """Runs a stream's networks on its windows.

    Args:
        unet: the UNet.
        controlnets: run on frames that have no residuals yet.
        scheduler: scales what the UNet sees, and tells it the time.
        guidance: scale of classifier-free guidance (g); with 1.0 frames have one side, else two.
        device: where tensors are.
        reference: gives the UNet more inputs, and takes more outputs.
    """

    def __init__(
        self,
        unet: Network,
        controlnets: ControlNets,
        *,
        scheduler: Scheduler,
        guidance: float,
        device: torch.device,
        reference: ReferenceMemory | None = None,
    ) -> None:
        self._unet = unet
        self._controlnets = controlnets
        self._scheduler = scheduler
        self._guidance = guidance
        self._sides = 1 if guidance == 1.0 else 2
        self._device = device
        self._reference = reference
        self._calls = self._frames = 0  # of the UNet

    @property
    def evaluations(self) -> Evaluations:
        """How often the networks have run so far."""
        return Evaluations(unet_calls=self._calls, unet_frames=self._frames, **self._controlnets.counts)

    def run(self, windows: Sequence[Window]) -> None:
        """Run windows that are independent of one another, and add what is said to their frames' sums."""
        frames = [frame for window in windows for frame in window.frames]
        _bring(frames)
        self._add_residuals(windows)
        for frame in frames:
            frame.latents.bring()  # those of new frames once more
            frame.wake()
        for _, alike in groupby(windows, key=lambda window: len(window.frames)):
            self._run_unet(list(alike))

    def _add_residuals(self, windows: Sequence[Window]) -> None:
        """Run the ControlNets, as one batch, on those frames that have no residuals at their level yet."""
        new = [(frame, window.step) for window in windows for frame in window.frames if frame.is_new]
        if not new:
            return
        frames = [frame for frame, _ in new]
        made = self._controlnets.residuals(
            torch.stack([frame.latents.take() for frame in frames]),
            torch.tensor([step for _, step in new]),
            texts=[frame.text for frame in frames],
            embeddings=[
                {name: parked.take() for name, parked in frame.embeddings.items()} for frame in frames
            ],
        )
        for frame, residuals in zip(frames, made, strict=True):
            frame.residuals = as_taken(self._unet, residuals)

    def _run_unet(self, windows: Sequence[Window]) -> None:
        """Run the UNet on windows of one length, as one batch."""
        sides, batch, length = self._sides, len(windows), len(windows[0].frames)
        frames = [frame for window in windows for frame in window.frames]
        steps = torch.tensor([window.step for window in windows])
        # Axis 0 of the inputs: side after side, and window after window within a side.
        latents = torch.stack([frame.latents.take() for frame in frames])
        sample = self._scheduler.scale(latents, steps.repeat_interleave(length))
        residuals = {
            key: torch.stack([frame.residuals[key] for frame in frames], dim=1).reshape(
                sides * batch, length, *residual.shape[1:]
            )
            for key, residual in frames[0].residuals.items()
        }
        inputs = {
            "sample": on_sides(sample.reshape(batch, length, *sample.shape[1:]), sides),
            "timestep": self._scheduler.timesteps[steps].repeat(sides).to(self._device, non_blocking=True),
            "text": by_side([_mean([frame.text for frame in window.frames]) for window in windows]),
        }
        outputs = self._unet(
            inputs | residuals | self._remembered(windows, (sample.shape[-2], sample.shape[-1]))
        )
        self._calls += 1
        self._frames += sides * batch * length
        output = outputs.pop("output").float().chunk(sides)
        self._remember(windows, outputs)
        # Both sides carry the same weights: guiding within the window is eq. 6, with one sum to keep.
        guided = output[0]
        if sides == 2:
            guided = guided + self._guidance * (output[1] - guided)
        weights = [weight for window in windows for weight in window.weights]
        by_window = torch.tensor(weights).reshape(batch, length, 1, 1, 1).to(guided.device, non_blocking=True)
        weighted = guided * by_window
        for frame, part, weight in zip(frames, weighted.flatten(0, 1), weights, strict=True):
            if weight:
                frame.total = frame.total + part
                frame.weight += weight

    def _remembered(self, windows: Sequence[Window], size: tuple[int, int]) -> dict[str, Tensor]:
        if self._reference is None:
            return {}
        each = [self._reference.inputs(window.step, window.indices, size) for window in windows]
        return {name: torch.stack([inputs[name] for inputs in each], dim=1).flatten(0, 1) for name in each[0]}

    def _remember(self, windows: Sequence[Window], outputs: Mapping[str, Tensor]) -> None:
        if self._reference is None:
            return
        by_side = {
            name: output.reshape(self._sides, len(windows), *output.shape[1:])
            for name, output in outputs.items()
        }
        for place, window in enumerate(windows):
            own = {name: output[:, place] for name, output in by_side.items()}
            self._reference.keep(window.step, window.indices, own)


def as_taken(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a network's inputs in what it computes in, to which it rounds them itself: they wait smaller."""
    dtypes = {spec.name: spec.dtype for spec in network.inputs}
    return {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in tensors.items()}


def _bring(frames: Sequence[InFlight]) -> None:
    """Begin to bring back what waits, in the order in which it is needed: the ControlNets run first."""
    for frame in frames:
        frame.latents.bring()
        if frame.is_new:
            for embedding in frame.embeddings.values():
                embedding.bring()
    for frame in frames:
        for residual in frame.waiting.values():
            residual.bring()


def _mean(texts: Sequence[Tensor]) -> Tensor:
    """The mean of texts (sides, 77, D); where all are one tensor, that tensor itself."""
    first = texts[0]
    if all(text is first for text in texts):
        return first
    return torch.stack(list(texts)).mean(dim=0)
