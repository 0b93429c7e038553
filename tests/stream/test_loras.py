"""`--lora FILE=WEIGHT` on a clip, as a user types it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from toonstream.cli import main
from toonstream.config import LoraChoice
from toonstream.errors import SettingError
from toonstream.export.checkpoints import shipped_model
from toonstream.stream.sources.file import FileSource


def test_a_lora_changes_what_is_drawn_as_strongly_as_asked(film: Callable[..., Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {}
    for name, value in load_file(shipped_model() / "unet" / "diffusion_pytorch_model.safetensors").items():
        if name.endswith((".to_v.weight", ".to_out.0.weight")):
            layer = name.removesuffix(".weight")
            state[f"unet.{layer}.lora_A.weight"] = torch.randn(2, value.shape[1]) / 3
            state[f"unet.{layer}.lora_B.weight"] = torch.randn(value.shape[0], 2) / 3
    save_file(state, tmp_path / "ink=2.safetensors")  # a name with a sign in it
    clip = film(frames=4)

    def drawn(*words: str) -> NDArray[np.uint8]:
        target = tmp_path / "toon.mp4"
        options = ["--engine", "onnxruntime", "--window", "2", "-q", "-o", str(target), *words]
        assert main([str(clip), *options]) == 0
        with FileSource(target) as source:
            return np.stack([frame.image for frame in source])

    lora = str(tmp_path / "ink=2.safetensors")
    plain, half, none = drawn(), drawn("--lora", f"{lora}=0.5"), drawn("--lora", f"{lora}=0")
    assert np.array_equal(plain, none)
    assert np.abs(plain.astype(float) - half.astype(float)).mean() > 1.0


@pytest.mark.parametrize(
    ("text", "file", "weight"),
    [
        ("ink.safetensors", "ink.safetensors", 1.0),
        ("ink.safetensors=0.8", "ink.safetensors", 0.8),
        ("a=b/ink.safetensors=-1", "a=b/ink.safetensors", -1.0),
        ("a=b.safetensors", "a=b.safetensors", 1.0),
    ],
)
def test_files_and_weights_are_told_apart(text: str, file: str, weight: float) -> None:
    assert LoraChoice.parse(text) == LoraChoice(file=file, weight=weight)


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "write FILE"), ("=0.5", "write FILE"), ("a=11", "-10 to 10"), ("a=nan", "-10 to 10")],
)
def test_what_makes_no_sense_is_refused(text: str, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        LoraChoice.parse(text)
