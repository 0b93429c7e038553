"""Ways to render, named in a word each: `anchored`, `frame`, `wavefront+window=8+steps=2`.

    MODE ::= NAME ("+" OPTION "=" VALUE)*        MODES ::= MODE ("," MODE)*

A name is what `--mode` takes, or `frame`: every frame by itself, which is what all others are to be better
than. Options are those settings that say how frames are drawn, under the names they have in `Settings`; what
is the same for all modes, such as the size, is no option.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from toonstream.config import Mode, RenderSettings, Settings
from toonstream.errors import SettingError

__all__ = ["FRAME", "mode_names", "mode_options", "parse_mode", "parse_modes", "parts_off"]

FRAME = "frame"
"""The mode in which every frame is drawn by itself."""

_COMMON = {
    "allow_pickle",
    "contact_sheet",
    "duration",
    "engine",
    "mode",
    "model",
    "negative_prompt",
    "prompt",
    "side_by_side",
    "size",
    "start",
}  # of `Settings`: the same for all modes, or no words
_SWITCH = {"on": True, "off": False}


def mode_names() -> tuple[str, ...]:
    """All names that a mode may begin with."""
    return FRAME, *get_args(Mode)


def mode_options() -> Mapping[str, type | tuple[str, ...]]:
    """Option → int, float, str, bool or Path, or the words that it takes."""
    hints = get_type_hints(Settings)
    kinds = {field.name: _kind(hints[field.name]) for field in fields(Settings) if field.name not in _COMMON}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def parts_off() -> Mapping[str, object]:
    """Every part of a mode that is more than drawing, turned off, whatever the model likes."""
    defaults = {field.name: field.default for field in fields(RenderSettings)}
    return {name: defaults[name] for name in mode_options() if defaults.get(name, MISSING) is not MISSING}


def parse_mode(text: str, base: Settings) -> Settings:
    """Read one mode.

    Args:
        text: such as `wavefront+window=8`.
        base: what is the same for all modes, and what options that are not named stay at.

    Raises:
        SettingError: it names what is not known, or the settings are no use.
    """
    name, *options = text.strip().split("+")
    if name not in mode_names():
        raise SettingError(f"mode {name!r}: {_hint(name, mode_names())}")
    chosen: dict[str, object] = {"mode": name}
    if name == FRAME:
        chosen = {**parts_off(), "mode": "wavefront", "window": 1, "stride": 1}
    for option in options:
        key, _, value = option.partition("=")
        key = key.replace("-", "_")
        if key not in mode_options():
            if key in _COMMON:
                raise SettingError(f"mode {text!r}: {key} is the same for all modes: leave it out")
            raise SettingError(f"mode {text!r}: option {key!r}: {_hint(key, mode_options())}")
        chosen[key] = _value(text, key, value)
    try:
        return replace(base, **chosen)  # type: ignore[arg-type]
    except SettingError as error:
        raise SettingError(f"mode {text!r}: {error}") from error


def parse_modes(text: str, base: Settings) -> dict[str, Settings]:
    """Read modes, with commas in between: as they were named → what they mean.

    Raises:
        SettingError: one is no use, there is none, or one is named twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise SettingError(f"name a mode: some of {', '.join(mode_names())}, with commas in between")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingError(f"mode {twice!r} is named twice: once is enough")
    return {name: parse_mode(name, base) for name in names}


def _kind(hint: object) -> type | tuple[str, ...] | None:
    """What a setting of this type takes, or None where no word can say it."""
    if get_origin(hint) in (Union, UnionType):
        kinds = [_kind(part) for part in get_args(hint) if part is not NoneType]
        return kinds[0] if len(kinds) == 1 else None
    if get_origin(hint) is Literal:
        return tuple(get_args(hint))
    return hint if isinstance(hint, type) and hint in (int, float, str, bool, Path) else None


def _value(mode: str, key: str, text: str) -> object:
    kind = mode_options()[key]
    words = tuple(_SWITCH) if kind is bool else kind if isinstance(kind, tuple) else ()
    if words:
        if text not in words:
            raise SettingError(f"mode {mode!r}: {key}={text}: take one of {', '.join(words)}")
        return _SWITCH[text] if kind is bool else text
    assert isinstance(kind, type)
    try:
        if not text:
            raise ValueError(key)
        return kind(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}.get(kind, "a word")
        raise SettingError(f"mode {mode!r}: {key}={text}: give {wanted}") from None


def _hint(word: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}"
