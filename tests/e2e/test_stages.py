"""What stands around the networks, through the command: every frame comes out, at its own time."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from toonstream.cli import main
from toonstream.stream.conditions import Conditioned
from toonstream.stream.stylizer import Stylizer, Toon

QUICK = ("--engine", "onnxruntime", "-q")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the frames that reach the networks."""
    real, indices = Stylizer.push, []

    def push(self: Stylizer, conditioned: Conditioned, **words: object) -> Iterator[Toon]:
        indices.append(conditioned.frame.index)
        return real(self, conditioned, **words)

    monkeypatch.setattr(Stylizer, "push", push)
    return indices


def pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as clip:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]


def write_film(path: Path, levels: list[int]) -> None:
    """Frames of a grey each, without loss, at uneven times."""
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for number, level in enumerate(levels):
            image = np.full((48, 64, 3), level, np.uint8)
            image[:, :32] //= 2  # a picture says something where it has contrast
            frame = VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = 33 * number + number % 2, Fraction(1, 1000)
            clip.mux(stream.encode(frame))
        clip.mux(stream.encode(None))


@pytest.mark.parametrize(
    "words",
    [
        ("--deflicker", "balanced"),
        ("--deflicker", "causal"),
        ("--deflicker", "accurate", "--deflicker-window", "1"),
        ("--deflicker", "accurate", "--matcher", "patchmatch", "--deflicker-window", "1"),
        ("--skip", "3"),
        ("--skip", "1", "--keyframes", "3", "--deflicker", "balanced", "--mode", "skewed"),
    ],
    ids=" ".join,
)
def test_every_frame_comes_out_at_its_own_time(
    words: tuple[str, ...], make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    clip = make_clip(seconds=0.2)
    assert main([str(clip), *QUICK, *words]) == 0
    before, after = pictures(clip), pictures(tmp_path / "clip.toon.mp4")
    assert [time for time, _ in after] == [time for time, _ in before]
    assert all(picture.std() > 5 for _, picture in after)


def test_keyframes_are_all_that_is_drawn(
    drawn: list[int], make_clip: Callable[..., Path], tmp_path: Path
) -> None:
    clip = make_clip(seconds=0.5)
    assert main([str(clip), *QUICK, "--keyframes", "4"]) == 0
    assert drawn == [0, 4, 8, 11]
    assert len(pictures(tmp_path / "clip.toon.mp4")) == 12


def test_repeated_frames_are_drawn_once(drawn: list[int], tmp_path: Path) -> None:
    write_film(tmp_path / "film.mkv", [90, 90, 90, 120, 120, 150, 150, 150, 180, 180])
    assert main([str(tmp_path / "film.mkv"), *QUICK, "--skip", "0", "-o", str(tmp_path / "toon.mkv")]) == 0
    assert drawn == [0, 3, 5, 8]
    before, after = pictures(tmp_path / "film.mkv"), pictures(tmp_path / "toon.mkv")
    assert [time for time, _ in after] == [time for time, _ in before]


def test_without_them_nothing_stands_in_between(drawn: list[int], tmp_path: Path) -> None:
    write_film(tmp_path / "film.mkv", [90, 90, 90, 90])
    assert main([str(tmp_path / "film.mkv"), *QUICK, "-o", str(tmp_path / "toon.mkv")]) == 0
    assert drawn == [0, 1, 2, 3]
