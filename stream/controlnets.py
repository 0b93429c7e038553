"""The ControlNets of a stream: hints embedded once for a frame, residuals made once for a frame and step."""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.errors import SettingError
from toonstream.stream.schedulers import Scheduler

__all__ = ["ControlNets", "by_side", "on_sides"]


class ControlNets:
    """Runs a stream's ControlNets. Their frames know nothing of one another.

    Args:
        networks: `hint_NAME` and `controlnet_NAME` for each.
        scheduler: scales what they see, and tells them the time.
        scales: how much each weighs, by name; at least one.
        sides: 2 with classifier-free guidance, else 1.
        device: where tensors are.

    Attributes:
        counts: `hints`: embeddings made; `controlnet_calls`: runs of all of them; `controlnet_frames`: frames
            that those had, guidance sides counted each.

    Raises:
        SettingError: a network is missing, or no ControlNet is named.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        *,
        scheduler: Scheduler,
        scales: Mapping[str, float],
        sides: int,
        device: torch.device,
    ) -> None:
        if not scales:
            raise SettingError("No ControlNet is named: give at least one in controlnet_scales.")
        for name in scales:
            if f"controlnet_{name}" not in networks or f"hint_{name}" not in networks:
                raise SettingError(
                    f"The model has no ControlNet '{name}': leave it out of controlnet_scales."
                )
        self._networks = networks
        self._scheduler = scheduler
        self._scales = scales
        self._sides = sides
        self._device = device
        self.counts: Counter[str] = Counter()

    def embed(self, hints: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Embed a frame's hints (3, H, W): (C0, h, w) by ControlNet."""
        self.counts["hints"] += len(self._scales)
        return {
            name: self._networks[f"hint_{name}"]({"hint": hints[name].unsqueeze(0)})["embedding"][0]
            for name in self._scales
        }

    def residuals(
        self,
        latents: Tensor,
        steps: Tensor,
        *,
        texts: Sequence[Tensor],
        embeddings: Sequence[Mapping[str, Tensor]],
    ) -> list[dict[str, Tensor]]:
        """Run all of them on N frames, as one batch.

        Args:
            latents: (N, C, h, w).
            steps: (N,) of the scheduler, one for each frame.
            texts: what each is to look like, (sides, 77, D).
            embeddings: of each one's hints, see `embed`.

        Returns:
            The weighted sum of what they say of each frame, by output name: (sides, Ci, hi, wi).
        """
        sides, count = self._sides, len(latents)
        inputs = {
            "sample": on_sides(self._scheduler.scale(latents, steps), sides),
            "timestep": self._scheduler.timesteps[steps].repeat(sides).to(self._device, non_blocking=True),
            "text": by_side(texts),
        }
        summed: dict[str, Tensor] = {}
        for name, scale in self._scales.items():
            embedding = on_sides(torch.stack([each[name] for each in embeddings]), sides)
            outputs = self._networks[f"controlnet_{name}"]({**inputs, "embedding": embedding})
            for key, output in outputs.items():
                # A network's outputs are the caller's own, so they can be summed where they lie.
                scaled = output if scale == 1.0 else output.mul_(scale)
                summed[key] = summed[key].add_(scaled) if key in summed else scaled
            self.counts["controlnet_calls"] += 1
            self.counts["controlnet_frames"] += sides * count
        apart = {key: residual.reshape(sides, count, *residual.shape[1:]) for key, residual in summed.items()}
        return [{key: residual[:, place] for key, residual in apart.items()} for place in range(count)]


def on_sides(batch: Tensor, sides: int) -> Tensor:
    """A batch (N, …) for each side: (sides · N, …); itself where there is one side."""
    return batch if sides == 1 else batch.repeat(sides, *[1] * (batch.dim() - 1))


def by_side(texts: Sequence[Tensor]) -> Tensor:
    """N texts (sides, 77, D) as a batch, side after side: (sides · N, 77, D)."""
    first = texts[0]
    if all(text is first for text in texts):
        return first.repeat_interleave(len(texts), dim=0)
    return torch.stack(list(texts), dim=1).flatten(0, 1)
