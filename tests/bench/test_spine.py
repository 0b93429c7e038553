"""The benches of the spine, tried at tiny size, so that they work on the day their figures are wanted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "bench"


def bench(name: str, *words: str) -> list[str]:
    """Run one; gives the lines that it prints."""
    command = [sys.executable, str(BENCHES / name), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_pipeline_against_its_networks_alone() -> None:
    lines = bench("pipeline.py", "--engine", "onnxruntime", "--sides", "64", "--frames", "24")
    rows = [line.split() for line in lines if line.startswith(("live", "file"))]
    assert [row[0] for row in rows] == ["live", "file"]
    for _, side, steps, window, stride, *figures, share in rows:
        assert (side, steps, window, stride) == ("64", "1", "4", "3")
        assert all(float(figure) > 0 for figure in figures)
        assert 0 < int(share.rstrip("%")) <= 100
    assert re.fullmatch(r"toonstream --help: \d\.\d\d s", lines[-2])
    assert re.fullmatch(r"first committed frame at 64 after the command: [\d.]+ s, then [\d.]+ s", lines[-1])


def test_the_stream_against_the_offline_definition_and_the_textbook() -> None:
    words = ("--frames", "12", "--size", "64", "--steps", "2", "--engine", "onnxruntime")
    rows = {line.split()[0]: line.split()[1:] for line in bench("rolling.py", *words)[4:8]}
    assert list(rows) == ["textbook", "offline", "stream", "skewed"]
    assert [row[0] for row in rows.values()] == ["8/64", "4/64", "4/64", "4/64"]
    assert [row[1] for row in rows.values()] == ["16/128", "8/96", "8/96", "8/96"]
    assert all(float(row[-1]) < 1e-4 for row in rows.values())


@pytest.mark.skipif(sys.platform == "win32", reason="there is no getrusage")
def test_the_peaks_of_a_short_and_a_long_clip() -> None:
    words = ("--frames", "5", "11", "--size", "64", "48", "--engine", "onnxruntime")
    short, long, ratio = bench("memory.py", *words)
    assert [line.split()[0] for line in (short, long)] == ["5", "11"]
    assert all(float(line.split()[2]) > 100 for line in (short, long))
    assert re.fullmatch(r"ratio \d\.\d{3} \(goal: at most 1\.05\)", ratio)
