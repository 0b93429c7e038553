"""`toonstream models`: which models there are, what they are made of, and what of it is here."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from toonstream.config import EngineName
from toonstream.errors import SettingError
from toonstream.parser import Parser

if TYPE_CHECKING:
    from toonstream.export.presets import Preset

__all__ = ["run"]

_USAGE = """toonstream models                list the models that --model knows
       toonstream models show NAME      what it is made of, and where that lies
       toonstream models get NAME       download its parts, put them together,
                                        and export them for an --engine
       toonstream models prune          remove what is out of date"""

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "toonstream models",
        usage=_USAGE,
        description="Yours are in $TOONSTREAM_CONFIG, or ~/.config/toonstream/presets.toml.",
    )
    actions = ("list", "show", "get", "prune")
    parser.add_argument("action", nargs="?", default="list", choices=actions, help=argparse.SUPPRESS)
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    add = parser.add_argument_group("options").add_argument
    add("--presets", type=Path, action="append", default=[], metavar="FILE", help="read these presets, too")
    add(
        "--engine",
        choices=get_args(EngineName),
        metavar="E",
        help="get: export for it, too, as its first run does",
    )
    add("--allow-pickle", action="store_true", help="trust pickled checkpoints, too")
    add("--json", action="store_true", help="JSON on standard output")
    add("-h", "--help", action="help", help="show this, and exit")
    return parser


def run(words: Sequence[str]) -> int:
    """Run the command; gives the exit code."""
    options = _parser().parse_args(words)
    from toonstream.export.presets import find_preset, load_presets

    presets = load_presets(options.presets)
    if options.action in ("list", "prune"):
        if options.name is not None:
            raise SettingError(f"leave out {options.name}; see toonstream models --help")
        known = presets.values()
        return _list(known, as_json=options.json) if options.action == "list" else _prune(known)
    if options.name is None:
        raise SettingError(f"say which: toonstream models {options.action} NAME")
    preset = find_preset(options.name, presets)
    if options.action == "show":
        return _show(preset, as_json=options.json)
    return _get(preset, options)


def _get(preset: "Preset", options: argparse.Namespace) -> int:
    from toonstream.engines.select import engine_name
    from toonstream.engines.tensorrt.flavour import apart
    from toonstream.export.assemble import assemble, export_for

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    folder = assemble(preset, allow_pickle=options.allow_pickle, say=say)
    if options.engine is not None:
        serving, coming = apart(engine_name(options.engine))
        export_for(coming or serving, folder, say=say)
    print(json.dumps({"name": preset.name, "folder": str(folder)}) if options.json else folder)
    return 0


def _list(presets: Iterable["Preset"], *, as_json: bool) -> int:
    found = [_facts(preset) for preset in presets]
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    width = max(len(facts["name"]) for facts in found)
    for facts in found:
        print(f"{facts['name']:<{width}}  {_size(facts['bytes']):>7}  {facts['here']}; {facts['licence']}")
        print(f"{'':<{width + 9}}  {facts['about']}")
    return 0


def _show(preset: "Preset", *, as_json: bool) -> int:
    facts = _facts(preset)
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"{facts['name']}: {facts['about']}")
    print(f"{facts['here']}: {facts['folder'] or f'toonstream models get {preset.name}'}")
    for part in facts["parts"]:
        print(f"\n{part['part']}: {part['source']}  {part['file']}".rstrip())
        print(f"    {_size(part['bytes'])}; licence {part['licence'] or 'not known'}")
        for file in part["files"] or ["not here"]:
            print(f"    {file}")
    if preset.defaults:
        print()
    for name, value in sorted(preset.defaults.items()):
        print(f"{name} = {json.dumps(value)}")
    return 0


def _prune(presets: Iterable["Preset"]) -> int:
    from toonstream.export.assemble import prune_models

    freed = prune_models(presets)
    print(f"{_size(freed) if freed else 'nothing'} was out of date and is removed")
    return 0


def _facts(preset: "Preset") -> dict[str, Any]:
    from toonstream.export.assemble import assembled
    from toonstream.export.plan import files_here

    folder = assembled(preset)
    here = files_here(preset)
    parts = [
        {
            "part": what,
            "source": part.source,
            "file": part.file,
            "weight": part.weight,
            "licence": part.licence,
            "bytes": part.bytes or sum(file.path.stat().st_size for file in here[what] or ()),
            "optional": part.optional,
            "files": [str(path) for path in dict.fromkeys(file.path for file in here[what] or ())],
        }
        for what, part in preset.parts().items()
    ]
    own = [file for file in folder.rglob("*") if file.is_file()] if folder and not parts else []
    licences = [preset.licence, *(part.licence for part in preset.parts().values())]
    return {
        "name": preset.name,
        "about": preset.about,
        "licence": ", ".join(dict.fromkeys(filter(None, licences))) or "licence not known",
        "bytes": sum(part["bytes"] for part in parts) or sum(file.stat().st_size for file in own),
        "here": _state(folder, here),
        "folder": str(folder) if folder else None,
        "parts": parts,
    }


def _state(folder: Path | None, here: Mapping[str, object | None]) -> str:
    count = sum(files is not None for files in here.values())
    if folder is not None:
        return "ready"
    if count == len(here):
        return "all parts here"
    return f"{count} of {len(here)} parts here" if count else "not here"


def _size(count: int) -> str:
    if count == 0:
        return "size not known"
    unit, name = next(((unit, name) for unit, name in _UNITS if count >= unit), (1.0, "bytes"))
    return f"{count / unit:.3g} {name}"
