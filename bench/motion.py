"""Do the motion modules earn their place? Flow-warped error with them, without them, and of the teacher.

    python bench/motion.py CLIP [CLIP …] [--teacher STATE_DICT]

The flow-warped error of a video is the mean absolute difference, in grey levels, between each frame and
the frame before it moved along the optical flow of the *source* (DIS), where that flow can be trusted. The
source's own error is what camera noise and flow errors leave; the table gives each video's as a multiple
of it. `without` is the same UNet with its motion modules taken out, over the same windows and noise.
"""

import argparse
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from toonstream.engines.torch import TorchNetwork
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.export.tokenizer import PromptTokenizer, encode_prompt
from toonstream.stream.conditions import Conditions
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.frame import Frame
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.sources.file import FileSource
from toonstream.stream.stylizer import Stylizer

Image = NDArray[np.uint8]


class _Nothing(nn.Module):
    """Stands where a motion module was."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


def warped_error(frames: Sequence[Image], sources: Sequence[Image]) -> float:
    """Mean flow-warped error of `frames`, in grey levels of 255, along the flow of `sources`."""
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    errors = []
    for (before, after), (old, new) in zip(pairwise(frames), pairwise(sources), strict=True):
        grey_old, grey_new = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (old, new))
        back = search.calc(grey_new, grey_old, None)
        forth = search.calc(grey_old, grey_new, None)
        there = _warp(forth, back)
        drift = np.linalg.norm(back + there, axis=-1)
        reach = np.linalg.norm(back, axis=-1) + np.linalg.norm(there, axis=-1)
        trusted = drift < 0.01 * reach + 0.5
        difference = np.abs(after.astype(np.float32) - _warp(before.astype(np.float32), back)).mean(axis=-1)
        errors.append(float(difference[trusted].mean()) if trusted.any() else 0.0)
    return float(np.mean(errors))


def _warp(image: NDArray[np.float32], flow: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = flow.shape[:2]
    row, column = np.mgrid[:height, :width].astype(np.float32)
    moved = cv2.remap(
        image, column + flow[..., 0], row + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, dtype=np.float32)


def draw(
    model: Model, frames: Sequence[Frame], arguments: argparse.Namespace, *, motion: bool
) -> list[Image]:
    """Draw frames with the torch engine, with or without the motion modules."""
    unet: Any = model.sources["unet"].build()
    if not motion:
        for name, modules in unet.named_modules():
            if name.endswith("motion_modules"):
                for index in range(len(modules)):
                    modules[index] = _Nothing()
    cpu = torch.device("cpu")
    names = [kind + name for name in model.defaults.controlnets for kind in ("hint_", "controlnet_")]
    networks = {name: TorchNetwork(model.sources[name].build(), cpu, torch.float32) for name in names}
    networks["unet"] = TorchNetwork(unet, cpu, torch.float32)
    decoder = TorchNetwork(model.sources["vae_decoder"].build(), cpu, torch.float32)
    encoder = TorchNetwork(model.sources["text_encoder"].build(), cpu, torch.float32)
    text = encode_prompt(encoder, PromptTokenizer(model.tokenizer_path), arguments.prompt)
    settings = DenoiseSettings(
        window=arguments.window,
        stride=arguments.stride,
        steps=arguments.steps,
        controlnet_scales=model.defaults.controlnets,
    )
    scheduler = make_scheduler(model.scheduler_config, kind=model.defaults.scheduler, steps=arguments.steps)
    denoiser = Denoiser(
        networks,
        scheduler=scheduler,
        text=text,
        negative_text=None,
        settings=settings,
        latent_channels=model.latent_channels,
    )
    stylizer = Stylizer(denoiser, decoder, scale=model.latent_scale, shift=model.latent_shift)
    height, width = frames[0].image.shape[:2]
    prepare = Conditions(model.defaults.controlnets, size=(width, height), multiple=model.size_multiple)
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
    for path in arguments.clips:
        frames = read(path, arguments.size, arguments.frames)
        sources = [frame.image for frame in frames]
        own = warped_error(sources, sources)
        ratios = [
            warped_error(draw(model, frames, arguments, motion=motion), sources) / own
            for motion in (False, True)
        ]
        teacher = warped_error(teach(arguments.teacher, frames), sources) / own if arguments.teacher else None
        shown = f"{teacher:8.2f}" if teacher is not None else f"{'-':>8s}"
        print(f"{path.stem:28s} {own:7.2f} {shown} {ratios[0]:8.2f} {ratios[1]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
