"""What the training stages share: checkpoints, averages, the learning rate, curves, image losses."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

mpl.use("Agg")

__all__ = [
    "CHECKPOINT",
    "Average",
    "Run",
    "flat_loss",
    "image_loss",
    "learning_rate",
    "lower_precision",
    "save_grid",
]

CHECKPOINT = "checkpoint.pt"
"""Name of the file in a stage's folder that it goes on from."""

_SQUARES_WEIGHT = 8.0  # in the pictures' loss
_LEVEL = 1.0 / 127.5  # of 8 bits, where black is -1 and white is 1
_CLOSE = 2  # neighbours to each side


def lower_precision() -> torch.autocast:
    """Compute in bfloat16 inside this context, on CPUs that can: on others it is many times slower."""
    able = torch.backends.cpu.get_cpu_capability() not in {"DEFAULT", "AVX2"}
    return torch.autocast("cpu", torch.bfloat16, enabled=able)


class Average:
    """Exponential moving average of the weights of some modules: what is shipped."""

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self._live = [parameter for module in modules for parameter in module.parameters()]
        self._mean = [parameter.detach().clone() for parameter in self._live]
        self._decay = decay
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the live weights in; early on they count for more."""
        self._updates += 1
        decay = min(self._decay, self._updates / (self._updates + 10))
        torch._foreach_lerp_(self._mean, [parameter.detach() for parameter in self._live], 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averaged and the live weights; call twice to come back."""
        for live, mean in zip(self._live, self._mean, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"mean": self._mean, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._updates = state["updates"]
        for mean, saved in zip(self._mean, state["mean"], strict=True):
            mean.copy_(saved)


class Run:
    """A stage's steps, and their state on disk: written whole or not at all, and picked up where it stopped.

    Args:
        folder: of the stage.
        modules: what the optimiser changes, and more, perhaps.
        optimiser: its groups may have a "share" of the learning rate.
        average: of the weights that are kept.
    """

    def __init__(
        self, folder: Path, *, modules: nn.Module, optimiser: torch.optim.Optimizer, average: Average
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.step = 0
        self._losses: list[list[float]] = []
        self._folder = folder
        self._optimiser = optimiser
        self._average = average
        self._parts: dict[str, Any] = {"modules": modules, "optimiser": optimiser, "average": average}
        self._started = time.monotonic()
        self._file = folder / CHECKPOINT
        if self._file.exists():
            state = torch.load(self._file, weights_only=True)
            self.step, self._losses = state["step"], state["losses"]
            for name, part in self._parts.items():
                part.load_state_dict(state[name])

    def learn(self, loss: Tensor, parts: Sequence[Tensor], *, rate: float) -> None:
        """Step down `loss`, and note the `parts` that it is made of."""
        groups = self._optimiser.param_groups
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([each for group in groups for each in group["params"]], 1.0)
        for group in groups:
            group["lr"] = group.get("share", 1.0) * rate
        self._optimiser.step()
        self._average.update()
        self.step += 1
        self._losses.append([float(part.detach()) for part in parts])

    def tell(self, steps: int, save: Callable[[], None]) -> None:
        """Now and then, and after the last of `steps`: print the losses, and save.

        Args:
            steps: of the whole stage.
            save: writes the weights and samples, while the weights are the averaged ones.
        """
        last = self.step == steps
        if self.step % 100 == 0 or last:
            mean = np.mean(self._losses[-100:], axis=0).round(4)
            seconds = time.monotonic() - self._started
            print(f"{self._folder.name} {self.step}/{steps} {mean} {seconds:.0f}s", flush=True)
        if self.step % 300 == 0 or last:
            self._average.swap()
            save()
            self._average.swap()
            self._save()

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self._parts.items()}
        temporary = self._file.with_suffix(".tmp")
        torch.save({"step": self.step, "losses": self._losses, **state}, temporary)
        temporary.replace(self._file)
        self._plot()

    def _plot(self) -> None:
        curves = np.array(self._losses)
        figure, axes = plt.subplots(figsize=(8, 4))
        width = max(1, len(curves) // 100)
        for column in range(curves.shape[1] if curves.ndim == 2 else 0):
            smooth = np.convolve(curves[:, column], np.ones(width) / width, mode="valid")
            axes.semilogy(smooth, label=f"loss {column}")
        axes.set_xlabel("step")
        axes.legend()
        figure.savefig(self._folder / "losses.png", dpi=80)
        plt.close(figure)


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def image_loss(image: Tensor, target: Tensor) -> Tensor:
    """How far pictures (B, 3, H, W) in [-1, 1] are from what they should be.

    Mean absolute difference of the pixels, of their gradients at two scales (lines), and of their means
    over 4 x 4 pixels, with the weight on what is not grey: the lines would else drown the colours, and a
    network that has once settled for grey does not come back. To these comes the mean square of the
    difference and of its gradients: absolute differences alone leave out what is fine and uncertain.
    """
    loss = (image - target).abs().mean() + _SQUARES_WEIGHT * (image - target).square().mean()
    for axis in (-1, -2):
        slopes = image.diff(dim=axis) - target.diff(dim=axis)
        loss = loss + _SQUARES_WEIGHT * slopes.square().mean()
    for weight in (1.0, 0.5):
        for axis in (-1, -2):
            loss = loss + weight * (image.diff(dim=axis) - target.diff(dim=axis)).abs().mean()
        image, target = F.avg_pool2d(image, 2), F.avg_pool2d(target, 2)
    difference = image - target
    chroma = difference - difference.mean(dim=1, keepdim=True)
    return loss + 2.0 * difference.abs().mean() + 4.0 * chroma.abs().mean()


def flat_loss(image: Tensor, target: Tensor) -> Tensor:
    """How far the steps between neighbours are from the target's, where that is flat.

    Each patch of a picture is one latent pixel, and what is unsure of a smooth area gives neighbours that
    differ a little; what is unsure of an edge rings beside it. Nobody sees such steps among leaves, but in
    the sky they are a grid, and a halo. So each is measured in the mean step a of the target close by and a
    level l of 8 bits, and counts l / (l + a) times. Small ones are squared: better to spread a step than to
    move it off the border. Neighbours are pixels, and means over 4 x 4 of them: a halo's slope is a gentle
    one.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        target: the same shape.
    """
    return _steps(image, target) + _steps(F.avg_pool2d(image, 4), F.avg_pool2d(target, 4))


def _steps(image: Tensor, target: Tensor) -> Tensor:
    steps = [target.diff(dim=axis).abs().mean(1, keepdim=True) for axis in (-1, -2)]
    busy = F.pad(steps[0], (0, 1, 0, 0)) + F.pad(steps[1], (0, 0, 0, 1))
    seen = _LEVEL + F.avg_pool2d(busy, 2 * _CLOSE + 1, 1, _CLOSE, count_include_pad=False)
    loss = image.new_zeros(())
    for axis in (-1, -2):
        unit = seen.narrow(axis, 1, seen.shape[axis] - 1)
        step = (image - target).diff(dim=axis) / unit
        size = F.smooth_l1_loss(step, torch.zeros_like(step), reduction="none")
        loss = loss + (size * (_LEVEL / unit)).mean()
    return loss


def save_grid(rows: list[Tensor], path: Path) -> None:
    """Write rows of pictures, each (N, 3, H, W) in [-1, 1], as one PNG."""
    grid = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
    pixels = grid.permute(1, 2, 0).float().add(1).mul(127.5).round().clamp(0, 255).byte().numpy()
    plt.imsave(path, pixels)
