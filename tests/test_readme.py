"""What the README tells people to type is what works."""

import re
import runpy
import shlex
import signal
import subprocess
import sys
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


RENDERS = [command for command in COMMANDS if shlex.split(command)[1] == "clip.mp4"]
SERVES = [command for command in COMMANDS if shlex.split(command)[1] == "serve"]
COMPARES = [command for command in COMMANDS if shlex.split(command)[1] == "compare"]
TELLS = [command for command in COMMANDS if command not in {*RENDERS, *SERVES, *COMPARES}]


@pytest.mark.parametrize("command", RENDERS)
def test_the_commands_that_render_work(
    command: str, make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(seconds=0.5)
    words = shlex.split(command)[1:]
    small = [] if "--size" in words else ["--size", "48"]
    assert main([*words, *small, "--engine", "onnxruntime"]) == 0
    assert Path(words[words.index("-o") + 1] if "-o" in words else "clip.toon.mp4").is_file()


@pytest.mark.parametrize("command", COMPARES)
def test_the_commands_that_compare_work(
    command: str, make_clip: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(seconds=0.5)
    assert main([*shlex.split(command)[1:], "--size", "48", "--engine", "onnxruntime"]) == 0
    assert Path("clip.compare.mp4").is_file()


@pytest.mark.parametrize("command", TELLS)
def test_the_commands_that_tell_and_build_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path / "cache"))
    assert main(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize("command", SERVES)
def test_the_commands_that_serve_work(command: str, tmp_path: Path) -> None:
    program, *words = shlex.split(command)
    if "--port" not in words:
        words += ["--port", "0"]  # the usual one may be taken
    process = subprocess.Popen(
        [sys.executable, "-m", program, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("toonstream: open http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(60) == 0


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


def options_of_the_programs() -> set[str]:
    """Every long option that some command, training stage or bench declares."""
    files = [*ROOT.glob("bench/*.py"), *(ROOT / "export" / "train").glob("*.py")]
    files += [
        ROOT / "src" / "toonstream" / "cli.py",
        *(ROOT / "src" / "toonstream" / "commands").glob("*.py"),
    ]
    return {option for file in files for option in re.findall(r'"(--[a-z][a-z-]+)"', file.read_text("utf-8"))}


@pytest.mark.parametrize("option", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README))))
def test_the_options_that_the_readme_names_are_there(option: str) -> None:
    assert option in {*options_of_the_programs(), "--help"}
