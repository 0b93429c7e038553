"""Optical flow by RAFT (Teed and Deng, 2020), for those who have a checkpoint of it.

Takes state dicts in torchvision's layout, `raft_small` or `raft_large`; which of the two, the file tells. All
work is done at an eighth of the pictures' size: features of both pictures are compared, every place with
every other; then the flow is refined over and over by a recurrent block that sees how well the places around
where it leads to agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from toonstream.errors import ModelError
from toonstream.stream.temporal.flow import Flow

__all__ = ["Raft", "RaftFlow", "load_raft"]

_LEVELS = 4  # of the pyramid of agreements
_SHRINK = 8  # from pictures to features
_LEAST_SIDE = 128  # pixels: two places are left at the coarsest level
_ROUNDS = 12  # of refinement


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Channels of one of the two networks."""

    stages: tuple[int, int, int, int]
    features: int
    hidden: int
    context: int
    agreement: tuple[int, ...]
    flow: tuple[int, int]
    motion: int
    head: int
    kernels: tuple[tuple[int, int], ...]
    radius: int
    bottleneck: bool
    upsamples: bool


_SMALL = _Shape(
    stages=(32, 32, 64, 96),
    features=128,
    hidden=96,
    context=64,
    agreement=(96,),
    flow=(64, 32),
    motion=80,
    head=128,
    kernels=((3, 3),),
    radius=3,
    bottleneck=True,
    upsamples=False,
)
_LARGE = _Shape(
    stages=(64, 64, 96, 128),
    features=256,
    hidden=128,
    context=128,
    agreement=(256, 192),
    flow=(128, 64),
    motion=126,
    head=256,
    kernels=((1, 5), (5, 1)),
    radius=4,
    bottleneck=False,
    upsamples=True,
)


def _conv(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, norm: type[nn.Module] | None = None
) -> nn.Sequential:
    """A convolution that keeps the size, and a norm if there is one."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    return nn.Sequential(convolution, *([norm(outputs)] if norm else []))


class _Block(nn.Module):
    """A residual block: two convolutions, or three of which the outer ones are small (a bottleneck)."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int, bottleneck: bool, norm: type[nn.Module] | None
    ) -> None:
        super().__init__()
        if bottleneck:
            inner = outputs // 4
            convolutions = [
                _conv(inputs, inner, 1, norm=norm),
                _conv(inner, inner, stride=stride, norm=norm),
                _conv(inner, outputs, 1, norm=norm),
            ]
        else:
            convolutions = [
                _conv(inputs, outputs, stride=stride, norm=norm),
                _conv(outputs, outputs, norm=norm),
            ]
        self._count = len(convolutions)
        for number, convolution in enumerate(convolutions, start=1):
            self.add_module(f"convnormrelu{number}", convolution)
        self.downsample = _conv(inputs, outputs, 1, stride=stride, norm=norm) if stride > 1 else nn.Identity()

    def forward(self, sample: Tensor) -> Tensor:
        changed = sample
        for number in range(1, self._count + 1):
            changed = F.relu(self.get_submodule(f"convnormrelu{number}")(changed))
        return F.relu(self.downsample(sample) + changed)


class _Encoder(nn.Module):
    """Pictures (B, 3, H, W) → (B, outputs, H/8, W/8)."""

    def __init__(self, shape: _Shape, outputs: int, norm: type[nn.Module] | None) -> None:
        super().__init__()
        first, *stages = shape.stages
        self.convnormrelu = _conv(3, first, 7, stride=2, norm=norm)
        before = first
        for number, channels in enumerate(stages, start=1):
            stage = nn.Sequential(
                *(
                    _Block(inputs, channels, stride=stride, bottleneck=shape.bottleneck, norm=norm)
                    for inputs, stride in ((before, 1 if number == 1 else 2), (channels, 1))
                )
            )
            self.add_module(f"layer{number}", stage)
            before = channels
        self.conv = nn.Conv2d(before, outputs, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        sample = F.relu(self.convnormrelu(pictures))
        for name in ("layer1", "layer2", "layer3"):
            sample = self.get_submodule(name)(sample)
        return self.conv(sample)  # type: ignore[no-any-return]


class _MotionEncoder(nn.Module):
    """What the recurrent block is told of the flow so far, and of how well it fits."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        agreements = _LEVELS * (2 * shape.radius + 1) ** 2
        self.convcorr1 = _conv(agreements, shape.agreement[0], 1)
        self.convcorr2 = _conv(*shape.agreement) if len(shape.agreement) == 2 else None
        self.convflow1 = _conv(2, shape.flow[0], 7)
        self.convflow2 = _conv(*shape.flow)
        self.conv = _conv(shape.agreement[-1] + shape.flow[-1], shape.motion)

    def forward(self, flow: Tensor, agreement: Tensor) -> Tensor:
        fits = F.relu(self.convcorr1(agreement))
        if self.convcorr2 is not None:
            fits = F.relu(self.convcorr2(fits))
        moves = F.relu(self.convflow2(F.relu(self.convflow1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([fits, moves], dim=1))), flow], dim=1)


class _Gru(nn.Module):
    """A gated recurrent unit whose products are convolutions."""

    def __init__(self, hidden: int, inputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        padding = kernel[0] // 2, kernel[1] // 2
        for name in ("convz", "convr", "convq"):
            self.add_module(name, nn.Conv2d(hidden + inputs, hidden, kernel, padding=padding))

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        both = torch.cat([hidden, told], dim=1)
        update = torch.sigmoid(self.get_submodule("convz")(both))
        reset = torch.sigmoid(self.get_submodule("convr")(both))
        wanted = torch.tanh(self.get_submodule("convq")(torch.cat([reset * hidden, told], dim=1)))
        return (1 - update) * hidden + update * wanted


class _Recurrent(nn.Module):
    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        told = shape.context + shape.motion + 2
        self._count = len(shape.kernels)
        for number, kernel in enumerate(shape.kernels, start=1):
            self.add_module(f"convgru{number}", _Gru(shape.hidden, told, kernel))

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        for number in range(1, self._count + 1):
            hidden = self.get_submodule(f"convgru{number}")(hidden, told)
        return hidden


class _FlowHead(nn.Module):
    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape.hidden, shape.head, 3, padding=1)
        self.conv2 = nn.Conv2d(shape.head, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(hidden)))  # type: ignore[no-any-return]


class _Update(nn.Module):
    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.motion_encoder = _MotionEncoder(shape)
        self.recurrent_block = _Recurrent(shape)
        self.flow_head = _FlowHead(shape)

    def forward(
        self, hidden: Tensor, context: Tensor, flow: Tensor, agreement: Tensor
    ) -> tuple[Tensor, Tensor]:
        told = torch.cat([context, self.motion_encoder(flow, agreement)], dim=1)
        hidden = self.recurrent_block(hidden, told)
        return hidden, flow + self.flow_head(hidden)


class _Mask(nn.Module):
    """How each full-size pixel mixes the flows of the nine coarse ones around it."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        self.convrelu = _conv(shape.hidden, 256)
        self.conv = nn.Conv2d(256, 9 * _SHRINK**2, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        # The quarter evens out how fast this part and the others are trained.
        return 0.25 * self.conv(F.relu(self.convrelu(hidden)))  # type: ignore[no-any-return]


class Raft(nn.Module):
    """The network.

    Args:
        large: the large one of the two.
    """

    def __init__(self, *, large: bool) -> None:
        super().__init__()
        self._shape = shape = _LARGE if large else _SMALL
        self.feature_encoder = _Encoder(shape, shape.features, nn.InstanceNorm2d)
        self.context_encoder = _Encoder(
            shape, shape.hidden + shape.context, nn.BatchNorm2d if large else None
        )
        self.update_block = _Update(shape)
        self.mask_predictor = _Mask(shape) if shape.upsamples else None

    def forward(self, source: Tensor, target: Tensor, *, rounds: int = _ROUNDS) -> Tensor:
        """Give the flow (B, 2, H, W) in pixels of pictures (B, 3, H, W) in [-1, 1].

        Sides are multiples of 8, from 128 pixels on.
        """
        shape = self._shape
        one, other = self.feature_encoder(torch.cat([source, target])).chunk(2)
        pyramid = _agreements(one, other)
        hidden, context = self.context_encoder(source).split([shape.hidden, shape.context], dim=1)
        hidden, context = torch.tanh(hidden), F.relu(context)
        flow = one.new_zeros(len(one), 2, *one.shape[-2:])
        for _ in range(rounds):
            hidden, flow = self.update_block(hidden, context, flow, _around(pyramid, flow, shape.radius))
        if self.mask_predictor is None:
            size = _SHRINK * flow.shape[-2], _SHRINK * flow.shape[-1]
            return _SHRINK * F.interpolate(flow, size, mode="bilinear", align_corners=True)
        return _mixed(flow, self.mask_predictor(hidden))


def _agreements(one: Tensor, other: Tensor) -> list[Tensor]:
    """How well every place of `one` agrees with all of `other`, at every level: (B · h · w, 1, h', w')."""
    batch, channels, height, width = one.shape
    product = one.flatten(2).transpose(1, 2) @ other.flatten(2) / channels**0.5
    pyramid = [product.reshape(batch * height * width, 1, height, width)]
    while len(pyramid) < _LEVELS:
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return pyramid


def _around(pyramid: list[Tensor], flow: Tensor, radius: int) -> Tensor:
    """The agreements around where the flow leads to, (B, levels · (2 radius + 1)², h, w), x outermost."""
    batch, _, height, width = flow.shape
    x = flow[:, 0] + torch.arange(width, device=flow.device)
    y = flow[:, 1] + torch.arange(height, device=flow.device)[:, None]
    steps = torch.arange(-radius, radius + 1, device=flow.device)
    found = []
    for level, agreements in enumerate(pyramid):
        rows, columns = agreements.shape[-2:]
        across = (x.reshape(-1, 1, 1) / 2**level + steps[:, None]).expand(-1, -1, len(steps))
        down = (y.reshape(-1, 1, 1) / 2**level + steps).expand(-1, len(steps), -1)
        places = torch.stack([2 * across / (columns - 1) - 1, 2 * down / (rows - 1) - 1], dim=-1)
        sampled = F.grid_sample(agreements, places, mode="bilinear", align_corners=True)
        found.append(sampled.reshape(batch, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2)


def _mixed(flow: Tensor, mask: Tensor) -> Tensor:
    """The flow at full size: of every pixel, a mean of the nine coarse ones around, weighed by the mask."""
    batch, _, height, width = flow.shape
    weights = mask.reshape(batch, 1, 9, _SHRINK, _SHRINK, height, width).softmax(dim=2)
    around = F.unfold(_SHRINK * flow, 3, padding=1).reshape(batch, 2, 9, 1, 1, height, width)
    fine = (weights * around).sum(dim=2)  # (B, 2, 8, 8, h, w)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, _SHRINK * height, _SHRINK * width)


class RaftFlow:
    """RAFT as a `flow.FlowFunction`: see `flow.flow` for what it takes and gives.

    Args:
        network: with its weights.
        device: to run it on.
    """

    def __init__(self, network: Raft, device: torch.device) -> None:
        self._network = network.eval().to(device)
        self._device = device

    def __call__(self, source: NDArray[np.uint8], target: NDArray[np.uint8]) -> Flow:
        """Where each pixel of `source` lies in `target`."""
        height, width = source.shape[:2]
        with torch.inference_mode():
            found = self._network(self._picture(source), self._picture(target))[0, :, :height, :width]
        return np.ascontiguousarray(found.permute(1, 2, 0).cpu().numpy(), dtype=np.float32)

    def _picture(self, image: NDArray[np.uint8]) -> Tensor:
        height, width = image.shape[:2]
        below, right = (max(_LEAST_SIDE, -(-side // _SHRINK) * _SHRINK) - side for side in (height, width))
        padded = np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE))
        channels = np.broadcast_to(padded.reshape(*padded.shape[:2], -1), (*padded.shape[:2], 3))
        picture = torch.from_numpy(np.ascontiguousarray(channels.transpose(2, 0, 1)))
        return picture[None].to(self._device, torch.float32) / 127.5 - 1.0


def load_raft(path: Path) -> RaftFlow:
    """Load a checkpoint, .safetensors or a state dict of torch's; it runs on the GPU where there is one.

    Raises:
        ModelError: the file cannot be read, or is not RAFT in torchvision's layout.
    """
    state = _read(path)
    network = Raft(large="mask_predictor.conv.weight" in state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path} is not RAFT as torchvision keeps it; give weights of raft_small or raft_large: {reason}"
        ) from error
    return RaftFlow(network, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        EOFError,
        LookupError,  # of torch's unpickler, where a file is no pickle
        OSError,
        RuntimeError,
        SafetensorError,
        UnpicklingError,
        ValueError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the flow checkpoint {path} cannot be read: {reason}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict: save the network's state_dict() itself")
    return state
