"""How long TensorRT-RTX builds, and how much memory that takes: `python bench/builds.py`.

First every network of the shipped model; then a UNet of Stable Diffusion 1.5's full size, 860 M parameters
with random weights in float16, written, exported and built as a user's checkpoint is. No GPU is needed: a
compute capability is named. One build runs at a time; its processor time says what it takes on any machine.
"""

import argparse
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from toonstream.engines.build import BuildJob, run_build
from toonstream.engines.tensorrt.flavour import FLAVOURS
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.networks.unet import MotionUnet
from toonstream.export.onnx import export_network
from toonstream.export.shapes import Envelope, declared_inputs

_RTX = FLAVOURS["tensorrt-rtx"]


def write_unet(folder: Path, *, motion: bool) -> tuple[Path, int]:
    """Write a full-size UNet: safetensors and ONNX in float16; gives the ONNX file and the parameters."""
    from diffusers import UNet2DConditionModel, UNetMotionModel

    torch.manual_seed(0)
    with torch.device("meta"):
        shape = {"sample_size": 64, "cross_attention_dim": 768}
        network = UNetMotionModel(**shape) if motion else UNet2DConditionModel(**shape, attention_head_dim=8)
    weights = folder / "diffusion_pytorch_model.safetensors"
    state = {
        name: (torch.randn(tensor.shape, dtype=torch.bfloat16) * 0.02).half()
        for name, tensor in network.state_dict().items()
    }
    save_file(state, weights)
    count = sum(tensor.numel() for tensor in state.values())
    network.load_state_dict(
        {name: tensor.float() for name, tensor in load_file(weights).items()}, assign=True
    )
    del state
    module = MotionUnet(network.eval().requires_grad_(False))
    export_network(module, folder / "model.onnx", weights, precision="float16")
    return folder / "model.onnx", count


def build(name: str, onnx: Path, envelope: Envelope, capability: tuple[int, int], role: str) -> None:
    """Build one network, and print what it took."""
    with tempfile.TemporaryDirectory() as folder:
        engine = Path(folder) / "engine"
        job = BuildJob(
            label=name,
            flavour=_RTX.name,
            onnx=onnx,
            shapes=envelope.triples(role, declared_inputs(onnx)),
            capability=capability,
        )
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        built = run_build(job, engine)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        size = engine.stat().st_size / 1e6
        peak = f"{built.peak_bytes / 1e9:.2f} GB" if built.peak_bytes else "unknown"
        print(f"{name:28} {built.seconds:8.1f} s {busy:8.1f} s {peak:>10} {size:10.1f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--compute-capability", default="8.9")
    parser.add_argument("--size", type=int, default=512, help="pixels on a side (512)")
    parser.add_argument("--window", type=int, default=8, help="frames that the UNet sees together (8)")
    parser.add_argument("--motion", action="store_true", help="with motion modules: 1.3 G parameters")
    parser.add_argument("--only", choices=["shipped", "full"], help="leave out the other half")
    options = parser.parse_args()
    major, minor = map(int, options.compute_capability.split("."))
    print(f"{_RTX.title} {_RTX.version} for {major}.{minor}, {os.cpu_count()} cores, {platform.machine()}\n")
    print(f"{'network':28} {'build':>10} {'processor':>10} {'peak':>10} {'engine':>13}")
    if options.only != "full":
        model = open_model(shipped_model())
        envelope = Envelope(size=(256, 256), window=4, stride=3)
        for role, source in model.sources.items():
            assert source.onnx is not None
            build(f"toonlet {role}", source.onnx, envelope, (major, minor), role)
    if options.only == "shipped":
        return
    size = (options.size, options.size)
    envelope = Envelope(size=size, window=options.window, stride=max(1, options.window // 2), sides=2)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        onnx, count = write_unet(Path(folder), motion=options.motion)
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        build(f"SD1.5 UNet, {count / 1e6:.0f} M", onnx, envelope, (major, minor), "unet")
        print(f"\n(writing and exporting it took {seconds:.0f} s and {peak / 1e9:.1f} GB)")


if __name__ == "__main__":
    main()
