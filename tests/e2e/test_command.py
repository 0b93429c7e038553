"""The command as a user runs it, in a process of its own, on small clips, with the model that ships."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from toonstream.cli import main

MakeClip = Callable[..., Path]
QUICK = ("--engine", "onnxruntime")  # the quickest to load; one test takes the default


def toonstream(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toonstream", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def refused(*words: object, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command in this process, which is quicker, and give the one line that it says."""
    assert main([*map(str, words)]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"toonstream: [^\n]+\n", captured.err)
    assert captured.out == ""
    return captured.err


def pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time in seconds and picture of every frame."""
    with av.open(str(path)) as clip:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]


def sound(path: Path) -> list[tuple[float, bytes]]:
    """Time in seconds and bytes of every packet."""
    with av.open(str(path)) as clip:
        packets = [packet for packet in clip.demux(audio=0) if packet.size]
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets]


def test_a_clip_becomes_a_toon_clip_of_the_same_frames_times_and_sound(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    clip = make_clip()
    result = toonstream("clip.mp4", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "")
    assert "clip.toon.mp4: 12 frames, 64x48" in result.stderr
    before, after = pictures(clip), pictures(tmp_path / "clip.toon.mp4")
    assert [time for time, _ in after] == [time for time, _ in before]
    assert all(picture.shape == (48, 64, 3) for _, picture in after)
    assert sound(tmp_path / "clip.toon.mp4") == sound(clip)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip.toon.mp4"]


def test_json_tells_start_progress_and_done(make_clip: MakeClip, tmp_path: Path) -> None:
    make_clip()
    result = toonstream(
        "clip.mp4", "-o", "out.mkv", "--json", "--style", "ink", "--seed", 5, *QUICK, cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events if event["event"] != "progress"] == ["start", "done"]
    assert events[1]["event"] == "progress"
    start, done = events[0], events[-1]
    assert (start["prompt"], start["seed"], start["engine"], start["output"]) == (
        "ink style",
        5,
        "onnxruntime",
        "out.mkv",
    )
    assert (done["frames_in"], done["frames_committed"], done["stopped"]) == (12, 12, False)
    assert 0 < done["network_seconds"] < done["seconds"]
    assert len(pictures(tmp_path / "out.mkv")) == 12


def test_quiet_says_nothing(make_clip: MakeClip, tmp_path: Path) -> None:
    make_clip(seconds=0.2)
    result = toonstream("clip.mp4", "-q", *QUICK, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_side_by_side_and_contact_sheet(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip()
    words = ("--side-by-side", "--contact-sheet", "sheet.png", "--start", "0.125", "--duration", "0.25")
    assert toonstream("clip.mp4", *words, *QUICK, cwd=tmp_path).returncode == 0
    whole, both = pictures(clip), pictures(tmp_path / "clip.toon.mp4")
    assert len(both) == 6
    assert all(picture.shape == (48, 128, 3) for _, picture in both)
    left = both[0][1][:, :64].astype(float)
    assert np.abs(left - whole[3][1]).mean() < 12 < np.abs(left - both[0][1][:, 64:]).mean() + 12
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 48 + 8, 6 * (64 + 4) + 4, 3)


def test_the_same_seed_gives_the_same_pictures_and_the_skewed_wavefront_nearly(
    make_clip: MakeClip, tmp_path: Path
) -> None:
    clip = make_clip(seconds=0.25)
    # x264 itself does not repeat itself on pictures as small as the clip's own.
    common = ("--steps", "2", "--window", "4", "--stride", "2", "--size", "128", *QUICK)
    for name, words in {"a": (), "b": (), "c": ("--mode", "skewed"), "d": ("--seed", "9")}.items():
        output = tmp_path / f"{name}.mp4"
        assert main([str(clip), "-q", "-o", str(output), *common, *words]) == 0
    a, b, c, d = (
        np.stack([image for _, image in pictures(tmp_path / f"{name}.mp4")]).astype(int) for name in "abcd"
    )
    assert np.array_equal(a, b)
    assert np.abs(a - c).mean() < 1
    assert not np.array_equal(a, d)


def test_anchored_windows_give_every_frame_whatever_their_overlap(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip(seconds=0.4)
    common = ("--steps", "2", "--window", "4", "--size", "128", *QUICK)
    ways = {"a": ("anchored", "--overlap", "2"), "b": ("anchored", "--overlap", "0"), "c": ("wavefront",)}
    made = {}
    for name, words in ways.items():
        output = tmp_path / f"{name}.mp4"
        assert main([str(clip), "-q", "-o", str(output), *common, "--mode", *words]) == 0
        made[name] = pictures(output)
        assert [time for time, _ in made[name]] == [time for time, _ in pictures(clip)]
    a, b, c = (np.stack([image for _, image in made[name]]) for name in "abc")
    assert not np.array_equal(a, b)
    assert not np.array_equal(a, c)
    message = refused(clip, "--mode", "anchored", "--window", 4, "--overlap", 4, capsys=capsys)
    assert "overlap 4: take 0 to 3, less than the window's 4 frames" in message


@pytest.mark.parametrize(
    ("size", "expected"), [("50x38", (38, 50, 3)), ("33", (32, 44, 3)), ("96x32", (32, 96, 3))]
)
def test_any_size_comes_out_as_asked(
    size: str, expected: tuple[int, ...], make_clip: MakeClip, tmp_path: Path
) -> None:
    clip = make_clip(seconds=0.1)
    assert main([str(clip), "--size", size, "-q", *QUICK]) == 0
    assert {picture.shape for _, picture in pictures(tmp_path / "clip.toon.mp4")} == {expected}


def no_video(path: Path) -> None:
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("aac", rate=44_100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        clip.mux(stream.encode(frame))
        clip.mux(stream.encode())


def one_picture(path: Path, width: int, height: int) -> None:
    with av.open(str(path), "w", format="avi") as clip:
        stream = clip.add_stream("mpeg4" if width > 16 else "rawvideo", rate=24)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p" if width > 16 else "bgr24"
        clip.mux(
            stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24"))
        )
        clip.mux(stream.encode())


BAD_CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a directory": (Path.mkdir, "directory"),
    "an empty file": (Path.touch, "empty"),
    "a text file": (lambda path: path.write_text("this is no clip\n" * 50), "cannot be read"),
    "no video stream": (no_video, "video"),
    "one pixel": (lambda path: one_picture(path, 1, 1), "1x1"),
    "a huge frame": (lambda path: one_picture(path, 8000, 8000), ""),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_a_clip_that_cannot_be_used_is_told_in_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, says = BAD_CLIPS[name]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "clip.mp4")
    assert says in refused("clip.mp4", capsys=capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("command", ["", "compare"])
@pytest.mark.parametrize("name", [".", "", "/", ".."])
def test_the_folder_one_is_in_is_no_clip(name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a directory" in refused(*command.split(), name, capsys=capsys)


def test_a_contact_sheet_does_not_replace_what_is_drawn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"a picture")
    words = ("clip.mp4", "--contact-sheet", "sheet.png", "--reference", "sheet.png")
    assert "is what is drawn from" in refused(*words, capsys=capsys)
    assert "is what is drawn from" in refused("sheet.png", *words[1:3], capsys=capsys)
    assert sheet.read_bytes() == b"a picture"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-o", "clip.mp4"), "the clip itself"),
        (("-o", "folder"), "folder"),
        (("-o", "folder.mp4"), "directory"),
        (("-o", "nowhere/out.mp4"), "does not exist"),
        (("-o", "out.txt"), "out.txt"),
        (("--start", 99), "start earlier"),
        (("--style", "hosda"), "did you mean hosoda"),
        (("--prompt", "very " * 2000, *QUICK), "shorten it"),
        (("--contact-sheet", "folder.png"), "is a folder"),
        (("--contact-sheet", f"{'long' * 80}.png"), "cannot be written (File name too long)"),
        (("--flow", "raft.pth"), "add --fusion"),
    ],
)
def test_an_order_that_cannot_be_carried_out_is_told_in_one_line(
    words: tuple[str, ...],
    says: str,
    make_clip: MakeClip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content = make_clip().read_bytes()
    names = ["clip.mp4", "folder", "folder.mp4", "folder.png"]
    for name in names[1:]:
        Path(name).mkdir()
    assert says in refused("clip.mp4", *words, capsys=capsys)
    assert (tmp_path / "clip.mp4").read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_an_existing_output_survives_a_run_that_fails(
    make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip()
    Path("clip.toon.mp4").write_text("precious")
    assert "shorten it" in refused("clip.mp4", "--prompt", "very " * 2000, *QUICK, capsys=capsys)
    assert Path("clip.toon.mp4").read_text() == "precious"


def test_a_clip_that_is_cut_off_is_rendered_up_to_there(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip("whole.mkv", seconds=2.0)
    data = clip.read_bytes()
    (tmp_path / "clip.mkv").write_bytes(data[: len(data) * 6 // 10])
    result = toonstream("clip.mkv", *QUICK, cwd=tmp_path)
    assert result.returncode == 2
    assert "cut off" in result.stderr.splitlines()[-1]
    assert 3 < len(pictures(tmp_path / "clip.toon.mp4")) < 48


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_leaves_what_was_committed(
    number: signal.Signals, make_clip: MakeClip, tmp_path: Path
) -> None:
    clip = make_clip(seconds=60.0, width=32, height=32)
    command = [sys.executable, "-m", "toonstream", "clip.mp4", "--json", *QUICK]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("frames_committed", 0) > 0:
                process.send_signal(number)
                break
        done = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 128 + number
    written = pictures(tmp_path / "clip.toon.mp4")
    assert done["event"] == "done"
    assert done["stopped"]
    assert 0 < len(written) == done["frames_committed"] < 1440
    assert [time for time, _ in written] == [time for time, _ in pictures(clip)[: len(written)]]
    assert done["clip_seconds"] == pytest.approx(len(written) / 24, abs=0.01)
    assert sound(tmp_path / "clip.toon.mp4")[-1][0] <= written[-1][0] + 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "clip.toon.mp4"]


def test_the_demo_renders_its_own_scene(tmp_path: Path) -> None:
    result = toonstream("demo", "scenes", "--duration", 0.2, "--size", 48, *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "scenes").iterdir()} == {"scene.mp4", "scene.toon.mp4"}
    assert pictures(tmp_path / "scenes" / "scene.toon.mp4")[0][1].shape == (48, 2 * 86, 3)
