"""The rolling window against the offline definition and the textbook's cost: results, calls and times.

    python bench/rolling.py [--engine torch] [--model FOLDER] [--frames 40] [--window 8] …

Four ways over the same clip, with the same networks:

textbook   the clip as a whole; each guidance side swept on its own, ControlNets anew for every window
offline    the clip as a whole; both sides in one batch, ControlNets once per (frame, step, side)
stream     frame by frame, wavefront
skewed     frame by frame, skewed wavefront: the windows of an arrival as one batch
"""

import argparse
import runpy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toonstream.config import Mode
from toonstream.engines.engine import Network, TensorSpec
from toonstream.engines.select import open_engine
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.tokenizer import PromptTokenizer, encode_prompt
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.schedulers import make_scheduler

OFFLINE = Path(__file__).parents[1] / "tests" / "stream" / "offline.py"


@dataclass(kw_only=True)
class Metered:
    """A network that counts its calls, the frames in them (sides each) and its seconds."""

    network: Network
    calls: int = 0
    frames: int = 0
    seconds: float = 0.0
    inputs: tuple[TensorSpec, ...] = field(init=False)
    outputs: tuple[TensorSpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.inputs, self.outputs = self.network.inputs, self.network.outputs

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run, and wait for a GPU to be done."""
        start = time.perf_counter()
        outputs = self.network(tensors)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start
        self.calls += 1
        sample = tensors.get("sample")
        if sample is not None:
            self.frames += len(sample) * (sample.shape[1] if sample.dim() == 5 else 1)
        return outputs


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One way over the clip."""

    name: str
    latents: Tensor
    seconds: float
    meters: Mapping[str, Metered]
    lookahead: int

    def total(self, prefix: str, what: str) -> Any:
        """The sum of what the networks of a kind were metered at."""
        return sum(getattr(meter, what) for name, meter in self.meters.items() if name.startswith(prefix))


Hints = Sequence[Mapping[str, Tensor]]
Way = Callable[[Mapping[str, Network], Hints], tuple[list[Tensor], int]]


def ways(common: Mapping[str, Any]) -> dict[str, Way]:
    """What is compared: each takes networks and hints, and gives the latents and the largest look-ahead."""
    offline = runpy.run_path(str(OFFLINE))["offline"]

    def whole(*, textbook: bool) -> Way:
        def run(networks: Mapping[str, Network], hints: Hints) -> tuple[list[Tensor], int]:
            with torch.inference_mode():
                return offline(networks, hints, **common, textbook=textbook), len(hints)

        return run

    def stream(mode: Mode) -> Way:
        def run(networks: Mapping[str, Network], hints: Hints) -> tuple[list[Tensor], int]:
            settings = replace(common["settings"], mode=mode)
            denoiser = Denoiser(networks, **{**common, "settings": settings})
            latents, lookahead = [], 0
            for frame in hints:
                latents += [committed.latents for committed in denoiser.push(frame)]
                lookahead = max(lookahead, denoiser.lookahead)
            return latents + [committed.latents for committed in denoiser.finish()], lookahead

        return run

    return {
        "textbook": whole(textbook=True),
        "offline": whole(textbook=False),
        "stream": stream("wavefront"),
        "skewed": stream("skewed"),
    }


def measure(networks: Mapping[str, Network], hints: Hints, common: Mapping[str, Any]) -> list[Measured]:
    """Run every way once, after a short clip of its own that warms the networks up."""
    settings: DenoiseSettings = common["settings"]
    measured = []
    for name, run in ways(common).items():
        run(networks, hints[: settings.window + 2 * settings.steps * settings.stride])
        meters = {role: Metered(network=network) for role, network in networks.items()}
        start = time.perf_counter()
        latents, lookahead = run(meters, hints)
        seconds = time.perf_counter() - start
        stacked = torch.stack(latents).cpu()
        measured.append(
            Measured(name=name, latents=stacked, seconds=seconds, meters=meters, lookahead=lookahead)
        )
    return measured


def moving_hints(names: Sequence[str], frames: int, size: int) -> list[dict[str, Tensor]]:
    """Hints with content that moves: a drifting pattern of stripes and colours."""
    rows, columns = torch.meshgrid(torch.arange(size) / size, torch.arange(size) / size, indexing="ij")
    hints = []
    for frame in range(frames):
        waves = [torch.sin(20 * rows + k * 9 * columns + 0.3 * frame) for k in range(1, 4)]
        picture = torch.stack(waves) / 2 + 0.5
        hints.append({name: picture if name == "colour" else (picture > 0.9).float() for name in names})
    return hints


def report(measured: Sequence[Measured]) -> None:
    offline = next(way for way in measured if way.name == "offline")
    frames = len(offline.latents)
    print(
        f"{'':10}{'UNet':>14}{'ControlNets':>16}{'networks':>10}{'wall':>9}{'a frame':>10}"
        f"{'against':>9}{'most frames':>13}{'largest':>12}"
    )
    print(
        f"{'':10}{'calls/frames':>14}{'calls/frames':>16}{'s':>10}{'s':>9}{'ms':>10}"
        f"{'textbook':>9}{'waiting':>13}{'difference':>12}"
    )
    for way in measured:
        calls = f"{way.total('unet', 'calls')}/{way.total('unet', 'frames')}"
        control = f"{way.total('controlnet', 'calls')}/{way.total('controlnet', 'frames')}"
        difference = (way.latents - offline.latents).abs().max().item()
        print(
            f"{way.name:10}{calls:>14}{control:>16}{way.total('', 'seconds'):>10.2f}{way.seconds:>9.2f}"
            f"{1000 * way.seconds / frames:>10.1f}{measured[0].seconds / way.seconds:>8.2f}×"
            f"{way.lookahead:>13}{difference or 0:>12.2g}"
        )
    print(f"latents: standard deviation {offline.latents.std():.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--model", type=Path, default=shipped_model())
    parser.add_argument("--scheduler", help="ddim, lcm or euler; the model's own otherwise")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--size", type=int, default=256, help="pixels on a side")
    parser.add_argument("--window", type=int, default=8)
    parser.add_argument("--stride", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=2.0)
    options = parser.parse_args()
    model = open_model(options.model)
    engine = open_engine(options.engine)
    scales = model.defaults.controlnets
    roles = ["unet", *(f"{part}_{name}" for name in scales for part in ("hint", "controlnet"))]
    encoder, tokenizer = engine.load(model.sources["text_encoder"]), PromptTokenizer(model.tokenizer_path)
    common = {
        "scheduler": make_scheduler(
            model.scheduler_config, kind=options.scheduler or model.defaults.scheduler, steps=options.steps
        ),
        "text": encode_prompt(encoder, tokenizer, model.defaults.prompt),
        "negative_text": encode_prompt(encoder, tokenizer, model.defaults.negative_prompt),
        "settings": DenoiseSettings(
            window=options.window,
            stride=options.stride,
            steps=options.steps,
            guidance=options.guidance,
            controlnet_scales=scales,
        ),
        "latent_channels": model.latent_channels,
    }
    print(
        f"{model.defaults.name} on {engine.name}, {torch.get_num_threads()} threads: {options.frames} frames "
        f"{options.size}², window {options.window}, stride {options.stride}, {options.steps} steps, "
        f"guidance {options.guidance:g}\n"
    )
    networks = {role: engine.load(model.sources[role]) for role in roles}
    report(measure(networks, moving_hints(list(scales), options.frames, options.size), common))


if __name__ == "__main__":
    main()
