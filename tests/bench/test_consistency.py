"""The bench of consistency, tried at tiny size, with a tiny CLIP."""

import json
from collections.abc import Callable
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from toonstream.stream.frame import Frame

Bench = Callable[..., str]
MakeClip = Callable[..., Path]

BENCH = Path(__file__).parents[2] / "bench"
SMALL = ("--frames", "5", "--size", "32", "--style", "hosoda")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs it in this process, which is quicker; gives what it prints."""
    monkeypatch.syspath_prepend(BENCH)

    def run(*words: object) -> str:
        import_module("consistency").main([*map(str, words)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def clip_model(tmp_path: Path) -> Path:
    """A CLIP of random weights that knows four letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path / "clip"
    folder.mkdir()
    letters = ["a", "h", "o", "s"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": len(words), "eos_token_id": len(words) - 1},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=4,
    )
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(folder)
    return folder


def test_a_table_is_written_with_all_that_is_asked_for_and_a_run_goes_on_where_it_was(
    bench: Bench, make_clip: MakeClip, tmp_path: Path, clip_model: Path
) -> None:
    clips = [make_clip("one.mp4"), make_clip("two.mp4", seed=2)]
    head = tmp_path / "head.pth"
    torch.save({"weight": torch.ones(1, 4), "bias": torch.tensor([5.0])}, head)
    words = [*clips, "-o", tmp_path / "out", *SMALL, "--drift", "0.002", "--also", "wavefront+window=2"]
    scored = ["--clip-model", clip_model, "--aesthetic", head]
    rows = ["--rows", "frame by frame", "windows without motion modules"]
    printed = bench(*words, *rows, *scored)
    text = (tmp_path / "out" / "consistency.md").read_text()
    assert text in printed
    header, _, *lines = (line for line in text.splitlines() if line.startswith("|"))
    assert header.endswith("| drift ΔE | drift of sharpness | CLIP | aesthetic |")
    table = dict(zip([*rows[1:], "wavefront+window=2"], lines, strict=False))
    for name, line in table.items():
        assert line.startswith(f"| {name} | ")
    titles = [title.strip() for title in header.split("|")]
    alone = dict(zip(titles, table["frame by frame"].split("|"), strict=True))
    assert float(alone["UNet"]) == 1.0
    assert float(alone["ControlNet"]) == 2.0  # there are two of them
    assert alone.get("excess", "-").strip() in ("100%", "-")  # not there where no row has any
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "consistency.md", "cost.png", "drift.png", "figures.json", "ratio.png",
    }  # fmt: skip

    path = tmp_path / "out" / "figures.json"
    cells = json.loads(path.read_text())
    assert len(cells) == 3 * (2 + 1)
    for cell in cells.values():
        if "flicker" in cell:
            cell["flicker"] = 77.0
            assert -100 <= cell["clip"] <= 100
            assert abs(cell["aesthetic"] - 5.0) <= 2.0
    path.write_text(json.dumps(cells))
    assert "| 77.00 |" in bench(*words, *rows, *scored)  # what was known was not measured again
    assert json.loads(path.read_text()) == cells


def test_what_cannot_be_run_is_left_out_and_said(bench: Bench, make_clip: MakeClip, tmp_path: Path) -> None:
    words = [make_clip(seconds=0.2), "-o", tmp_path, *SMALL, "--drift", "0"]
    said = "Left out: frame+window=40: mode 'frame+window=40': window 40: take 1 to 32 frames"
    assert said in bench(*words, "--rows", "frame by frame", "--also", "frame+window=40")
    assert "drift" not in (tmp_path / "consistency.md").read_text()
    assert not (tmp_path / "drift.png").exists()


def test_a_row_that_is_not_there_is_told(bench: Bench) -> None:
    with pytest.raises(SystemExit, match="there is no row 'nonesuch'; there are: frame by frame, "):
        bench("clip.mp4", "-o", "out", "--rows", "nonesuch")


def test_a_clip_is_played_to_and_fro_without_a_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    image = np.zeros((1, 1, 3), np.uint8)
    frames = [Frame(index=i, pts=i, time_base=Fraction(1, 24), image=image + i) for i in range(4)]
    played = list(import_module("consistency").to_and_fro(frames, 14))
    assert [int(frame.image.max()) for frame in played] == [0, 1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert [frame.index for frame in played] == list(range(14))
