"""Presets as TOML: those that ship, and a user's, which add to them and change them."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.errors import SettingError
from toonstream.export.checkpoints import open_model
from toonstream.export.parts.part import Part, is_hub_id
from toonstream.export.presets import Preset, find_preset, load_presets, user_presets


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TOONSTREAM_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "presets.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_those_that_ship() -> None:
    presets = load_presets()
    assert list(presets) == ["toonlet", "diffutoon", "diffutoon-fast", "live"]
    assert all(preset.about for preset in presets.values())
    folder = presets["toonlet"].folder
    assert folder is not None
    assert open_model(folder).defaults.name == "toonlet"
    for name in ("diffutoon", "diffutoon-fast", "live"):
        for part in presets[name].parts().values():
            assert part.on_hub
            assert part.licence
            assert part.bytes > 0


def test_diffutoon_has_the_settings_of_its_paper() -> None:
    preset = load_presets()["diffutoon"]
    wanted = {"guidance": 7.0, "steps": 10, "window": 16, "stride": 8, "size": 1536, "clip_skip": 2}
    assert wanted.items() <= preset.defaults.items()
    assert preset.defaults["motion_norm"] == "frame"
    assert {name: part.weight for name, part in preset.controlnets.items()} == {"outline": 0.5, "colour": 0.5}
    assert preset.scheduler_config["beta_schedule"] == "linear"


def test_nothing_that_those_that_ship_need_is_pickled_alone() -> None:
    for name in ("diffutoon", "diffutoon-fast", "live"):
        for part in load_presets()[name].parts().values():
            assert part.optional or not part.file.endswith((".pt", ".pth", ".bin", ".ckpt"))
            assert not part.source.endswith("/control_v11f1e_sd15_tile")  # has pickled weights alone


@pytest.mark.parametrize("name", ["diffutoon", "diffutoon-fast", "live"])
def test_the_schedulers_of_those_that_ship_can_be_made(name: str) -> None:
    from toonstream.export.parts.networks import scheduler_config
    from toonstream.stream.schedulers import make_scheduler

    preset = load_presets()[name]
    config = {**scheduler_config(None), **preset.scheduler_config}
    scheduler = make_scheduler(
        config, kind=str(preset.defaults["scheduler"]), steps=int(str(preset.defaults["steps"]))
    )
    assert scheduler.timesteps[0] == 999


def test_a_user_adds_a_preset(write: Any) -> None:
    path = write(
        """
        [mine]
        base = "./models/anime.safetensors"
        motion = { source = "someone/motion", file = "motion.ckpt", allow_pickle = true }
        prompt = "anime"
        guidance = 5
        styles = ["ink"]
        [mine.loras.line]
        source = "/data/line.safetensors"
        weight = 0.8
        [mine.embeddings."bad v1.3"]
        source = "~/bad.pt"
        """
    )
    mine = load_presets([path])["mine"]
    assert mine.base == Part(source=str(path.parent / "models"), file="anime.safetensors")
    assert mine.motion == Part(source="someone/motion", file="motion.ckpt", allow_pickle=True)
    assert mine.loras == {"line": Part(source="/data", file="line.safetensors", weight=0.8)}
    assert mine.embeddings["bad v1.3"] == Part(source=str(Path.home()), file="bad.pt")
    assert mine.defaults == {"prompt": "anime", "guidance": 5.0, "styles": ("ink",)}
    assert list(mine.parts()) == ["base", "motion", "tokenizer", "lora line", "embedding bad v1.3"]


def test_a_user_changes_single_fields(write: Any) -> None:
    before = load_presets()["diffutoon"]
    path = write(
        """
        [diffutoon]
        steps = 20
        motion = false
        base = "./anime.safetensors"
        [diffutoon.controlnets.outline]
        weight = 0.9
        [diffutoon.controlnets.colour]
        source = "./tile"
        [diffutoon.scheduler_config]
        beta_schedule = "scaled_linear"
        """
    )
    after = load_presets([path])["diffutoon"]
    assert after.defaults == {**before.defaults, "steps": 20}
    assert after.motion is None
    assert after.base == Part(source=str(path.parent), file="anime.safetensors")
    outline, colour = after.controlnets["outline"], after.controlnets["colour"]
    assert (outline.source, outline.weight) == (before.controlnets["outline"].source, 0.9)
    assert (colour.source, colour.weight, colour.licence) == (str(path.parent / "tile"), 0.5, "")
    assert after.scheduler_config == {**before.scheduler_config, "beta_schedule": "scaled_linear"}


def test_a_preset_like_another(write: Any) -> None:
    presets = load_presets([write('[mine]\nlike = "diffutoon"\nsteps = 3\n')])
    assert presets["mine"].parts() == presets["diffutoon"].parts()
    assert presets["mine"].defaults == {**presets["diffutoon"].defaults, "steps": 3}
    assert presets["diffutoon"].defaults["steps"] == 10


def test_later_files_win(write: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = home / ".config" / "toonstream"
    usual.mkdir(parents=True)
    (usual / "presets.toml").write_text("[live]\nsteps = 3\nwindow = 6\n", encoding="utf-8")
    assert load_presets()["live"].defaults["steps"] == 3
    live = load_presets([write("[live]\nsteps = 4\n")])["live"]
    assert (live.defaults["steps"], live.defaults["window"]) == (4, 6)
    monkeypatch.setenv("TOONSTREAM_CONFIG", str(write("[live]\nsteps = 5\n", "other.toml")))
    assert load_presets()["live"].defaults["steps"] == 5
    monkeypatch.setenv("TOONSTREAM_CONFIG", "nowhere.toml")
    with pytest.raises(SettingError, match=r"TOONSTREAM_CONFIG names nowhere\.toml, which is no file"):
        user_presets()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mine", "is no file of presets"),
        ("steps = 3", "steps stands outside of any preset"),
        ('[mine]\nbase = "a/b"\nstep = 3', "'step' is not known, did you mean steps"),
        ('[mine]\nbase = { source = "a/b", weigth = 3 }', "'weigth' is not known, did you mean weight"),
        ('[mine]\nbase = "a/b"\nsteps = "3"', "mine.steps must be of type int, and is '3'"),
        ('[mine]\nbase = "a/b"\nsteps = true', "mine.steps must be of type int"),
        ('[mine]\nbase = "a/b"\nclip_skip = 1.5', "mine.clip_skip must be of type int"),
        ("[mine]\nbase = 3", "mine.base must be a hub id, a path, or a table"),
        ("[mine.loras]\nx = 3", "mine.loras.x must be a hub id, a path, or a table"),
        ("[mine]\nloras = 3", "mine.loras must be a table of parts by name"),
        ("[mine]\nsteps = 3", "needs either a base or a folder"),
        ('[mine]\nbase = "a/b"\nfolder = "."', "needs either a base or a folder"),
        ('[mine]\nfolder = "."\nsteps = 3', "whose own toonstream.json holds the settings"),
        ("[mine]\nbase = { weight = 3 }", "base has no source"),
        ('[mine]\nlike = "diffuton"', "mine is like 'diffuton', did you mean diffutoon"),
        ('[mine]\nallow_pickle = "yes"\nbase = "a/b"', "allow_pickle must be of type bool"),
    ],
)
def test_mistakes_are_named(text: str, says: str, write: Any) -> None:
    with pytest.raises(SettingError) as error:
        load_presets([write(text)])
    assert says in str(error.value)
    assert "\n" not in str(error.value).replace("\\n", "")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    presets = load_presets()
    with pytest.raises(SettingError, match="did you mean diffutoon or diffutoon-fast"):
        find_preset("Diffuton", presets)
    with pytest.raises(SettingError, match="take one of toonlet, diffutoon, diffutoon-fast, live"):
        find_preset("xyzzy", presets)


def test_parts_may_be_left_out() -> None:
    preset = load_presets()["diffutoon"]
    left = preset.without({"annotator outline", "embedding verybadimagenegative_v1.3"})
    assert (left.annotators, left.embeddings, left.controlnets) == ({}, {}, preset.controlnets)


@given(st.text(min_size=1))
def test_a_source_is_a_hub_id_or_a_path(source: str) -> None:
    if is_hub_id(source):
        assert source.count("/") == 1
        assert not Path(source).is_absolute()
    assert not is_hub_id(f"./{source}")
    assert not is_hub_id(f"/{source}")


def test_a_preset_is_data() -> None:
    assert Preset(name="x", base=Part(source="a/b")) == Preset(name="x", base=Part(source="a/b"))
