"""What goes wrong with a clip or its toon, as the command says it: one line, code 2, nothing half-written."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from toonstream.cli import main
from toonstream.stream.sources.file import FileSource

MakeClip = Callable[..., Path]
QUICK = ("--engine", "onnxruntime")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err.splitlines()


def refused(*words: object, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*map(str, words)]) == 2
    (line,) = lines(capsys)
    assert line.startswith("toonstream: ")
    return line


def write_noise(path: Path, *, frames: int, encoder: str = "libx264", side: int = 64) -> Path:
    """Pictures that take much room."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as clip:
        options = {"crf": "10"} if encoder == "libx264" else {}
        stream = clip.add_stream(encoder, rate=24, options=options)
        stream.width = stream.height = side
        stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
        for index in range(frames):
            image = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, 24)
            clip.mux(stream.encode(picture))
        clip.mux(stream.encode(None))
    return path


def frames_of(path: Path) -> int:
    with FileSource(path) as clip:
        return sum(1 for _ in clip)


def test_a_clip_without_a_frame_or_a_duration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with av.open("clip.mkv", "w") as clip:
        stream = clip.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        clip.start_encoding()
    said = refused("clip.mkv", *QUICK, capsys=capsys)
    assert re.search(r"clip\.mkv (holds no frame|cannot be read as a video clip)", said)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mkv"]


def test_a_clip_that_may_not_be_read(
    make_clip: MakeClip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_clip(seconds=0.1).chmod(0)
    monkeypatch.chdir(tmp_path)
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    assert "clip.mp4 may not be read: change its permissions" in refused("clip.mp4", capsys=capsys)


def test_a_corrupt_packet_in_the_middle_is_skipped_counted_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_noise(Path("clip.mkv"), frames=12, encoder="mjpeg")
    with av.open(str(path)) as clip:
        content = bytes([packet for packet in clip.demux(video=0) if packet.size][6])
    path.write_bytes(path.read_bytes().replace(content, bytes([77]) * len(content)))
    assert main(["clip.mkv", "-q", *QUICK]) == 2
    assert lines(capsys) == ["toonstream: clip.mkv: 1 corrupt packet(s) skipped"]
    assert frames_of(Path("clip.toon.mp4")) == 11


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk(tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write_noise(tmp_path / "clip.mp4", frames=40, side=96)
    output = small_disk / "toon.mp4"
    output.write_text("yesterday's")
    said = refused(clip, "-o", output, "-q", "--side-by-side", *QUICK, capsys=capsys)
    assert "the disk is full" in said
    assert "free some space" in said
    assert output.read_text() == "yesterday's"
    left = [path.name for path in small_disk.iterdir() if path != output]
    assert left in ([], ["toon.partial.mp4"])
    for name in left:
        assert f"what was finished is kept as {small_disk / name}" in said
        assert frames_of(small_disk / name) > 0


def test_an_output_that_may_not_be_written(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(seconds=0.1)
    for place, says in (("/proc/toon.mp4", "cannot be written"), ("/dev/full", "end it in .mp4")):
        said = refused(clip, "-o", place, *QUICK, capsys=capsys)
        assert place.rsplit("/", 1)[0] in said
        assert says in said
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
