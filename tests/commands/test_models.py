import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from toonstream.cli import main
from toonstream.export.assemble import models_folder
from toonstream.export.checkpoints import open_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TOONSTREAM_CONFIG", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A preset of parts that are all here: an autoencoder, a text encoder and a UNet."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    base = tmp_path / "base"
    UNet2DConditionModel(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=2,
    ).save_pretrained(base / "unet")
    AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    ).save_pretrained(base / "vae")
    CLIPTextModel(
        CLIPTextConfig(
            hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=9
        )
    ).save_pretrained(base / "text_encoder")
    for name in ("tokenizer/tokenizer.json", "scheduler/scheduler_config.json"):
        (base / name).parent.mkdir()
        (base / name).write_text("{}")
    path = tmp_path / "mine.toml"
    path.write_text('[mine]\nprompt = "a"\n[mine.base]\nsource = "./base"\nlicence = "MIT"\n')
    return path


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert main(["models", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_help_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80


def test_the_list_says_size_licence_and_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("toonlet ")
    assert " MB  ready; Apache-2.0" in lines[0]
    assert any(line.startswith("diffutoon ") and " GB  not here; CreativeML" in line for line in lines)


def test_a_preset_is_shown_part_by_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "diffutoon"]) == 0
    text = capsys.readouterr().out
    assert "not here: toonstream models get diffutoon" in text
    assert "controlnet outline: lllyasviel/control_v11p_sd15_lineart\n    723 MB; licence OpenRAIL" in text
    assert "guidance = 7.0" in text


def test_from_parts_to_a_model(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = printed(capsys, "show", "mine", "--presets", mine)
    assert (before["here"], before["folder"], before["licence"]) == ("all parts here", None, "MIT")
    assert before["parts"][0]["bytes"] > 1000
    got = printed(capsys, "get", "mine", "--presets", mine)
    assert open_model(Path(got["folder"])).defaults.prompt == "a"
    after = printed(capsys, "show", "mine", "--presets", mine)
    assert (after["here"], after["folder"]) == ("ready", got["folder"])
    listed = {facts["name"]: facts for facts in printed(capsys, "--presets", mine)}
    assert listed["mine"] == after


def test_what_is_out_of_date_is_removed(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(printed(capsys, "get", "mine", "--presets", mine)["folder"])
    old = shutil.copytree(folder, folder.with_name("mine-0123456789abcdef"))
    left = shutil.copytree(folder, folder.with_name(".mine-0123456789abcdef.xyz"))
    lost = shutil.copytree(folder, folder.with_name("live-0123456789abcdef"))
    assert main(["models", "prune", "--presets", str(mine)]) == 0
    assert "was out of date and is removed" in capsys.readouterr().out
    assert not old.exists()
    assert not left.exists()
    assert lost.exists()  # the parts of `live` are not here, so nobody knows
    assert folder.exists()
    assert main(["models", "prune", "--presets", str(mine)]) == 0
    assert "nothing was out of date" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["shwo"], "invalid choice: 'shwo'"),
        (["show"], "say which: toonstream models show NAME"),
        (["show", "diffuton"], "did you mean diffutoon"),
        (["list", "diffutoon"], "leave out diffutoon"),
        (["--presets", "nowhere.toml"], "nowhere.toml is no file of presets"),
        (["get", "diffutoon"], "and the hub cannot be reached"),
    ],
)
def test_errors_are_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.splitlines()[-1].startswith("toonstream: ")
    assert not list(models_folder().glob("*"))
