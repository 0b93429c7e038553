"""Presets: which checkpoints belong together, and the settings they work best with. Data, from TOML files.

The presets that ship are in `presets.toml` beside this file. A user's own, in `$TOONSTREAM_CONFIG` or
`~/.config/toonstream/presets.toml`, add to them or change single fields of them. A preset may be `like`
another one, and then says only what differs. A part may be given as a string, its source alone; a part that
names another source forgets what was known of the old one, and `false` leaves a part out.
"""

import os
import tomllib
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from toonstream.errors import SettingError
from toonstream.export.checkpoints import Defaults
from toonstream.export.parts.part import Part, is_hub_id
from toonstream.export.parts.weights import WEIGHT_SUFFIXES

__all__ = ["Preset", "find_preset", "load_presets", "user_presets"]

_SHIPPED = Path(__file__).with_name("presets.toml")
_TOKENIZER = Part(source="openai/clip-vit-large-patch14", licence="MIT", bytes=2_200_000)
_SINGLE = ("base", "motion", "vae", "tokenizer")
_NAMED = ("controlnets", "loras", "embeddings", "annotators")
_KEPT = {"weight", "optional"}  # of a part whose source is replaced
_DEFAULTS = {entry.name: entry for entry in fields(Defaults) if entry.name not in ("name", "controlnets")}
_PART = {entry.name: entry for entry in fields(Part)}
_OWN = ("about", "like", "folder", "licence", "allow_pickle", "scheduler_config")

_Table = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Checkpoints and settings that belong together.

    Attributes:
        name: as `--model` takes it.
        about: what it is for, in a line.
        folder: a model folder that is ready as it is; then there are no parts.
        licence: of such a folder's weights.
        base: Stable Diffusion 1.5, or a fine-tune of it.
        motion: AnimateDiff's motion modules, or None for frames one by one.
        vae: another autoencoder than the base's, or None.
        tokenizer: another than the base's, or None; a single-file base brings none.
        controlnets: by the name of the hint that each takes.
        loras: by any name.
        embeddings: textual inversions, by the word that stands for them in a prompt.
        annotators: networks that draw hints, by the hint's name.
        allow_pickle: the user trusts all parts, pickled as they may be.
        scheduler_config: what differs from the base's.
        defaults: the other fields of `Defaults`.
    """

    name: str
    about: str = ""
    folder: Path | None = None
    licence: str = ""
    base: Part | None = None
    motion: Part | None = None
    vae: Part | None = None
    tokenizer: Part | None = None
    controlnets: Mapping[str, Part] = field(default_factory=dict)
    loras: Mapping[str, Part] = field(default_factory=dict)
    embeddings: Mapping[str, Part] = field(default_factory=dict)
    annotators: Mapping[str, Part] = field(default_factory=dict)
    allow_pickle: bool = False
    scheduler_config: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)

    def parts(self) -> dict[str, Part]:
        """Give every part by what it is, such as `base`, `controlnet outline` or `lora lcm`.

        A single-file base has no tokenizer: it is given CLIP's.
        """
        single = {name: getattr(self, name) for name in _SINGLE}
        parts = {name: part for name, part in single.items() if part is not None}
        if self.base is not None and self.base.file:
            parts.setdefault("tokenizer", _TOKENIZER)
        for kind in _NAMED:
            parts |= {f"{kind[:-1]} {name}": part for name, part in getattr(self, kind).items()}
        return parts

    def without(self, parts: Container[str]) -> "Preset":
        """Leave parts out that have a name of their own, given as in `parts`."""

        def left(kind: str) -> dict[str, Part]:
            named: Mapping[str, Part] = getattr(self, kind)
            return {name: part for name, part in named.items() if f"{kind[:-1]} {name}" not in parts}

        return replace(
            self,
            controlnets=left("controlnets"),
            loras=left("loras"),
            embeddings=left("embeddings"),
            annotators=left("annotators"),
        )


def user_presets() -> Path | None:
    """The user's own file of presets: `$TOONSTREAM_CONFIG`, or the usual place; None where there is none.

    Raises:
        SettingError: the environment names a file that is not there.
    """
    named = os.environ.get("TOONSTREAM_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise SettingError(f"TOONSTREAM_CONFIG names {path}, which is no file; correct or unset it")
        return path
    usual = Path.home() / ".config" / "toonstream" / "presets.toml"
    return usual if usual.is_file() else None


def load_presets(files: Iterable[Path] = ()) -> dict[str, Preset]:
    """Read the presets that ship, the user's, and those of `files`, in this order; later ones win.

    Raises:
        SettingError: a file cannot be read, or says what no preset has.
    """
    tables: dict[str, _Table] = {}
    own = user_presets()
    for path in [_SHIPPED, *([own] if own else []), *files]:
        for name, changes in _read(path).items():
            like = changes.pop("like", None)
            if like is not None and like not in tables:
                raise SettingError(f"{path}: {name} is like {like!r}, {_nearest(str(like), tables)}")
            tables[name] = _merged(tables.get(like or name, {}), changes)
    return {name: _preset(name, table) for name, table in tables.items()}


def find_preset(name: str, presets: Mapping[str, Preset]) -> Preset:
    """Give a preset by name.

    Raises:
        SettingError: there is none; the nearest names are told.
    """
    if name not in presets:
        raise SettingError(f"there is no model {name!r}, {_nearest(name, presets)}; see toonstream models")
    return presets[name]


def _nearest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = get_close_matches(name.lower(), names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else f"take one of {', '.join(names)}"


def _read(path: Path) -> dict[str, _Table]:
    """Read a file; parts become tables, and paths in it, which are relative to it, absolute."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"{path} is no file of presets ({error}); correct it") from None
    for name, table in content.items():
        if not isinstance(table, dict):
            raise SettingError(f"{path}: {name} stands outside of any preset; put it below a [NAME]")
        where = f"{path}: {name}"
        _require_known(table, [*_OWN, *_SINGLE, *_NAMED, *_DEFAULTS], where)
        for key, value in table.items():
            if key in _SINGLE:
                table[key] = _part_table(value, path.parent, f"{where}.{key}")
            elif key in _NAMED:
                if not isinstance(value, dict):
                    raise SettingError(f"{where}.{key} must be a table of parts by name; correct it")
                table[key] = {
                    inner: _part_table(part, path.parent, f"{where}.{key}.{inner}")
                    for inner, part in value.items()
                }
            elif key in _DEFAULTS:
                table[key] = _checked(value, _DEFAULTS[key].type, f"{where}.{key}")
            else:
                _checked(
                    value, {"scheduler_config": dict, "allow_pickle": bool}.get(key, str), f"{where}.{key}"
                )
        if "folder" in table:
            table["folder"] = str(_absolute(table["folder"], path.parent))
    return content


def _part_table(value: object, folder: Path, where: str) -> _Table | None:
    if value is False:
        return None
    table = {"source": value} if isinstance(value, str) else value
    if not isinstance(table, dict):
        raise SettingError(f"{where} must be a hub id, a path, or a table; correct it")
    _require_known(table, _PART, where)
    table = {key: _checked(entry, _PART[key].type, f"{where}.{key}") for key, entry in table.items()}
    for key in ("source", "config"):
        if key in table and not is_hub_id(table[key]):
            path = _absolute(table[key], folder)
            table[key] = str(path)
            if key == "source" and path.suffix in WEIGHT_SUFFIXES:
                table |= {"source": str(path.parent), "file": path.name}
    return table


def _absolute(path: str, folder: Path) -> Path:
    return Path(os.path.abspath(folder / Path(path).expanduser()))  # noqa: PTH100 - resolve follows links


def _require_known(table: Mapping[str, object], known: Iterable[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise SettingError(f"{where}: {key!r} is not known, {_nearest(key, known)}")


def _checked(value: Any, kind: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind == tuple[str, ...] and isinstance(value, list):
        return tuple(str(word) for word in value)
    if isinstance(kind, UnionType):  # what may be None is left out, or of the other type
        kind = get_args(kind)[0]
    accepted = kind if isinstance(kind, type) else str  # a Literal's values are words
    if not isinstance(value, accepted) or (accepted is int and isinstance(value, bool)):
        raise SettingError(f"{where} must be of type {accepted.__name__}, and is {value!r}; correct it")
    return value


def _merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> _Table:
    merged = dict(old)
    for key, value in changes.items():
        before = merged.get(key)
        if key in _SINGLE:
            merged[key] = _merged_part(before, value)
        elif key in _NAMED:
            parts = dict(before or {})
            merged[key] = parts | {name: _merged_part(parts.get(name), part) for name, part in value.items()}
        elif key == "scheduler_config":
            merged[key] = {**(before or {}), **value}
        else:
            merged[key] = value
    return merged


def _merged_part(old: _Table | None, new: _Table | None) -> _Table | None:
    if new is None or old is None:
        return new
    kept = {key: value for key, value in old.items() if key in _KEPT} if "source" in new else old
    return {**kept, **new}


def _preset(name: str, table: Mapping[str, Any]) -> Preset:
    single: dict[str, Any] = {key: _part(name, key, table[key]) for key in _SINGLE if table.get(key)}
    named: dict[str, Any] = {
        key: {inner: _part(name, f"{key}.{inner}", part) for inner, part in table[key].items() if part}
        for key in _NAMED
        if table.get(key)
    }
    if ("folder" in table) == ("base" in single):
        raise SettingError(f"preset {name} needs either a base or a folder, and not both; correct it")
    defaults = {key: value for key, value in table.items() if key in _DEFAULTS}
    if "folder" in table and (defaults or single or named):
        raise SettingError(
            f"preset {name} has a folder, whose own toonstream.json holds the settings; change them there"
        )
    own: dict[str, Any] = {
        key: table[key] for key in ("about", "licence", "allow_pickle", "scheduler_config") if key in table
    }
    folder = Path(table["folder"]) if "folder" in table else None
    return Preset(name=name, folder=folder, defaults=defaults, **own, **single, **named)


def _part(preset: str, what: str, table: _Table) -> Part:
    if "source" not in table:
        raise SettingError(f"preset {preset}: {what} has no source; give a hub id or a path")
    return Part(**table)
