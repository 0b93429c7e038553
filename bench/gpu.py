"""What a stream costs on a GPU, network by network and end to end: `python bench/gpu.py`.

Stable Diffusion 1.5 with motion modules and two ControlNets, all with random weights: speed does not depend
on them. Every network is timed at the shapes that streams call it with, in torch (eager, and as CUDA graphs)
and in TensorRT-RTX where that takes the card. Frames a second follow from that for every setting; for the
settings that there are goals for, the stream itself is run. All in one call of less than ten minutes: what
matters most comes first, what does not fit in `--minutes` is left out, and said.

Every row is printed, and written to `--json`, as soon as it is there; one that fails is noted, and the next
one has its turn. Nothing is fetched. Of the packages beside torch it takes diffusers, and onnx for TensorRT;
nothing that reads or writes video:

    python bench/gpu.py --minutes 9 --json gpu.json     # on a machine with a GPU
    python bench/gpu.py --tiny                          # a trial of the script itself, anywhere

Where the package is not installed, PYTHONPATH=src does.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from toonstream.engines.engine import Engine, Network, NetworkSource, TensorSpec
from toonstream.engines.onnx_file import onnx_file
from toonstream.engines.store import EngineStore
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.engines.torch import TorchEngine
from toonstream.errors import ToonstreamError
from toonstream.export.networks.base import TIMESTEP, TensorModule, axis_length
from toonstream.export.shapes import Envelope, Triple, declared_inputs
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.schedulers import make_scheduler

CONTROLNETS = ("outline", "colour")
GUIDANCE = 7.0
FAILURES = (ToonstreamError, RuntimeError, ValueError, OSError)  # of one row; torch's are RuntimeErrors
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the networks are, and what is tried with them."""

    channels: tuple[int, ...]
    heads: int
    text: int
    groups: int
    vae: tuple[int, ...]
    tiny_vae: int
    sizes: tuple[int, ...]
    windows: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]
    calls: int  # that a time is the median of
    frames: int  # that a stream is timed for


FULL = Scale(
    channels=(320, 640, 1280, 1280), heads=8, text=768, groups=32, vae=(128, 256, 512, 512), tiny_vae=64,
    sizes=(512, 1024), windows=((8, 4), (16, 8)), steps=(1, 2, 4, 10), calls=10, frames=32,
)  # fmt: skip
TINY = Scale(
    channels=(16, 16, 16, 16), heads=2, text=16, groups=4, vae=(16, 16, 16, 16), tiny_vae=8,
    sizes=(64,), windows=((2, 1),), steps=(1, 2), calls=1, frames=2,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Call:
    """A network at one shape, in one engine.

    Attributes:
        seconds: of a run. tflops: that it does in a second. share: of what matrix products reach on the card.
        peak_gb: the most memory that torch had, weights included. card_gb: what was taken of the card's, by
            torch with what it keeps for later, and by TensorRT.
    """

    network: str
    engine: str
    size: int
    batch: int
    frames: int
    seconds: float
    tflops: float
    share: float
    peak_gb: float
    card_gb: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is asked of a stream."""

    size: int
    window: int
    stride: int
    guided: bool
    steps: int
    vae: str
    motion: bool = True


def build_network(role: str, scale: Scale, device: torch.device) -> TensorModule:
    """Make a network with random weights, in float32, on a device."""
    import diffusers

    from toonstream.export.networks.controlnet import ControlNet, HintEmbedding
    from toonstream.export.networks.unet import MotionUnet
    from toonstream.export.networks.vae import VaeDecoder

    shape: dict[str, Any] = {
        "block_out_channels": scale.channels,
        "cross_attention_dim": scale.text,
        "norm_num_groups": scale.groups,
    }
    levels = len(scale.channels)
    with torch.device(device), torch.no_grad():
        module: TensorModule
        match role:
            case "unet":
                module = MotionUnet(
                    diffusers.UNetMotionModel(
                        num_attention_heads=scale.heads, motion_num_attention_heads=scale.heads, **shape
                    )
                )
            case "plain_unet":
                module = MotionUnet(diffusers.UNet2DConditionModel(attention_head_dim=scale.heads, **shape))
            case "controlnet":
                module = ControlNet(diffusers.ControlNetModel(attention_head_dim=scale.heads, **shape))
            case "hint":
                module = HintEmbedding(diffusers.ControlNetModel(attention_head_dim=scale.heads, **shape))
            case "tiny_vae":
                width = (scale.tiny_vae,) * levels
                module = VaeDecoder(
                    diffusers.AutoencoderTiny(
                        encoder_block_out_channels=width, decoder_block_out_channels=width
                    )
                )
            case _:
                module = VaeDecoder(
                    diffusers.AutoencoderKL(
                        block_out_channels=scale.vae,
                        down_block_types=("DownEncoderBlock2D",) * levels,
                        up_block_types=("UpDecoderBlock2D",) * levels,
                        layers_per_block=2,
                        norm_num_groups=scale.groups,
                    )
                )
    return module.eval().requires_grad_(False)


@dataclass(kw_only=True)
class Record:
    """What was found so far.

    Attributes:
        path: where it is written as JSON after every row; None is nowhere.
        facts: of the machine. calls: timed. streams: run. left_out: what was not, and why.
    """

    path: Path | None
    facts: dict[str, object] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    streams: list[dict[str, object]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def save(self) -> None:
        """Write it all, or leave what was written as it is."""
        if self.path is None:
            return
        found = {
            **self.facts,
            "calls": [asdict(call) for call in self.calls],
            "streams": self.streams,
            "left_out": self.left_out,
        }
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(found, indent=2))
        partial.replace(self.path)

    def leave_out(self, line: str) -> None:
        """Note what is not to be had, and why."""
        print(f"left out: {line}", flush=True)
        self.left_out.append(line)
        self.save()

    @contextmanager
    def row(self, what: str) -> Iterator[None]:
        """Note that a row fails, and go on."""
        try:
            yield
        except FAILURES as error:
            lines = str(error).splitlines() or [type(error).__name__]
            self.leave_out(f"{what}: {lines[0]}")


class Bench:
    """Loads networks, times them, and keeps within its time.

    Args:
        scale: of the networks. device: where they run. seconds: that everything may take together.
        folder: for files that TensorRT reads, and what it builds. record: of what is found.
    """

    def __init__(
        self, scale: Scale, device: torch.device, *, seconds: float, folder: Path, record: Record
    ) -> None:
        self.scale = scale
        self.device = device
        self.record = record
        self._folder = folder
        self._deadline = time.monotonic() + seconds
        self._flops: dict[tuple[str, int, int, int], float] = {}
        self._hollows: dict[str, TensorModule] = {}
        self._free = self._free_bytes()
        self.rate = self._matrix_rate()

    def engines(self) -> Iterator[tuple[str, Engine]]:
        """Give the engines there are, by their names in the tables; what takes longest comes last."""
        if self.device.type == "cuda":
            yield "graphs", TorchEngine(device=self.device)
        yield "eager", TorchEngine(device=self.device, graphs=False)
        if self.device.type != "cuda":
            return
        with self.record.row("tensorrt-rtx"):
            yield (
                "tensorrt-rtx",
                TensorRtEngine(
                    "tensorrt-rtx",
                    shapes=lambda source: shapes_of(
                        source.name, self.scale, declared_inputs(onnx_file(source))
                    ),
                    store=EngineStore(self._folder / "engines"),
                    timeout=max(1.0, self._deadline - time.monotonic()),
                ),
            )

    def load(self, role: str, name: str, engine: Engine) -> Network:
        """Load a network into an engine; for TensorRT it is exported in float16 first."""
        onnx = self._exported(role) if name == "tensorrt-rtx" else None
        source = NetworkSource(
            name=role, onnx=onnx, build=lambda: build_network(role, self.scale, self.device)
        )
        return engine.load(source)

    def _exported(self, role: str) -> Path:
        from safetensors.torch import save_file

        from toonstream.export.onnx import export_network

        folder = self._folder / role
        folder.mkdir()
        module = build_network(role, self.scale, self.device)  # numbers are made quickest there
        state = {
            key.removeprefix("network."): value.half().cpu() for key, value in module.state_dict().items()
        }
        save_file(state, folder / "weights.safetensors")
        module.cpu().load_state_dict({f"network.{key}": value.float() for key, value in state.items()})
        export_network(module, folder / "model.onnx", folder / "weights.safetensors", precision="float16")
        return folder / "model.onnx"

    def in_time(self, what: str) -> bool:
        """Say whether there is time left; note what is left out where there is none."""
        if time.monotonic() < self._deadline:
            return True
        self.record.leave_out(f"{what}: no time was left")
        return False

    def time_call(self, role: str, engine: str, network: Network, size: int, batch: int, frames: int) -> None:
        """Time a network at one shape, and note it."""
        what = f"{role} in {engine}, {size}², batch {batch}, {frames} frames"
        if not self.in_time(what):
            return
        with self.record.row(what):
            sizes = {"batch": batch, "frames": frames, "h": size // 8, "w": size // 8, "tokens": 77}
            inputs = self._inputs(role, sizes, self.device)
            self._forget_peak()
            network(inputs)
            timed = [self._seconds(lambda: network(inputs)) for _ in range(self.scale.calls)]
            flops, seconds = self._count(role, sizes), statistics.median(timed)
            call = Call(
                network=role,
                engine=engine,
                size=size,
                batch=batch,
                frames=frames,
                seconds=seconds,
                tflops=flops / seconds / 1e12,
                share=flops / seconds / self.rate,
                **self._memory(),
            )
            self.record.calls.append(call)
            self.record.save()
            print(_row(call), flush=True)

    def _inputs(self, role: str, sizes: Mapping[str, int], device: torch.device) -> dict[str, Tensor]:
        """Make random inputs where they are used: what a large window takes, a CPU makes in seconds."""
        made = {}
        for spec in self._hollow(role).inputs:
            shape = [axis_length(axis, sizes) for axis in spec.shape]
            made[spec.name] = torch.randn(shape, device=device) * (400.0 if spec.name == TIMESTEP else 1.0)
        return made

    def _count(self, role: str, sizes: Mapping[str, int]) -> float:
        """Count a run's operations, on tensors that hold nothing."""
        key = role, sizes["batch"], sizes["frames"], sizes["h"]
        if key not in self._flops:
            inputs = self._inputs(role, sizes, torch.device("meta"))
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                self._hollow(role)(*inputs.values())
            self._flops[key] = float(counter.get_total_flops())
        return self._flops[key]

    def _hollow(self, role: str) -> TensorModule:
        """Give a network without weights."""
        if role not in self._hollows:
            self._hollows[role] = build_network(role, self.scale, torch.device("meta"))
        return self._hollows[role]

    def _seconds(self, run: Callable[[], object]) -> float:
        self._wait()
        begin = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _forget_peak(self) -> None:
        """Begin to look at memory anew: torch gives back what it keeps for later."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _memory(self) -> dict[str, float]:
        """Give `peak_gb` and `card_gb`, see `Call`: engines keep what they took until the end of a row."""
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0
        return {"peak_gb": peak / 1e9, "card_gb": (self._free - self._free_bytes()) / 1e9}

    def _free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else 0

    def _matrix_rate(self) -> float:
        """Operations a second that a large product of matrices reaches."""
        on_gpu = self.device.type == "cuda"
        side = 8192 if on_gpu else 512
        one = torch.randn(side, side, device=self.device, dtype=torch.float16 if on_gpu else torch.float32)
        one @ one
        return 2.0 * side**3 / min(self._seconds(lambda: one @ one) for _ in range(5))

    def stream(self, setting: Setting, engine: str, networks: Mapping[str, Network], goal: float) -> None:
        """Run a stream, hints in and pictures out, and note its frames a second once it is under way."""
        what = f"the stream in {engine}, {_shown(setting)}"
        if not self.in_time(what):
            return
        with self.record.row(what):
            self._forget_peak()
            fps = self._streamed(setting, networks)
            row = {"engine": engine, **asdict(setting), "fps": fps, "goal": goal, **self._memory()}
            self.record.streams.append(row)
            self.record.save()
            print(_stream_row(row), flush=True)

    def _streamed(self, setting: Setting, networks: Mapping[str, Network]) -> float:
        text = torch.randn(1, 77, self.scale.text, device=self.device)
        denoiser = Denoiser(
            networks,
            scheduler=make_scheduler(SCHEDULER, kind="ddim", steps=setting.steps),
            text=text,
            negative_text=text if setting.guided else None,
            settings=DenoiseSettings(
                window=setting.window,
                stride=setting.stride,
                steps=setting.steps,
                guidance=GUIDANCE if setting.guided else 1.0,
                controlnet_scales=dict.fromkeys(CONTROLNETS, 0.5),
            ),
            latent_channels=4,
        )
        hints = {name: torch.rand(3, setting.size, setting.size) for name in CONTROLNETS}
        filling = setting.window + (setting.steps + 1) * setting.stride
        done, begin = 0, 0.0
        for index in range(filling + self.scale.frames):
            if index == filling:
                self._wait()
                done, begin = 0, time.perf_counter()
            for committed in denoiser.push(hints):
                picture = networks[setting.vae]({"latents": committed.latents[None]})["image"][0]
                picture.add(1.0).mul_(127.5).clamp_(0.0, 255.0).to("cpu", torch.uint8)
                done += 1
        self._wait()
        return done / (time.perf_counter() - begin)


_ROLES = {  # as the stream names them, for the shapes that they are called with; the small ones first
    "hint": "hint_outline",
    "tiny_vae": "vae_decoder",
    "controlnet": "controlnet_outline",
    "plain_unet": "unet",
    "unet": "unet",
    "full_vae": "vae_decoder",
}


def shapes_of(role: str, scale: Scale, inputs: Sequence[TensorSpec]) -> dict[str, Triple]:
    """Give the shapes that a network is built for: those of all that is run, with guidance and without."""
    window, stride = max(scale.windows)
    plain, guided = (
        Envelope(
            size=(min(scale.sizes),) * 2,
            largest=(max(scale.sizes),) * 2,
            window=window,
            stride=stride,
            sides=sides,
        ).triples(_ROLES[role], inputs)
        for sides in (1, 2)
    )
    return {name: Triple(plain[name].min, guided[name].opt, guided[name].max) for name in plain}


def frames_per_second(setting: Setting, engine: str, calls: Sequence[Call]) -> float | None:
    """Work out what the networks allow; None where one of them was not timed."""
    sides = 2 if setting.guided else 1
    unet = ("unet", sides, setting.window) if setting.motion else ("plain_unet", sides, 1)
    needed = {
        unet: setting.steps / (setting.stride if setting.motion else 1),
        ("controlnet", sides * (setting.stride if setting.motion else 1), 1): len(CONTROLNETS)
        * setting.steps
        / (setting.stride if setting.motion else 1),
        ("hint", 1, 1): len(CONTROLNETS),
        (setting.vae, 1, 1): 1.0,
    }
    timed = {
        (call.network, call.batch, call.frames): call.seconds
        for call in calls
        if call.engine == engine and call.size == setting.size
    }
    if not needed.keys() <= timed.keys():
        return None
    return 1.0 / sum(timed[call] * often for call, often in needed.items())


def settings(scale: Scale) -> Iterator[Setting]:
    """Give every setting that is worked out."""
    for size, (window, stride), guided, steps, vae in itertools.product(
        scale.sizes, scale.windows, (False, True), scale.steps, ("tiny_vae", "full_vae")
    ):
        yield Setting(size=size, window=window, stride=stride, guided=guided, steps=steps, vae=vae)
    for size, vae in itertools.product(scale.sizes, ("tiny_vae", "full_vae")):
        yield Setting(size=size, window=1, stride=1, guided=False, steps=1, vae=vae, motion=False)


def goals(scale: Scale) -> Iterator[tuple[Setting, float]]:
    """Give the settings that there are goals for on an H200, with the frames a second that are wanted."""
    size = scale.sizes[0]
    for window, stride in scale.windows:
        yield Setting(size=size, window=window, stride=stride, guided=False, steps=2, vae="tiny_vae"), 24.0
    yield Setting(size=size, window=1, stride=1, guided=False, steps=1, vae="tiny_vae", motion=False), 60.0


def run(bench: Bench) -> None:
    """Run the streams with goals in every engine, and time every network."""
    for name, engine in bench.engines():
        run_engine(bench, name, engine)
        gc.collect()  # the next engine wants the memory


def run_engine(bench: Bench, name: str, engine: Engine) -> None:
    """Do what is to be done in one engine."""
    networks = load_all(bench, name, engine)
    for setting, wanted in goals(bench.scale):
        held = stream_networks(setting, networks)
        if held is None:
            bench.record.leave_out(f"the stream in {name}, {_shown(setting)}: it lacks a network")
        else:
            bench.stream(setting, name, held, wanted)
    for role, network in networks.items():
        for size, batch, frames in sorted(set(_shapes(role, bench.scale))):
            bench.time_call(role, name, network, size, batch, frames)


def load_all(bench: Bench, name: str, engine: Engine) -> dict[str, Network]:
    """Load what can be loaded, the small networks first: one that is refused says that all will be."""
    networks: dict[str, Network] = {}
    for role in _ROLES:
        what = f"{role} in {name}"
        if not bench.in_time(what):
            continue
        with bench.record.row(what):
            networks[role] = bench.load(role, name, engine)
        if not networks:
            break
    return networks


def stream_networks(setting: Setting, networks: Mapping[str, Network]) -> dict[str, Network] | None:
    """Give the networks of a stream by the names it has for them; None where one of them is not there."""
    roles = {
        "unet": "unet" if setting.motion else "plain_unet",
        **{f"hint_{controlnet}": "hint" for controlnet in CONTROLNETS},
        **{f"controlnet_{controlnet}": "controlnet" for controlnet in CONTROLNETS},
        setting.vae: setting.vae,
    }
    if not set(roles.values()) <= networks.keys():
        return None
    return {name: networks[role] for name, role in roles.items()}


def _shapes(role: str, scale: Scale) -> Iterator[tuple[int, int, int]]:
    """Give (size, batch, frames) of the calls that the settings make of a network."""
    for size, (window, stride), sides in itertools.product(scale.sizes, scale.windows, (1, 2)):
        match role:
            case "unet":
                yield size, sides, window
            case "plain_unet":
                yield size, 1, 1
            case "controlnet":
                yield size, sides * stride, 1
                yield size, 1, 1
            case _:
                yield size, 1, 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="that all of it may take (9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    parser.add_argument("--tiny", action="store_true", help="tiny networks and sizes: a trial of the script")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.tiny:
        parser.error("torch finds no NVIDIA GPU here; --tiny tries the script without one")
    os.environ["HF_HUB_OFFLINE"] = "1"
    device = torch.device("cuda" if on_gpu else "cpu")
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    record = Record(path=options.json)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            TINY if options.tiny else FULL,
            device,
            seconds=60 * options.minutes,
            folder=Path(folder),
            record=record,
        )
        record.facts = {"device": name, "torch": torch.__version__, "tflops": bench.rate / 1e12}
        record.save()
        print(
            f"{name}, torch {torch.__version__}; products of matrices reach {bench.rate / 1e12:.1f} TFLOP/s"
        )
        print("Rows as they come:", flush=True)
        run(bench)
    report(bench)


def report(bench: Bench) -> None:
    record = bench.record
    print("\n| stream | engine | fps | goal | peak GB | GB of the card |\n|---|---|---|---|---|---|")
    for row in record.streams:
        print(_stream_row(row))
    print("\n| network | engine | size | batch | frames | ms | TFLOP/s | share | peak GB | GB of the card |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for call in record.calls:
        print(_row(call))
    engines = list(dict.fromkeys(call.engine for call in record.calls))
    print(f"\nWhat the networks allow, frames a second:\n\n| setting | {' | '.join(engines)} |")
    print("|---" * (1 + len(engines)) + "|")
    for setting in settings(bench.scale):
        rates = [_number(frames_per_second(setting, engine, record.calls)) for engine in engines]
        print(f"| {_shown(setting)} | {' | '.join(rates)} |")
    for line in record.left_out:
        print(f"\nleft out: {line}")


def _row(call: Call) -> str:
    return (
        f"| {call.network} | {call.engine} | {call.size} | {call.batch} | {call.frames} "
        f"| {1000 * call.seconds:.2f} | {call.tflops:.1f} | {call.share:.0%} | {call.peak_gb:.1f} "
        f"| {call.card_gb:.1f} |"
    )


def _stream_row(row: Mapping[str, Any]) -> str:
    shown = _shown(Setting(**{name: row[name] for name in Setting.__dataclass_fields__}))
    return (
        f"| {shown} | {row['engine']} | {row['fps']:.1f} | {row['goal']:g} | {row['peak_gb']:.1f} "
        f"| {row['card_gb']:.1f} |"
    )


def _shown(setting: Setting) -> str:
    motion = f"d={setting.window} s={setting.stride}" if setting.motion else "no motion modules"
    guided = "guided" if setting.guided else "no guidance"
    return f"{setting.size}², {motion}, {guided}, {setting.steps} steps, {setting.vae.replace('_', ' ')}"


def _number(fps: float | None) -> str:
    return "-" if fps is None else f"{fps:.1f}"


if __name__ == "__main__":
    main()
