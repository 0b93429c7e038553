"""The GPU bench, tried at tiny size: it must not fail on the day that a GPU is lent."""

import json
import subprocess
import sys
from pathlib import Path

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
    assert "left out: unet in eager" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_can_do() -> None:
    result = bench()
    assert result.returncode == 2
    assert "--tiny" in result.stderr
