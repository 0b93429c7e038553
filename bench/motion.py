"""Do the motion modules earn their place? Flow-warped error with them, without them, and of the teacher.

    python bench/motion.py CLIP [CLIP …] [--teacher STATE_DICT]

The flow-warped error of a video is Diffutoon's and Rerender-A-Video's: the mean squared difference, in levels
squared, between each frame and the frame before it moved along the optical flow of the *source* (DIS), where
that flow can be trusted. The source's own error is what camera noise and flow errors leave; the table gives
each video's as a multiple of it. `without` is the same UNet with its motion modules taken out, over the same
windows and noise.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toonstream.config import Settings
from toonstream.engines.engine import Engine, Network, NetworkSource
from toonstream.engines.torch import TorchEngine
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditions
from toonstream.stream.frame import Frame
from toonstream.stream.sources.file import FileSource
from toonstream.stream.stylizer import load_stylizer
from toonstream.stream.temporal.cuts import Scenes
from toonstream.stream.temporal.flow import flow, trusted
from toonstream.stream.temporal.measure import warped_error

Image = NDArray[np.uint8]


class _Nothing(nn.Module):
    """Stands where a motion module was."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def mean_warped_error(frames: Sequence[Image], sources: Sequence[Image]) -> float:
    """Mean flow-warped error of `frames`, in squared levels of 255, along the flow of `sources`."""
    errors = []
    for (before, after), (old, new) in zip(pairwise(frames), pairwise(sources), strict=True):
        back = flow(new, old)
        errors.append(warped_error(before, after, back, trusted(back, flow(old, new))) or 0.0)
    return float(np.mean(errors))


class Ablated:
    """The torch engine, which leaves the motion modules out of a UNet."""

    name = "torch"
    per_shape = False

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine

    def load(self, source: NetworkSource) -> Network:
        """Load, without them."""
        return self._engine.load(replace(source, build=lambda: _without_motion(source.build())))


def _without_motion(network: nn.Module) -> nn.Module:
    for name, modules in network.named_modules():
        if name.endswith("motion_modules") and isinstance(modules, nn.ModuleList):
            for index in range(len(modules)):
                modules[index] = _Nothing()
    return network


def draw(model: Model, frames: Sequence[Frame], settings: Settings, *, motion: bool) -> list[Image]:
    """Draw frames with the torch engine, with or without the motion modules."""
    torch_engine = TorchEngine(device=torch.device("cpu"))
    engine: Engine = torch_engine if motion else Ablated(torch_engine)
    stylizer = load_stylizer(model, settings.resolve(model.defaults), engine=engine, stopwatch=Stopwatch())
    height, width = frames[0].image.shape[:2]
    prepare = Scenes(
        Conditions(model.defaults.controlnets, size=(width, height), multiple=model.size_multiple)
    )
    toons = [toon for frame in frames for toon in stylizer.push(prepare(frame))]
    return [toon.toon.image for toon in [*toons, *stylizer.finish()]]


def teach(weights: Path, frames: Sequence[Frame]) -> list[Image]:
    """What the teacher, a CartoonGAN generator, makes of the frames one by one."""
    from toonstream.export.train.teacher import load_teacher

    generator = load_teacher(weights)
    drawn = []
    for frame in frames:
        tensor = torch.from_numpy(frame.image[..., ::-1].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            picture = generator(tensor)[0].float().permute(1, 2, 0).numpy()[..., ::-1]
        drawn.append(np.asarray(np.clip((picture + 1.0) * 127.5 + 0.5, 0, 255), dtype=np.uint8))
    return drawn


def read(path: Path, size: int, count: int) -> list[Frame]:
    """The first `count` frames of a clip, the middle square scaled to `size`."""
    with FileSource(path) as source:
        frames = list(islice(source, count))
    squares = []
    for frame in frames:
        height, width = frame.image.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        cut = frame.image[top : top + side, left : left + side]
        scaled = np.asarray(cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
        squares.append(Frame(index=frame.index, pts=frame.pts, time_base=frame.time_base, image=scaled))
    return squares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, nargs="+")
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--teacher", type=Path, help="a CartoonGAN state dict")
    parser.add_argument("--prompt", default="hosoda style")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--stride", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    arguments = parser.parse_args()
    model = open_model(arguments.model)
    print(f"{'clip':28s} {'source':>7s} {'teacher':>8s} {'without':>8s} {'with':>8s}  × source")
    settings = Settings(
        prompt=arguments.prompt, window=arguments.window, stride=arguments.stride, steps=arguments.steps
    )
    for path in arguments.clips:
        frames = read(path, arguments.size, arguments.frames)
        sources = [frame.image for frame in frames]
        own = mean_warped_error(sources, sources)
        ratios = [
            mean_warped_error(draw(model, frames, settings, motion=motion), sources) / own
            for motion in (False, True)
        ]
        shown = f"{'-':>8s}"
        if arguments.teacher:
            shown = f"{mean_warped_error(teach(arguments.teacher, frames), sources) / own:8.2f}"
        print(f"{path.stem:28s} {own:7.2f} {shown} {ratios[0]:8.2f} {ratios[1]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
