"""Commands after an install without the extra `export`: what needs it says so in a line, the rest works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from toonstream.export.checkpoints import shipped_model

ABSENT = ("accelerate", "diffusers", "huggingface_hub", "onnx", "onnxscript", "transformers")


def toonstream(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); "
        f"from toonstream.cli import main; sys.exit(main({[*words]}))"
    )
    environment = {**os.environ, "TOONSTREAM_CACHE": str(folder), "HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )


def test_models_can_be_listed(tmp_path: Path) -> None:
    result = toonstream(tmp_path, "models", "list")
    assert result.returncode == 0, result.stderr
    assert "diffutoon" in result.stdout


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (("models", "get", "diffutoon"), "a model of several parts needs huggingface_hub"),
        (("export", str(shipped_model()), "-o", "exported"), "the export needs onnx"),
        (("engines", "verify", "toonlet", "--engine", "torch"), "the torch engine needs diffusers and tra"),
    ],
)
def test_what_needs_the_extra_names_it(words: tuple[str, ...], needed: str, tmp_path: Path) -> None:
    words = tuple(str(tmp_path / word) if word == "exported" else word for word in words)
    result = toonstream(tmp_path, *words)
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    assert needed in line
    assert line.endswith("run `pip install 'toonstream[export]'`")
