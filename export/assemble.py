"""Presets → model folders: assembled once, from whatever layouts the parts have, and kept in the cache.

    <cache>/models/<preset>-<key>/    a model folder; the key holds everything its weights depend on

A folder gets its name when it is whole, by one rename. A lock per key makes one of several processes assemble
it while the others wait; the lock is the operating system's, and goes with a process that is killed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic

from toonstream.engines.installed import with_export
from toonstream.engines.store import cache_folder
from toonstream.engines.tensorrt.flavour import FLAVOURS, apart
from toonstream.errors import ModelError
from toonstream.export.checkpoints import Model, Precision, in_precision, open_model, shipped_model
from toonstream.export.parts.locate import Locator
from toonstream.export.parts.networks import scheduler_config
from toonstream.export.plan import Plan, make_plan
from toonstream.export.presets import Preset, find_preset, load_presets
from toonstream.export.write_model import INDEX, scheduler_class, write_model

__all__ = [
    "ExportProgress",
    "assemble",
    "assembled",
    "export_for",
    "is_ours",
    "load_model",
    "model_folder",
    "models_folder",
    "prune_models",
]

_VERSION = 1  # of what is written; another one makes other keys
_KEY_LENGTH = 16  # hexadecimal digits
_IN_GRAPHS = ("clip_skip", "motion_norm")  # settings that exported graphs depend on
_LOCKS = ".locks"
_TELLING = 10  # what is exported tells how long so many times as much takes; small networks tell nothing

Say = Callable[[str], None]


def model_folder(
    model: str | Path | None,
    *,
    presets: Iterable[Path] = (),
    allow_pickle: bool = False,
    say: Say = lambda line: None,
) -> Path:
    """Give the model folder that `--model` means.

    Args:
        model: the name of a preset; or the path of a model folder, which a Path always is, and so is a string
            that is no preset's name and either has a slash or is a folder here; or None, the shipped model.
        presets: more files of presets.
        allow_pickle: read pickled files.
        say: is told what is done, where that takes a while.

    Raises:
        SettingError: there is no such preset.
        ModelError: its parts are missing, or are not what they should be.
    """
    if model is None:
        return shipped_model()
    if isinstance(model, Path) or "/" in model or os.sep in model:
        return Path(model).expanduser()
    known = load_presets(presets)
    if model not in known and Path(model).is_dir():
        return Path(model)
    return assemble(find_preset(model, known), allow_pickle=allow_pickle, say=say)


def load_model(
    model: str | Path | None,
    *,
    engine: str,
    allow_pickle: bool = False,
    say: Say = lambda line: None,
) -> Model:
    """Open the model that `--model` means, with all that an engine wants of it.

    Args:
        model: as for `model_folder`.
        engine: its name; all but torch want ONNX files, TensorRT in float16 where it can have them. An
            assembled model is exported once, beside its weights; into a folder of the user's own nothing is
            written. Of an engine behind torch, see `flavour.apart`, the sources lack the files that it wants
            and does not find: it exports them while torch draws.
        allow_pickle: read pickled files.
        say: is told what is done, where that takes a while.

    Raises:
        SettingError: there is no such preset.
        ModelError: the model's parts are missing, or are not what they should be.
    """
    return export_for(engine, model_folder(model, allow_pickle=allow_pickle, say=say), say=say)


def export_for(engine: str, folder: Path, *, say: Say = lambda line: None) -> Model:
    """Open a model folder with all that an engine wants of it; see `load_model`.

    Raises:
        ModelError: the folder is not a complete model.
    """
    serving, coming = apart(engine)
    precision: Precision = "float16" if (coming or serving) in FLAVOURS else "float32"
    opened = in_precision(open_model(folder), precision)
    if all(path.is_file() for path in opened.onnx_files.values()):
        return opened
    if coming is not None and is_ours(folder):
        return opened
    if serving == "torch" or not is_ours(folder):
        return open_model(folder)
    _export_once(opened, precision, engine, say)
    return in_precision(open_model(folder), precision)


def is_ours(folder: Path) -> bool:
    """Whether a model folder was assembled into the cache, where files may be added to it."""
    return folder.parent == models_folder()


@with_export("the export")
def _export_once(model: Model, precision: Precision, engine: str, say: Say) -> None:
    """Export what is missing of an assembled model, and say how far that is."""
    from toonstream.export.onnx import export_model

    with _locked(model.path):
        left = {name: path for name, path in model.onnx_files.items() if not path.is_file()}
        if not left:  # another process has done it meanwhile
            return
        say(
            f"{model.defaults.name}: its networks are exported for {engine}, once: {len(left)} of them; "
            f"`toonstream models get {model.defaults.name} --engine {engine}` does that ahead"
        )
        progress = ExportProgress(left, say=lambda line: say(f"{model.defaults.name}: {line}"))
        export_model(model.path, precision=precision, only_missing=True, started=progress.started)
        progress.done()


class ExportProgress:
    """Says which network is being exported, how many are left, and about how long they take.

    How long follows from what those before took, by the bytes of their weights.

    Args:
        files: the ONNX file of each network that is to be exported, by the network's name.
        say: is told, one line at a time.
        clock: gives the time, in seconds.
    """

    def __init__(
        self, files: Mapping[str, Path], *, say: Say, clock: Callable[[], float] = monotonic
    ) -> None:
        self._bytes = {
            name: sum(weights.stat().st_size for weights in path.parent.glob("*.safetensors"))
            for name, path in files.items()
        }
        self._say = say
        self._clock = clock
        self._running: str | None = None
        self._began = self._first = clock()
        self._finished: list[str] = []

    def started(self, network: str) -> None:
        """The one before is done, and this one begins."""
        self.done()
        self._running, self._began = network, self._clock()
        place = f"{len(self._finished) + 1} of {len(self._bytes)}"
        line = f"exporting {network} ({place}, {self._bytes[network] / 1e6:.0f} MB)"
        known = sum(self._bytes[name] for name in self._finished)
        rest = sum(self._bytes.values()) - known
        if known * _TELLING > rest:
            seconds = (self._clock() - self._first) * rest / known
            line += f"; about {_duration(seconds)} left" if seconds >= 1.0 else ""
        self._say(line)

    def done(self) -> None:
        """The one that was being exported is done."""
        if self._running is not None:
            self._say(f"{self._running} took {_duration(self._clock() - self._began)}")
            self._finished.append(self._running)
            self._running = None


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def models_folder() -> Path:
    """Where assembled models are kept."""
    return cache_folder() / "models"


def assembled(preset: Preset) -> Path | None:
    """Give a preset's model folder where it is ready, without making or downloading anything."""
    if preset.folder is not None:
        return preset.folder if (preset.folder / INDEX).is_file() else None
    return next((folder for folder in _folders(preset) if folder.is_dir()), None)


def prune_models(presets: Iterable[Preset]) -> int:
    """Remove assembled folders that no preset leads to any more; gives the bytes that were freed.

    Those that a process is just writing or exporting stay, and those of presets whose parts are gone.
    """
    from filelock import Timeout

    current = {preset.name: _folders(preset) for preset in presets if preset.folder is None}
    kept = {folder.name for folders in current.values() for folder in folders}
    unknown = {name for name, folders in current.items() if not folders}
    freed = 0
    for folder in models_folder().glob("*"):
        name = folder.name.removeprefix(".").partition(".")[0] if folder.name.startswith(".") else folder.name
        if folder.name == _LOCKS or folder.name in kept or name.rpartition("-")[0] in unknown:
            continue
        try:
            with _locked(folder.with_name(name), timeout=0):
                freed += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue
    return freed


def _folders(preset: Preset) -> set[Path]:
    """Where a preset's model may be, with and without what is pickled; nowhere, where parts are not here."""
    folders = set()
    for allowed in (preset.allow_pickle, True):
        try:
            plan = make_plan(preset, Locator(download=False, allow_pickle=allowed))
        except ModelError:
            continue
        folders.add(_folder(plan))
    return folders


def _folder(plan: Plan) -> Path:
    """Where a plan's model folder is, or would be."""
    facts = {
        "version": _VERSION,
        "files": {role: found.identity for role, found in sorted(plan.files.items())},
        "loras": {name: part.weight for name, part in sorted(plan.preset.loras.items())},
        "graphs": {name: plan.preset.defaults.get(name) for name in _IN_GRAPHS},
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]
    return models_folder() / f"{plan.preset.name}-{key}"


@with_export("a model of several parts")
def assemble(preset: Preset, *, allow_pickle: bool = False, say: Say = lambda line: None) -> Path:
    """Give a preset's model folder, assembled first where it is not there.

    Args:
        preset: which.
        allow_pickle: read pickled files.
        say: is told what is done, where that takes a while.

    Raises:
        ModelError: parts are missing (all their files are named), or are not what they should be.
        EngineError: what reads them is not installed.
    """
    if preset.folder is not None:
        return preset.folder
    locator = Locator(allow_pickle=allow_pickle or preset.allow_pickle)
    plan = make_plan(preset, locator, say=say)
    folder = _folder(plan)
    settings = _settings(plan)
    try:
        _assemble(plan, folder, settings, say)
    except OSError as error:
        raise ModelError(
            f"{folder.parent}: {error.strerror or error}; "
            "make room, or name another folder in TOONSTREAM_CACHE"
        ) from None
    return folder


def _assemble(plan: Plan, folder: Path, settings: Mapping[str, object], say: Say) -> None:
    if _read_settings(folder) == settings:
        return
    with _locked(folder):
        for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed: the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        if not folder.is_dir():
            making = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                write_model(plan, making, say)
                _write_settings(making, settings)
                making.rename(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        elif _read_settings(folder) != settings:
            _write_settings(folder, settings)


@contextmanager
def _locked(folder: Path, *, timeout: float = -1) -> Iterator[None]:
    """Hold the lock of a folder, which need not be there yet."""
    from filelock import FileLock

    locks = folder.parent / _LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{folder.name}.lock", timeout=timeout):
        yield


def _settings(plan: Plan) -> dict[str, object]:
    """Give what is in a folder's small files, which may change while its weights stay."""
    preset = plan.preset
    base = plan.files.get("scheduler")
    config = scheduler_config(base.path if base else None)
    strengths = {name: part.weight for name, part in preset.controlnets.items()}
    styles = list(preset.defaults.get("styles", ()))  # type: ignore[call-overload]
    return {
        "toonstream.json": {
            "name": preset.name,
            "prompt": "",
            **preset.defaults,
            "styles": styles,
            "controlnets": strengths,
        },
        "scheduler/scheduler_config.json": {
            **config,
            **preset.scheduler_config,
            "_class_name": scheduler_class(plan),
        },
    }


def _read_settings(folder: Path) -> dict[str, object] | None:
    names = ("toonstream.json", "scheduler/scheduler_config.json")
    try:
        return {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in names}
    except (OSError, ValueError):
        return None


def _write_settings(folder: Path, settings: Mapping[str, object]) -> None:
    for name, content in settings.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        fresh.replace(path)
