"""The checks that are not tests, run as tests: one command is all that a contributor has to know."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import toonstream

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--quiet"],
        ["ruff", "format", "--check", "--quiet"],
        ["mypy"],
        ["importlinter.cli", "lint-imports"],
    ],
    ids=["ruff check", "ruff format", "mypy", "import-linter"],
)
def test_the_house_rules_hold(command: list[str]) -> None:
    module, *arguments = command
    code = "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
    words = ["-c", code] if module == "importlinter.cli" else ["-m", module, *arguments]
    result = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def modules() -> list[str]:
    return [info.name for info in pkgutil.walk_packages(toonstream.__path__, "toonstream.")]


@pytest.mark.parametrize("name", [name for name in modules() if not name.endswith("__main__")])
def test_what_a_module_exports_is_there(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert exported == sorted(exported, key=lambda word: (not word.isupper(), not word[0].isupper(), word))
    assert all(hasattr(module, word) for word in exported)
