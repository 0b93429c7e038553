"""Work in a process of its own, whatever that says and however it ends."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from toonstream.engines.process import follow
from toonstream.errors import EngineError


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, code: int = 0
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Follow a program that writes these lines; gives what came with `done`, and the events before."""
    program = folder / "python"
    said = "\n".join(lines)
    program.write_text(f"#!/bin/sh\nread job\ncat <<'END'\n{said}\nEND\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    heard: list[Mapping[str, Any]] = []
    done = follow("module", {}, label="toy", what="work", heard=heard.append, timeout=60.0)
    return done, heard


def test_events_are_heard_and_what_libraries_print_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of what they print is JSON, too."""
    done, heard = run(
        tmp_path,
        monkeypatch,
        "a library says hello",
        "3",
        '{"level": "info"}',
        '{"event": "said", "line": "half of it"}',
        '{"event": "done", "peak_bytes": 5}',
    )
    assert [event["line"] for event in heard] == ["half of it"]
    assert done["peak_bytes"] == 5


def test_an_error_is_told_for_what_it_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="toy: out of luck"):
        run(tmp_path, monkeypatch, '{"event": "error", "message": "out of luck"}', code=1)


def test_the_last_words_of_what_dies_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="toy: the process of the work ended with 3: 4 out of luck;"):
        run(tmp_path, monkeypatch, "4", "out of luck", code=3)


def test_what_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec cat\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(EngineError, match="toy: the work takes too long and was given up; have patience"):
        follow("module", {}, label="toy", what="work", heard=print, timeout=0.0, longer="; have patience")
