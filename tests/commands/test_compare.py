"""`toonstream compare` as a user runs it, on small clips, with the model that ships."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from toonstream.cli import main
from toonstream.export.checkpoints import shipped_model
from toonstream.modes import mode_names

MakeClip = Callable[..., Path]
QUICK = ("--engine", "onnxruntime")  # the quickest to load


def pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time in seconds and picture of every frame."""
    with av.open(str(path)) as clip:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in clip.decode(video=0)]


def sound(path: Path) -> list[tuple[float, bytes]]:
    """Time in seconds and bytes of every packet."""
    with av.open(str(path)) as clip:
        packets = [packet for packet in clip.demux(audio=0) if packet.size]
        return [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets]


def test_help_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["compare", "--help"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert any(all(name in line for name in mode_names()) for line in lines)


def test_modes_are_shown_next_to_one_another_with_sound_times_and_figures(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip()
    words = [
        "--modes",
        "frame,wavefront+window=6+steps=2,anchored+fusion=0.5+deflicker=balanced",
        "--size",
        "64x48",
        "--style",
        "ink",
    ]
    assert main(["compare", str(clip), *words, "--json", *QUICK]) == 0
    before, after = pictures(clip), pictures(tmp_path / "clip.compare.mp4")
    assert [time for time, _ in after] == [time for time, _ in before]
    assert sound(tmp_path / "clip.compare.mp4") == sound(clip)
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    start, done = events[0], events[-1]
    assert start["modes"]["wavefront+window=6+steps=2"]["window"] == 6
    assert {mode["prompt"] for mode in start["modes"].values()} == {"ink style"}
    assert (start["frames"], done["frames_committed"]) == (12, 12)
    assert list(done["modes"]) == ["source", *start["modes"]]
    assert done["modes"]["source"]["ratio"] == 1.0
    assert all(done["modes"][mode]["frames"] == 12 for mode in done["modes"])
    for mode in start["modes"]:
        figures = done["modes"][mode]
        assert figures["ratio"] > 0
        assert figures["fps"] > 0
        assert 0 < figures["network_seconds"] < done["seconds"]
    assert {image.shape for _, image in after} == {(start["height"], start["width"], 3)}
    # The source comes first, under a band with words.
    rows, columns = start["height"] // 48, start["width"] // 64
    assert rows * columns >= 4
    band = start["height"] // rows - 48
    shown = after[5][1][band : band + 48, :64].astype(float)
    assert np.abs(shown - before[5][1]).mean() < 12
    assert all((image[:band, :64].max() > 150) and (np.median(image[:band, :64]) < 60) for _, image in after)


def test_a_part_can_be_compared_under_another_name(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make_clip()
    part = ["--start", "0.125", "--duration", "0.25", "-o", str(tmp_path / "part.mkv"), "--size", "32"]
    assert main(["compare", str(clip), "--modes", "frame", *part, *QUICK]) == 0
    assert len(pictures(tmp_path / "part.mkv")) == 6
    summary = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r".*part\.mkv: 6 frames, .*", summary[-4])
    assert summary[-3].split() == ["warped", "flicker", "sharpness", "outline", "colour", "fps"]
    assert [line.split()[0] for line in summary[-2:]] == ["source", "frame"]


def test_modes_are_drawn_as_the_main_job_draws_them(make_clip: MakeClip, tmp_path: Path) -> None:
    """With the same LoRA, and the same networks beside one another."""
    state = {}
    random = torch.Generator().manual_seed(0)
    for name, value in load_file(shipped_model() / "unet" / "diffusion_pytorch_model.safetensors").items():
        if name.endswith((".to_v.weight", ".to_out.0.weight")):
            layer = name.removesuffix(".weight")
            state[f"unet.{layer}.lora_A.weight"] = torch.randn(2, value.shape[1], generator=random) / 3
            state[f"unet.{layer}.lora_B.weight"] = torch.randn(value.shape[0], 2, generator=random) / 3
    save_file(state, tmp_path / "ink.safetensors")
    clip = make_clip()
    options = [
        str(clip),
        "-q",
        "--size",
        "64x48",
        "--engine",
        "openvino",
        "--lora",
        f"{tmp_path / 'ink.safetensors'}=0.5",
    ]
    assert main([*options, "--side-by-side"]) == 0
    assert main(["compare", *options, "--modes", "wavefront"]) == 0
    alone, compared = pictures(tmp_path / "clip.toon.mp4"), pictures(tmp_path / "clip.compare.mp4")
    assert len(alone) == len(compared)
    height, width = compared[0][1].shape[:2]
    band = height - 48
    for (_, one), (_, other) in zip(alone, compared, strict=True):
        shown = other[band:, width - 64 :].astype(float)
        assert np.abs(shown - one[:48, 64:]).mean() < 6.0  # two encodings


def test_a_stopped_run_leaves_what_was_drawn(make_clip: MakeClip, tmp_path: Path) -> None:
    make_clip(seconds=30.0, width=32, height=32)
    command = [sys.executable, "-m", "toonstream", "compare", "clip.mp4", "--json", *QUICK]
    with subprocess.Popen(
        [*command, "--modes", "frame,wavefront"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("frames_committed", 0) > 0:
                process.send_signal(signal.SIGINT)
                break
        done = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 128 + signal.SIGINT
    written = pictures(tmp_path / "clip.compare.mp4")
    assert done["stopped"]
    assert 0 < len(written) == done["frames_committed"] < 720
    assert done["modes"]["frame"]["frames"] == done["modes"]["wavefront"]["frames"] == len(written)


def test_a_clip_that_is_cut_off_is_compared_up_to_there(
    make_clip: MakeClip, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_clip("whole.mkv", seconds=2.0).read_bytes()
    (tmp_path / "clip.mkv").write_bytes(data[: len(data) * 6 // 10])
    words = ["compare", str(tmp_path / "clip.mkv"), "--modes", "frame", "--size", "32", "-q", *QUICK]
    assert main(words) == 2
    assert "cut off" in capsys.readouterr().err
    assert 3 < len(pictures(tmp_path / "clip.compare.mp4")) < 48


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "required: CLIP; see toonstream compare --help"),
        (["clip.mp4", "--modes", "wavfront"], "did you mean wavefront?"),
        (["clip.mp4", "--modes", "frame+steps=0"], "take 1 to 50"),
        (["clip.mp4", "--modes", ""], "name a mode"),
        (["clip.mp4", "--modes", "frame", "--size", "3000x2400"], "name fewer modes, or a smaller --size"),
        (["missing.mp4", "--modes", "frame"], "missing.mp4 does not exist"),
        (["clip.mp4", "-o", "clip.mp4", "--modes", "frame"], "the clip itself"),
        (["clip.mp4", "--modes", "frame", "--style", "hosda"], "did you mean hosoda"),
        (["clip.mp4", "--modes", "frame+style=hosda"], "did you mean hosoda"),
    ],
)
def test_errors_are_one_line_and_leave_everything_as_it_was(
    words: list[str],
    says: str,
    make_clip: MakeClip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    content = make_clip(seconds=0.1).read_bytes()
    assert main(["compare", *words]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert re.fullmatch(r"toonstream: [^\n]+\n", captured.err)
    assert (tmp_path / "clip.mp4").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
