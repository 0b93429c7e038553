"""Clips whose frames attend to the past and to a picture, by the command, with the model that ships."""

import re
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from toonstream.cli import main

QUICK = ("--engine", "onnxruntime", "--size", "48", "-q")


def pictures(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as clip:
        return [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    image = np.zeros((50, 80, 3), np.uint8)
    image[10:40, 10:40] = (40, 90, 230)
    path = tmp_path / "sheet.png"
    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return path


def test_a_clip_remembers_and_looks_at_a_picture(
    make_clip: Callable[..., Path], sheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path / "cache"))
    clip = make_clip(seconds=0.4)

    def render(name: str, *words: object) -> list[np.ndarray]:
        assert main([str(clip), "-o", str(tmp_path / name), *QUICK, *map(str, words)]) == 0
        return pictures(tmp_path / name)

    plain = render("plain.mp4")
    assert not (tmp_path / "cache" / "graphs").exists()
    attending = render("attending.mp4", "--remember", 2, "--reference", sheet)
    (folder,) = (tmp_path / "cache" / "graphs").iterdir()
    assert folder.name.startswith("toonlet-")
    assert len(attending) == len(plain)
    # The shipped model's self-attention does little; it draws the same clip.
    assert np.abs(np.subtract(attending, plain, dtype=np.float32)).mean() < 4.0
    render("again.mp4", "--remember", 2, "--reference", sheet)
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "attending.mp4").read_bytes()
    render("off.mp4", "--remember", 0)
    assert (tmp_path / "off.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--reference", "nowhere.png"), r"nowhere\.png: No such file or directory; give a picture"),
        (("--reference", "CLIP"), r"clip\.mp4 is not a picture; give a PNG, JPEG or WebP file"),
        (("--remember", "9"), r"remember 9: take 0 \(off\) to 8 frames"),
        (("--remember", "-1"), r"remember -1: take 0 \(off\) to 8 frames"),
    ],
)
def test_what_cannot_be_attended_to_is_said_in_one_line(
    words: tuple[str, str],
    message: str,
    make_clip: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clip = make_clip()
    given = [str(clip) if word == "CLIP" else word for word in words]
    assert main([str(clip), "-o", str(tmp_path / "toon.mp4"), *QUICK, *given]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"toonstream: [^\n]+\n", captured.err)
    assert re.search(message, captured.err)
    assert not (tmp_path / "toon.mp4").exists()
