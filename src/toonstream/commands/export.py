"""`toonstream export`: a model's networks as ONNX files, and whether they compute what torch computes."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from toonstream.errors import ModelError, OutputError
from toonstream.parser import Parser

__all__ = ["run"]

_INDEX = "model_index.json"  # what every model folder has


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "toonstream export",
        usage="toonstream export MODEL [-o DIR] [--precision P] [--verify]",
        description="Write MODEL, a preset or a model folder, as ONNX files beside its weights.",
    )
    parser.add_argument("model", metavar="MODEL", help=argparse.SUPPRESS)
    add = parser.add_argument_group("options").add_argument
    add("-o", "--output", type=Path, metavar="DIR", help="copy the model to DIR first, and export there")
    add(
        "--precision",
        default="float32",
        choices=["float32", "float16"],
        metavar="P",
        help="float32 | float16 (for TensorRT; another file)",
    )
    add("--verify", action="store_true", help="compare with torch; export only what is missing")
    add("-h", "--help", action="help", help="show this, and exit")
    return parser


def run(words: Sequence[str]) -> int:
    """Run the command; gives the exit code.

    Raises:
        SettingError: the words make no sense, or there is no such model.
        ModelError: the model is incomplete, or an ONNX file computes something else than torch.
        OutputError: the files cannot be written.
    """
    options = _parser().parse_args(words)
    from toonstream.export.assemble import model_folder

    folder = model_folder(options.model, say=_say)
    if options.output is not None:
        folder = _copy(folder, options.output)
    _export(folder, options)
    if options.verify:
        _verify(folder, options)
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _copy(folder: Path, target: Path) -> Path:
    """Copy a model folder, without what was exported there."""
    if not (folder / _INDEX).is_file():
        raise ModelError(f"{folder} is no model folder: it has no {_INDEX}")
    try:
        if target.is_dir() and any(target.iterdir()) and not (target / _INDEX).is_file():
            raise OutputError(f"{target} holds other files; name an empty folder, or one that is not there")
        shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.onnx"), dirs_exist_ok=True)
    except shutil.Error as error:
        raise OutputError(
            f"{target} cannot be written ({error.args[0][0][2]}); choose another folder"
        ) from None
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{target} cannot be written ({error.strerror}); choose another folder") from None
    return target


def _export(folder: Path, options: argparse.Namespace) -> None:
    from toonstream.export.assemble import ExportProgress
    from toonstream.export.checkpoints import in_precision, open_model
    from toonstream.export.onnx import export_model

    files = in_precision(open_model(folder), options.precision).onnx_files
    if options.verify:
        files = {name: path for name, path in files.items() if not path.is_file()}
    progress = ExportProgress(files, say=_say)
    try:
        written = export_model(
            folder,
            precision=options.precision,
            only_missing=options.verify,
            started=progress.started,
        )
        progress.done()
    except PermissionError as error:
        raise OutputError(f"{error.filename} cannot be written; export elsewhere with -o DIR") from None
    for path in written:
        print(f"{path}  {path.stat().st_size / 1e3:.0f} kB")


def _verify(folder: Path, options: argparse.Namespace) -> None:
    from toonstream.export.verify import verify_model

    off = []
    for comparison in verify_model(folder, precision=options.precision):
        verdict = "ok" if comparison.passed else "DIFFERS"
        print(f"{comparison.network:22} {comparison.output:16} {comparison.error:.1e}  {verdict}", flush=True)
        if not comparison.passed:
            off.append(f"{comparison.network}'s {comparison.output}")
    if off:
        raise ModelError(
            f"{', '.join(off)} differ from torch's by too much: export again, or use --engine torch"
        )
