from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.config import Mode, Settings, Size
from toonstream.errors import SettingError
from toonstream.export.checkpoints import Defaults
from toonstream.modes import FRAME, mode_names, mode_options, parse_mode, parse_modes, parts_off

BASE = Settings(size=Size(short=64), seed=3, start=0.5)


@pytest.mark.parametrize("name", get_args(Mode))
def test_a_name_is_what_the_option_takes(name: Mode) -> None:
    assert parse_mode(name, BASE) == Settings(size=Size(short=64), seed=3, start=0.5, mode=name)


def test_frame_by_frame_is_a_window_of_one_whatever_the_model_likes() -> None:
    likes = Defaults(
        name="m", prompt="p", window=8, mode="anchored", deflicker="balanced", remember=2, fusion=0.5
    )
    settings = parse_mode(FRAME, BASE).resolve(likes)
    assert (settings.window, settings.stride, settings.mode) == (1, 1, "wavefront")
    assert (settings.deflicker, settings.remember, settings.keyframes, settings.skip) == ("off", 0, 1, None)
    assert settings.fusion == 0
    assert parse_mode("frame+deflicker=accurate", BASE).resolve(likes).deflicker == "accurate"


def test_parts_that_are_off_are_all_that_can_be_left_open() -> None:
    off = parts_off()
    assert {"deflicker", "keyframes", "skip", "reference", "remember", "fusion"} <= set(off)
    assert not {"steps", "window", "stride", "guidance", "seed", "style"} & set(off)
    plain = Defaults(name="m", prompt="p")
    assert Settings().resolve(plain) == replace(Settings(), **off).resolve(plain)


def test_options_are_settings() -> None:
    settings = parse_mode(" skewed+steps=4+guidance=1.5+style=ink+seed=9", BASE)
    assert (settings.mode, settings.steps, settings.guidance) == ("skewed", 4, 1.5)
    assert (settings.style, settings.seed, settings.size) == ("ink", 9, Size(short=64))


@settings(deadline=None)
@given(st.integers(1, 32), st.integers(1, 50), st.floats(1, 30), st.integers(0, 2**63 - 1))
def test_numbers_come_through(window: int, steps: int, guidance: float, seed: int) -> None:
    mode = parse_mode(f"wavefront+window={window}+steps={steps}+guidance={guidance!r}+seed={seed}", BASE)
    assert (mode.window, mode.steps, mode.guidance, mode.seed) == (window, steps, guidance, seed)


def test_what_is_the_same_for_all_modes_is_no_option() -> None:
    known = mode_options()
    assert {"steps", "window", "stride", "guidance", "seed", "style"} <= set(known)
    assert not {"size", "engine", "model", "mode", "start", "contact_sheet"} & set(known)
    assert set(known) < {field.name for field in fields(Settings)}
    assert (known["steps"], known["guidance"], known["style"]) == (int, float, str)


def test_a_list_keeps_its_order_and_its_words() -> None:
    modes = parse_modes("skewed, frame,wavefront+steps=2,", BASE)
    assert list(modes) == ["skewed", "frame", "wavefront+steps=2"]
    assert [settings.mode for settings in modes.values()] == ["skewed", "wavefront", "wavefront"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wavfront", "did you mean wavefront?"),
        ("nonesuch", f"take one of {', '.join(mode_names())}"),
        ("", "name a mode"),
        (" , ", "name a mode"),
        ("frame,frame", "named twice"),
        ("frame+stpes=2", "did you mean steps?"),
        ("frame+size=64", "size is the same for all modes: leave it out"),
        ("frame+", "option '': take one of"),
        ("frame+steps", "steps=: give a whole number"),
        ("frame+steps=2.5", "steps=2.5: give a whole number"),
        ("frame+guidance=x", "guidance=x: give a number"),
        ("frame+style=", "style=: give a word"),
        ("frame+steps=99", "mode 'frame+steps=99': steps 99: take 1 to 50"),
        ("wavefront+window=4+stride=8", "the window's 4"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(text: str, says: str) -> None:
    with pytest.raises(SettingError) as refused:
        parse_modes(text, BASE)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_kind_of_setting_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"skip": float, "deflicker": ("off", "balanced"), "reference": Path, "side_by_side": bool}
    monkeypatch.setattr("toonstream.modes.mode_options", lambda: known)
    assert parse_mode("frame+side-by-side=on", BASE).side_by_side
    assert not parse_mode("frame+side_by_side=off", BASE).side_by_side
    with pytest.raises(SettingError, match="deflicker=fast: take one of off, balanced"):
        parse_mode("frame+deflicker=fast", BASE)
    with pytest.raises(SettingError, match="side_by_side=1: take one of on, off"):
        parse_mode("frame+side_by_side=1", BASE)
