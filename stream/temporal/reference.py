"""What windows attend to besides their own frames: frames that are done, and a reference picture.

**Which frames.** A window at a step attends to frames of its scene that have climbed from that step before
the window runs: the first `sink` of them and the latest `recent`. Climbed means that no window will run them
at that step again: what they looked like there is final, and binds what comes. The same frames have climbed
whether windows run as a wavefront or skewed; in anchored segments they are the committed ones. A frame that
several windows have run is remembered as the last of them saw it.

**How much.** All remembered frames together weigh `strength` times what the frame itself does, where logits
are alike, however many they are; the picture weighs `picture_strength` times.

**What it takes.** For each step, layer and guidance side, the features of `sink + recent` frames and of the
picture, whatever the stream's length; those of a GPU wait in host memory. They are kept as the UNet takes
them, in half precision where it computes in that.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import log

import torch
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.engines.parking import HostMemory, Parked
from toonstream.errors import SettingError
from toonstream.export.networks.reference import BIAS, EMPTY, FEATURES, REMEMBERED, divisor
from toonstream.stream.evaluate import as_taken

__all__ = ["FrameMemory", "Remembering", "empty_inputs", "feature_channels"]

Features = Mapping[str, Parked]  # of one frame at one step: layer → (sides, h, w, C)


@dataclass(frozen=True, kw_only=True)
class Remembering:
    """What to attend to.

    Attributes:
        sink: frames from the beginning of the scene, 0 or more.
        recent: latest frames, 0 or more.
        strength: how much they weigh together, next to the frame itself, above 0.
        picture_strength: how much a reference picture weighs, above 0.

    Raises:
        SettingError: a number makes no sense.
    """

    sink: int = 0
    recent: int = 0
    strength: float = 1.0
    picture_strength: float = 1.0

    def __post_init__(self) -> None:
        if min(self.sink, self.recent) < 0:
            raise SettingError(f"{min(self.sink, self.recent)} frames cannot be remembered: use 0 or more")
        if min(self.strength, self.picture_strength) <= 0:
            raise SettingError("a strength of 0 or less: leave out what is to have no weight")


@dataclass(kw_only=True, slots=True)
class _Level:
    """What is kept at one step: `kept` is what the last window had, until its frames climb."""

    recent: deque[Features]
    sink: list[Features] = field(default_factory=list)
    picture: list[Features] = field(default_factory=list)
    kept: tuple[range, Mapping[str, Tensor]] | None = None


class FrameMemory:
    """Remembers frames for the windows after them; a `ReferenceMemory`.

    Args:
        unet: a network with the inputs and outputs of `ReferenceUnet`.
        remembering: what to attend to.
        steps: denoising steps.
        sides: guidance sides, 1 or 2.
        device: where tensors are.
        look_at: gives the features of the reference picture for frames of some latent size (h, w), one
            mapping a step, of output name → (sides, 1, h, w, C). None is no picture.

    Raises:
        SettingError: there is nothing to attend to.
    """

    def __init__(
        self,
        unet: Network,
        *,
        remembering: Remembering,
        steps: int,
        sides: int,
        device: torch.device,
        look_at: Callable[[tuple[int, int]], Sequence[Mapping[str, Tensor]]] | None = None,
    ) -> None:
        self._unet = unet
        self._channels = feature_channels(unet)
        self._remembering = remembering
        self._places = remembering.sink + remembering.recent + (look_at is not None)
        if not self._places:
            raise SettingError(
                "there is nothing to remember: give a reference picture, or a number of frames"
            )
        self._sides = sides
        self._device = device
        self._look_at = look_at
        self._host = HostMemory(device)
        self._size: tuple[int, int] | None = None
        self._levels = [_Level(recent=deque(maxlen=remembering.recent)) for _ in range(steps)]

    @property
    def remembered(self) -> int:
        """Frames that are kept now, those of every step counted, and the picture at each."""
        return sum(len(level.sink) + len(level.recent) + len(level.picture) for level in self._levels)

    def inputs(self, step: int, frames: range, latent_size: tuple[int, int]) -> Mapping[str, Tensor]:
        """See `ReferenceMemory.inputs`."""
        self._fit(latent_size)
        level = self._levels[step]
        own = [*level.sink, *level.recent]
        bias = [log(self._remembering.picture_strength)] * len(level.picture)
        if own:
            bias += [log(self._remembering.strength / len(own))] * len(own)
        bias += [EMPTY] * (self._places - len(bias))
        places = [*level.picture, *own]
        for features in places:
            for parked in features.values():
                parked.bring()
        inputs = empty_inputs(self._channels, self._sides, self._places, latent_size, self._device)
        inputs[BIAS] = torch.tensor(bias, device=self._device).expand(self._sides, -1)
        for place, features in enumerate(places):
            for name, parked in features.items():
                inputs[name][:, place] = parked.take()
        return inputs

    def keep(self, step: int, frames: range, outputs: Mapping[str, Tensor]) -> None:
        """See `ReferenceMemory.keep`."""
        self._levels[step].kept = frames, outputs

    def climbed(self, step: int, indices: Sequence[int]) -> None:
        """See `ReferenceMemory.climbed`."""
        level = self._levels[step]
        kept, level.kept = level.kept, None
        if kept is None:  # the stream has ended: no window will come to this step
            return
        frames, outputs = kept
        for index in indices:
            room = len(level.sink) < self._remembering.sink
            (level.sink if room else level.recent).append(self._park(outputs, index - frames.start))

    def cut(self) -> None:
        """See `ReferenceMemory.cut`. The picture stays."""
        for level in self._levels:
            level.sink.clear()
            level.recent.clear()
            level.kept = None

    def _fit(self, latent_size: tuple[int, int]) -> None:
        """Look at the picture; and again where frames get another size, which forgets those of the old."""
        if self._size == latent_size:
            return
        if self._size is not None:
            self.cut()
        self._size = latent_size
        if self._look_at is None:
            return
        for level, outputs in zip(self._levels, self._look_at(latent_size), strict=True):
            level.picture = [self._park(outputs, 0)]

    def _park(self, outputs: Mapping[str, Tensor], place: int) -> Features:
        """Keep the features of one frame of a window."""
        # Copies: a slice would hold on to the whole window.
        features = {
            REMEMBERED + name.removeprefix(FEATURES): output[:, place].clone()
            for name, output in outputs.items()
        }
        return {name: self._host.park(tensor) for name, tensor in as_taken(self._unet, features).items()}


def feature_channels(unet: Network) -> dict[str, int]:
    """Channels of each layer's features, by the UNet's input."""
    channels = {}
    for tensor in unet.inputs:
        if tensor.name.startswith(REMEMBERED) and tensor.name != BIAS:
            assert isinstance(tensor.shape[-1], int)
            channels[tensor.name] = tensor.shape[-1]
    return channels


def empty_inputs(
    channels: Mapping[str, int], sides: int, places: int, latent_size: tuple[int, int], device: torch.device
) -> dict[str, Tensor]:
    """What the UNet is given where nothing is remembered."""
    height, width = latent_size
    inputs = {
        name: torch.zeros(
            sides, places, height // divisor(name), width // divisor(name), count, device=device
        )
        for name, count in channels.items()
    }
    return {BIAS: torch.full((sides, places), EMPTY, device=device), **inputs}
