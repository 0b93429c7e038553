from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.config import MAX_SIDE, Settings, Size
from toonstream.errors import SettingError
from toonstream.export.checkpoints import Defaults

DEFAULTS = Defaults(
    name="toonlet", prompt="hosoda style", steps=2, window=8, stride=4, guidance=1.5, styles=("hosoda", "ink")
)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"steps": 0}, "steps 0"),
        ({"steps": 51}, "1 to 50"),
        ({"window": 0}, "window 0"),
        ({"window": 33}, "1 to 32"),
        ({"stride": 0}, "stride 0"),
        ({"window": 4, "stride": 5}, "the window's 4"),
        ({"guidance": 0.5}, "guidance 0.5"),
        ({"guidance": float("nan")}, "guidance nan"),
        ({"seed": -1}, "seed -1"),
        ({"deflicker": "very"}, "off, balanced, accurate"),
        ({"deflicker_window": 31}, "1 to 30"),
        ({"keyframes": 0}, "keyframes 0"),
        ({"skip": float("nan")}, "skip nan"),
        ({"matcher": "eye"}, "flow, patchmatch"),
        ({"remember": -1}, "remember -1"),
        ({"remember": 9}, "to 8 frames"),
        ({"start": -1.0}, "start -1"),
        ({"start": float("nan")}, "start nan"),
        ({"duration": 0.0}, "duration 0"),
        ({"duration": float("inf")}, "duration inf"),
        ({"engine": "abacus"}, "abacus"),
        ({"mode": "sideways"}, "sideways"),
        ({"shared_noise": 1.5}, "shared noise 1.5"),
        ({"shared_noise": float("nan")}, "shared noise nan"),
        ({"overlap": -1}, "overlap -1"),
        ({"overlap": 32}, "0 to 31"),
        ({"window": 4, "overlap": 4}, "less than the window's 4"),
        ({"stride": 2, "overlap": 2}, "give one"),
        ({"contact_sheet": Path("sheet.jpg")}, ".png"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(wrong: dict[str, object], word: str) -> None:
    with pytest.raises(SettingError) as error:
        Settings(**wrong)
    assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_the_model_decides_what_the_user_left_open() -> None:
    render = Settings(seed=7).resolve(DEFAULTS)
    assert (render.prompt, render.negative_prompt, render.steps) == ("hosoda style", "", 2)
    assert (render.window, render.stride, render.guidance, render.seed) == (8, 4, 1.5, 7)


@pytest.mark.parametrize(
    ("given_window", "given_stride", "expected"),
    [
        (None, None, (8, 4)),
        (6, None, (6, 3)),
        (1, None, (1, 1)),
        (None, 3, (8, 3)),
        (None, 6, (12, 6)),
        (5, 5, (5, 5)),
    ],
)
def test_a_window_or_a_stride_alone_pulls_the_other_along(
    given_window: int | None, given_stride: int | None, expected: tuple[int, int]
) -> None:
    render = Settings(window=given_window, stride=given_stride).resolve(DEFAULTS)
    assert (render.window, render.stride) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (8, 6)),
        ({"window": 12}, (12, 9)),
        ({"window": 2}, (2, 1)),
        ({"window": 1}, (1, 1)),
        ({"overlap": 0}, (8, 8)),
        ({"overlap": 3}, (8, 5)),
        ({"window": 4, "overlap": 3}, (4, 1)),
        ({"stride": 7}, (8, 7)),
        ({"stride": 9}, (9, 9)),
        ({"window": 9, "stride": 2}, (9, 2)),
    ],
)
def test_anchored_windows_overlap(asked: dict[str, int], expected: tuple[int, int]) -> None:
    render = Settings(mode="anchored", **asked).resolve(DEFAULTS)
    assert (render.window, render.stride, render.mode) == (*expected, "anchored")
    own = replace(DEFAULTS, mode="anchored", overlap=3)
    assert Settings(**asked).resolve(own).mode == "anchored"
    if "window" not in asked and "stride" not in asked:
        assert Settings(**asked).resolve(own).stride == 8 - asked.get("overlap", 3)
    assert Settings(mode="wavefront").resolve(own).mode == "wavefront"


def test_overlaps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match=r"overlap 8: take 0 to 7"):
        Settings(mode="anchored", overlap=8).resolve(DEFAULTS)
    with pytest.raises(SettingError, match="add --mode anchored"):
        Settings(overlap=2).resolve(DEFAULTS)
    with pytest.raises(SettingError, match="mode 'anchord'"):
        Settings().resolve(replace(DEFAULTS, mode="anchord"))


@given(st.integers(1, 32) | st.none(), st.integers(0, 31) | st.none())
def test_whatever_overlap_is_accepted_leaves_new_frames(window: int | None, overlap: int | None) -> None:
    try:
        render = Settings(mode="anchored", window=window, overlap=overlap).resolve(DEFAULTS)
    except SettingError:
        assert overlap is not None
        assert overlap >= (window or DEFAULTS.window)
        return
    assert 1 <= render.stride <= render.window <= 32


@given(st.integers(1, 32) | st.none(), st.integers(1, 32) | st.none())
def test_whatever_is_accepted_resolves_to_a_possible_window(window: int | None, stride: int | None) -> None:
    try:
        settings = Settings(window=window, stride=stride)
    except SettingError:
        assert window is not None
        assert stride is not None
        assert stride > window
        return
    render = settings.resolve(DEFAULTS)
    assert 1 <= render.stride <= render.window <= 32


@pytest.mark.parametrize(
    ("style", "prompt", "expected"),
    [
        (None, None, "hosoda style"),
        (None, "at night", "at night"),
        (None, "", ""),
        ("ink", None, "ink style"),
        ("ink", "thick lines", "ink style, thick lines"),
    ],
)
def test_a_style_goes_in_front_of_the_prompt(style: str | None, prompt: str | None, expected: str) -> None:
    assert Settings(style=style, prompt=prompt).resolve(DEFAULTS).prompt == expected


@pytest.mark.parametrize(
    ("style", "hint"), [("hosda", "did you mean hosoda"), ("cubist", "it knows hosoda, ink")]
)
def test_an_unknown_style_names_the_nearest_ones(style: str, hint: str) -> None:
    with pytest.raises(SettingError, match=hint):
        Settings(style=style).resolve(DEFAULTS)


def test_the_model_decides_about_flicker_unless_the_user_does() -> None:
    flickers = replace(DEFAULTS, deflicker="accurate", deflicker_window=3)
    chosen = Settings().resolve(flickers)
    assert (chosen.deflicker, chosen.deflicker_window) == ("accurate", 3)
    chosen = Settings(deflicker="off", deflicker_window=1).resolve(flickers)
    assert (chosen.deflicker, chosen.deflicker_window) == ("off", 1)
    assert Settings().resolve(DEFAULTS).deflicker == "off"
    with pytest.raises(SettingError, match="off, balanced, accurate"):
        Settings().resolve(replace(DEFAULTS, deflicker="very"))


def test_defaults_of_a_model_that_cannot_work_are_refused() -> None:
    with pytest.raises(SettingError, match="stride 9"):
        Settings().resolve(replace(DEFAULTS, stride=9))


@pytest.mark.parametrize(
    ("text", "source", "expected"),
    [
        ("640x360", (1920, 1080), (640, 360)),
        ("641X359", (1920, 1080), (640, 360)),
        ("360", (1920, 1080), (640, 360)),
        ("360", (1080, 1920), (360, 640)),
        ("360", (160, 90), (640, 360)),
    ],
)
def test_sizes_are_read(text: str, source: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Size.parse(text).of(*source) == expected


@pytest.mark.parametrize("text", ["", "x", "640x", "640*360", "-5", "6e2", "15", "8000x8000", "99999999999"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="size"):
        Size.parse(text)


@given(st.integers(16, 8000), st.integers(16, 8000))
def test_by_default_the_short_side_is_capped_and_small_clips_keep_their_size(width: int, height: int) -> None:
    try:
        got = Size(cap=True).of(width, height)
    except SettingError:
        assert max(width, height) / min(width, height) * min(width, height, 512) > MAX_SIDE - 2
        return
    assert all(side % 2 == 0 for side in got)
    if min(width, height) <= 512:
        assert all(abs(a - b) <= 1 for a, b in zip(got, (width, height), strict=True))
    else:
        assert min(got) == 512
        assert abs(got[0] / got[1] - width / height) < 0.01 * width / height


def test_a_clip_of_one_pixel_is_refused() -> None:
    with pytest.raises(SettingError, match="1x1 pixels are too few"):
        Size(cap=True).of(1, 1)


def test_frames_attend_to_the_past_where_user_or_model_say_so() -> None:
    assert not Settings().resolve(DEFAULTS).attends
    assert Settings(remember=1).resolve(DEFAULTS).attends
    assert Settings(reference=Path("sheet.png")).resolve(DEFAULTS).attends
    own = replace(DEFAULTS, remember=3)
    assert Settings().resolve(own).remember == 3
    assert not Settings(remember=0).resolve(own).attends
