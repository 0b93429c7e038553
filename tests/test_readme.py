"""What the README tells people to type is what works."""

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from toonstream.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


SETUP, TESTS, *COMMANDS = (line for block in blocks("sh") for line in block.splitlines())


def test_the_first_command_sets_up_and_does_the_main_job() -> None:
    assert SETUP == "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/toonstream demo"


def test_the_second_command_is_what_ci_runs() -> None:
    assert "pip install -e '.[test]'" in TESTS
    assert "pytest" in TESTS
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == TESTS


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("toonstream")])
def test_the_commands_work(
    command: str, make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(seconds=0.5)
    words = shlex.split(command)[1:]
    small = [] if "--size" in words or "doctor" in words else ["--size", "48"]
    assert main([*words, *small, "--engine", "onnxruntime"]) == 0
    if "doctor" not in words:
        assert Path(words[words.index("-o") + 1] if "-o" in words else "clip.toon.mp4").is_file()


def test_the_python_example_works(
    make_clip: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    make_clip(seconds=0.5)
    Path("example.py").write_text(example)
    runpy.run_path("example.py")
    fps, seconds = map(float, capsys.readouterr().out.split())
    assert fps > 0
    assert seconds == pytest.approx(0.5)
    assert (tmp_path / "toon.mp4").is_file()


@pytest.mark.parametrize(
    "name", re.findall(r"`((?:bench|tests|export|stream|engines|server)/[\w./]*)`", README)
)
def test_what_the_readme_points_at_is_there(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", re.findall(r"python (bench/\w+\.py)", README))
def test_the_benches_are_there(name: str) -> None:
    assert (ROOT / name).is_file()


def test_every_picture_is_there() -> None:
    assert all((ROOT / name).is_file() for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))
