"""The bench of attention to the past, tried at tiny size."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest

from toonstream.stream.temporal.picture import read_picture

MakeClip = Callable[..., Path]
BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> object:
    """The bench, as a module."""
    monkeypatch.syspath_prepend(BENCH)
    module = import_module("attention")
    monkeypatch.setattr(module, "LAYERS", (("mid",),))
    monkeypatch.setattr(module, "STRENGTHS", (4.0,))
    monkeypatch.setattr(module, "FRAMES", ((0, 2),))
    return module


def test_every_row_is_drawn_and_the_best_is_named(attention, make_clip, tmp_path) -> None:
    picture = tmp_path / "sheet.png"
    cv2.imwrite(str(picture), np.full((40, 40, 3), (20, 60, 220), np.uint8))
    table = tmp_path / "table.md"
    clip = make_clip("one.mp4")
    attention.main([str(clip), "--frames", "4", "--size", "32", "--picture", str(picture), "-o", str(table)])
    text = table.read_text()
    rows = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        "attends to",
        "---",
        "nothing",
        "remember 2",
        "… in mid",
        "… × 4",
        "… 2 frames, 0 of them the scene's first",
        "the picture",
        "… × 4",
    ]
    assert text.rstrip().endswith(("by 0.0%.", "there is no error along it."))


def test_blurred_rows_are_no_candidates(attention) -> None:
    table = {
        "nothing": {"ratio": 2.0, "sharpness": 1.0},
        "blurred": {"ratio": 1.0, "sharpness": 0.9},
        "steady": {"ratio": 1.5, "sharpness": 1.0},
    }
    assert attention.verdict(table).endswith(": steady, by 25.0%.")


def test_clips_that_stand_still_have_no_best(attention) -> None:
    still = {"nothing": {"ratio": None, "sharpness": 1.0}}
    assert "no motion" in attention.verdict(still)


def test_how_far_it_is_to_the_picture(attention, tmp_path) -> None:
    picture = tmp_path / "sheet.png"
    cv2.imwrite(str(picture), np.full((8, 8, 3), 255, np.uint8))
    goal = attention.mean_colour(read_picture(picture))
    plain = attention.mean_colour(np.zeros((4, 4, 3), np.uint8))
    assert attention._share(plain, plain, goal) == 0.0
    assert attention._share(goal, plain, goal) == pytest.approx(1.0)
