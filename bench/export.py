"""What it takes to export networks of Stable Diffusion 1.5's full size: `python bench/export.py`.

Their weights are random, as an export does not depend on them. Each network is exported in a process of its
own; the goal is that the UNet with motion modules (1.3 G parameters) stays within 16 GB.
"""

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from toonstream.export.checkpoints import in_precision, open_model
from toonstream.export.onnx import export_network

_NETWORKS = ("unet", "controlnet_outline", "hint_outline", "vae_encoder", "vae_decoder", "text_encoder")
_BLOCK = 1 << 24  # random numbers, used again and again
_GB = 1e9  # bytes
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


def write_model(folder: Path) -> None:
    """Write a model folder of full-size networks, float16, tensor by tensor."""
    from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        motion = UNetMotionModel.from_unet2d(unet, MotionAdapter(), load_weights=False)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        networks: dict[str, Any] = {
            "unet": motion,
            "controlnet_outline": ControlNetModel.from_unet(unet, load_weights_from_unet=False),
            "vae": vae,
        }
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
    for name, network in networks.items():
        write_json(folder / name / "config.json", {**network.config, "_class_name": type(network).__name__})
        write_weights(folder / name / "diffusion_pytorch_model.safetensors", network.state_dict())
    write_json(folder / "text_encoder" / "config.json", text.config.to_dict())
    write_weights(folder / "text_encoder" / "model.safetensors", text.state_dict())
    write_json(folder / "model_index.json", {name: [] for name in networks})
    write_json(folder / "tokenizer" / "tokenizer.json", {})
    write_json(folder / "scheduler" / "scheduler_config.json", {})
    write_json(folder / "toonstream.json", {"name": "sd15", "prompt": "", "motion_norm": "frame"})


def write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write random float16 tensors of these shapes."""
    header, end = {}, 0
    for name, tensor in state.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    block = (np.random.default_rng(0).standard_normal(_BLOCK) * 0.02).astype(np.float16).tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        while end > 0:
            file.write(block[:end])
            end -= len(block)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, default=str))


def export_one(folder: Path, name: str, precision: Any) -> None:
    """Export one network, and print what it took as one JSON object."""
    model = in_precision(open_model(folder), precision)
    path = model.onnx_files[name]
    (weights,) = path.parent.glob("*.safetensors")
    begin = time.perf_counter()
    module = model.sources[name].build()
    built = time.perf_counter()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    export_network(module, path, weights, precision=precision)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    facts = {
        "parameters": parameters,
        "build_s": built - begin,
        "export_s": time.perf_counter() - built,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_bytes": usage.ru_maxrss * _RSS_UNIT,
        "onnx_bytes": path.stat().st_size,
    }
    print(json.dumps(facts))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=_NETWORKS, help=" ".join(_NETWORKS))
    parser.add_argument("--precision", default="float16", help="float16 | float32")
    parser.add_argument("--folder", type=Path, help="keep the model here (4.5 GB); it is written if need be")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        export_one(options.folder, options.one, options.precision)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        if not (folder / "toonstream.json").is_file():
            write_model(folder)
        print("network              parameters  load s  export s  CPU s  peak GB  ONNX MB")
        for name in options.networks:
            words = ["--folder", str(folder), "--one", name, "--precision", options.precision]
            result = subprocess.run(
                [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True
            )
            took = json.loads(result.stdout.splitlines()[-1])
            print(
                f"{name:20} {took['parameters'] / 1e6:8.0f} M {took['build_s']:7.1f} {took['export_s']:9.1f}"
                f" {took['cpu_s']:6.1f} {took['peak_bytes'] / _GB:8.1f} {took['onnx_bytes'] / 1e6:8.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
