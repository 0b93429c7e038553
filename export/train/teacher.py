"""The teacher: the CartoonGAN generator (Chen et al., CVPR 2018), steadied before anything learns from it."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["CartoonGenerator", "load_teacher", "match_colours"]

_RESIDUAL_BLOCKS = range(4, 12)
_MATCHED = (0.75, 1.0, 1.0)  # shares of what L*, a* and b* lack
_EVENNESS = 0.002  # colours that differ by less than its square root are one area


class _InstanceNorm(nn.Module):
    """Instance normalisation whose learned parts are named `scale` and `shift`, as in the checkpoint."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.instance_norm(hidden, weight=self.scale, bias=self.shift, eps=1e-9)


class CartoonGenerator(nn.Module):
    """CartoonGAN's generator: (B, 3, H, W) BGR in [-1, 1] → the same; H and W multiples of four."""

    def __init__(self) -> None:
        super().__init__()
        plan: list[tuple[str, nn.Module]] = [("conv01_1", nn.Conv2d(3, 64, 7)), ("in01_1", _InstanceNorm(64))]
        for stage, (narrow, wide) in enumerate(((64, 128), (128, 256)), start=2):
            plan += [
                (f"conv0{stage}_1", nn.Conv2d(narrow, wide, 3, stride=2, padding=1)),
                (f"conv0{stage}_2", nn.Conv2d(wide, wide, 3, padding=1)),
                (f"in0{stage}_1", _InstanceNorm(wide)),
            ]
        for block in _RESIDUAL_BLOCKS:
            for half in (1, 2):
                plan += [
                    (f"conv{block:02d}_{half}", nn.Conv2d(256, 256, 3)),
                    (f"in{block:02d}_{half}", _InstanceNorm(256)),
                ]
        for stage, (wide, narrow) in enumerate(((256, 128), (128, 64)), start=1):
            plan += [
                (
                    f"deconv0{stage}_1",
                    nn.ConvTranspose2d(wide, narrow, 3, stride=2, padding=1, output_padding=1),
                ),
                (f"deconv0{stage}_2", nn.Conv2d(narrow, narrow, 3, padding=1)),
                (f"in{11 + stage}_1", _InstanceNorm(narrow)),
            ]
        plan.append(("deconv03_1", nn.Conv2d(64, 3, 7)))
        self.m = nn.ModuleDict(dict(plan))

    def forward(self, image: Tensor) -> Tensor:
        """Draw pictures."""
        m = self.m
        hidden = F.relu(m["in01_1"](m["conv01_1"](F.pad(image, (3, 3, 3, 3), mode="reflect"))))
        for stage in ("02", "03"):
            hidden = m[f"conv{stage}_2"](m[f"conv{stage}_1"](hidden))
            hidden = F.relu(m[f"in{stage}_1"](hidden))
        for block in _RESIDUAL_BLOCKS:
            inner = hidden
            for half in (1, 2):
                inner = m[f"conv{block:02d}_{half}"](F.pad(inner, (1, 1, 1, 1), mode="reflect"))
                inner = m[f"in{block:02d}_{half}"](inner)
                inner = F.relu(inner) if half == 1 else inner
            hidden = hidden + inner
        for stage, norm in (("01", "in12_1"), ("02", "in13_1")):
            hidden = m[f"deconv{stage}_2"](m[f"deconv{stage}_1"](hidden))
            hidden = F.relu(m[norm](hidden))
        return torch.tanh(m["deconv03_1"](F.pad(hidden, (3, 3, 3, 3), mode="reflect")))


def load_teacher(path: Path) -> CartoonGenerator:
    """Load a generator from its float16 state dict (keys `m.<layer>.<weight>`), as float32, for inference."""
    generator = CartoonGenerator()
    state = torch.load(path, map_location="cpu", weights_only=True)
    generator.load_state_dict({key: value.float() for key, value in state.items()})
    return generator.eval().requires_grad_(False)


def match_colours(
    drawn: NDArray[np.uint8], source: NDArray[np.uint8], *, reach: int = 16
) -> NDArray[np.uint8]:
    """Give `drawn` the colours of `source` where they differ over an area, and keep its lines and flats.

    What a* and b* lack over an area is added, and three quarters of what lightness lacks: skin stays skin,
    and what flickers from frame to frame in the teacher, which is mostly tint, goes. Areas end where the
    source's colours change: a plain blur would carry a roof's share into the sky, as a halo around it.

    Args:
        drawn: (H, W, 3) uint8 RGB.
        source: (H, W, 3) uint8 RGB.
        reach: how far an area's lack is averaged, in pixels to each side.
    """
    lab = cv2.cvtColor(_unit(drawn), cv2.COLOR_RGB2LAB)
    goal = cv2.cvtColor(_unit(source), cv2.COLOR_RGB2LAB)
    guide = cv2.GaussianBlur(_unit(source), (0, 0), 1.0)
    lack = _guided(np.asarray(goal - lab, dtype=np.float32), np.asarray(guide, dtype=np.float32), reach)
    closer = np.asarray(lab + lack * np.array(_MATCHED, dtype=np.float32), dtype=np.float32)
    rgb = cv2.cvtColor(closer, cv2.COLOR_LAB2RGB)
    return np.asarray(np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5, dtype=np.uint8)


def _unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return image.astype(np.float32) / np.float32(255)


def _guided(image: NDArray[np.float32], guide: NDArray[np.float32], reach: int) -> NDArray[np.float32]:
    """Smooth `image` (H, W, C) within the areas of `guide` (H, W, 3): the guided filter (He et al., 2010).

    Around every pixel k it is the linear function of the guide I that fits the image p best, averaged:
    a_k = (Σ_k + εU)⁻¹ (mean(I p) - μ_k p̄_k), b_k = p̄_k - a_k·μ_k, q = mean(a)·I + mean(b).
    """

    def mean(values: NDArray[Any]) -> NDArray[np.float32]:
        flat = values.reshape(*values.shape[:2], -1)
        planes = [cv2.blur(flat[..., each], (side, side)) for each in range(flat.shape[-1])]
        return np.asarray(np.stack(planes, -1).reshape(values.shape), dtype=np.float32)

    side = 2 * reach + 1
    middle, level = mean(guide), mean(image)
    spread = mean(guide[..., :, None] * guide[..., None, :]) - middle[..., :, None] * middle[..., None, :]
    joint = mean(guide[..., :, None] * image[..., None, :]) - middle[..., :, None] * level[..., None, :]
    slope = np.linalg.solve(spread + _EVENNESS * np.eye(3, dtype=np.float32), joint)
    base = level - np.einsum("hwg,hwgc->hwc", middle, slope)
    return np.asarray(np.einsum("hwg,hwgc->hwc", guide, mean(slope)) + mean(base), dtype=np.float32)
