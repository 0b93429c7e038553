"""The GPU bench, tried at tiny size: it must not fail on the day that a GPU is lent."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.py"


def bench(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_tiny_trial_tells_everything(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    result = bench("--tiny", "--minutes", "30", "--json", str(path))
    assert result.returncode == 0, result.stderr
    figures = json.loads(path.read_text())
    calls = [call for call in figures["calls"] if call["engine"] == "eager"]
    assert {call["network"] for call in calls} == {
        "unet", "plain_unet", "controlnet", "hint", "tiny_vae", "full_vae",
    }  # fmt: skip
    assert all(call["seconds"] > 0 and call["tflops"] > 0 for call in calls)
    assert [stream["goal"] for stream in figures["streams"] if stream["engine"] == "eager"] == [24.0, 60.0]
    assert all(stream["fps"] > 0 for stream in figures["streams"] if stream["engine"] == "eager")
    assert "| 64², d=2 s=1, guided, 2 steps, full vae |" in result.stdout
    assert "| - |" not in result.stdout.split("allow")[1]  # every setting could be worked out
    if not torch.cuda.is_available():
        assert figures["left_out"] == []


def test_what_does_not_fit_in_its_time_is_left_out_and_said() -> None:
    result = bench("--tiny", "--minutes", "0")
    assert result.returncode == 0, result.stderr
    assert "left out: hint in eager: no time was left" in result.stdout


def loaded() -> Any:
    """The script as a module."""
    spec = spec_from_file_location("gpu_bench", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["gpu_bench"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_row_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was found is on the disk before the next row begins."""
    script, path = loaded(), tmp_path / "figures.json"
    build, time_call = script.build_network, script.Bench.time_call
    seen: list[int] = []

    def refuse(role: str, *others: Any) -> Any:
        if role == "plain_unet":
            raise RuntimeError("CUDA error: misaligned address\nCompile with TORCH_USE_CUDA_DSA")
        return build(role, *others)

    def watch(*all_of_it: Any) -> None:
        seen.append(len(json.loads(path.read_text())["calls"]))
        time_call(*all_of_it)

    monkeypatch.setattr(script, "build_network", refuse)
    monkeypatch.setattr(script.Bench, "time_call", watch)
    monkeypatch.setattr(script, "goals", lambda scale: [(without_motion(script), 60.0)])
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--json", str(path)])
    script.main()
    figures = json.loads(path.read_text())
    assert {call["network"] for call in figures["calls"]} == {
        "hint", "tiny_vae", "controlnet", "unet", "full_vae",
    }  # fmt: skip
    assert "plain_unet in eager: CUDA error: misaligned address" in figures["left_out"]
    assert [line for line in figures["left_out"] if "it lacks a network" in line]
    assert seen == list(range(len(seen)))


def test_engines_are_built_for_every_shape_that_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With guidance and without: an engine refuses what it was not built for."""
    script = loaded()
    seen: dict[str, set[int]] = {}

    class Held:
        """A network that takes what one in TensorRT-RTX would."""

        def __init__(self, role: str, network: Any) -> None:
            self.role, self.network = role, network
            self.shapes = script.shapes_of(role, script.TINY, network.inputs)

        def __call__(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            for name, (low, _, high) in self.shapes.items():
                shape = tensors[name].shape
                within = all(
                    least <= axis <= most for least, axis, most in zip(low, shape, high, strict=True)
                )
                assert within, f"{self.role}: {name} is {shape}, built for {low} to {high}"
            seen.setdefault(self.role, set()).add(next(iter(tensors.values())).shape[0])
            made: dict[str, torch.Tensor] = self.network(tensors)
            return made

        def __getattr__(self, name: str) -> Any:
            return getattr(self.network, name)

    record = script.Record(path=None)
    bench = script.Bench(script.TINY, torch.device("cpu"), seconds=600, folder=tmp_path, record=record)
    load = bench.load
    monkeypatch.setattr(bench, "load", lambda role, *others: Held(role, load(role, *others)))
    guided = script.Setting(size=64, window=2, stride=1, guided=True, steps=2, vae="tiny_vae")
    both = [*script.goals(script.TINY), (guided, 1.0)]
    monkeypatch.setattr(script, "goals", lambda scale: both)
    script.run(bench)
    assert record.left_out == []
    assert seen["unet"] == seen["plain_unet"] | {2} == {1, 2}
    assert {1, 2, 4} <= seen["controlnet"]


def test_what_engines_take_beside_torch_is_measured_on_the_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = loaded()
    bench = script.Bench(
        script.TINY, torch.device("cpu"), seconds=1, folder=tmp_path, record=script.Record(path=None)
    )
    assert bench._memory() == {"peak_gb": 0.0, "card_gb": 0.0}
    bench.device = torch.device("cuda")
    bench._free = 60_000_000_000
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (57_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1_000_000_000)
    assert bench._memory() == {"peak_gb": 1.0, "card_gb": 3.0}


def without_motion(script: Any) -> Any:
    return script.Setting(size=64, window=1, stride=1, guided=False, steps=1, vae="tiny_vae", motion=False)


def test_it_wants_little_beside_torch_and_diffusers() -> None:
    """Machines with GPUs that are lent have those, or can be brought them, and have no network."""
    absent = ["aiortc", "av", "filelock", "onnxruntime", "openvino", "polygraphy", "tensorrt_rtx"]
    code = (
        f"import runpy, socket, sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "def refuse(*_): raise OSError('no network')\n"
        "socket.socket.connect = refuse\n"
        "sys.argv = ['gpu.py', '--tiny', '--minutes', '0']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_can_do() -> None:
    result = bench()
    assert result.returncode == 2
    assert "--tiny" in result.stderr
