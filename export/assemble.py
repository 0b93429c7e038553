"""Presets → model folders: assembled once, from whatever layouts the parts have, and kept in the cache.

    <cache>/models/<preset>-<key>/    a model folder; the key holds everything its weights depend on

A folder gets its name when it is whole, by one rename. A lock per key makes one of several processes assemble
it while the others wait; the lock is the operating system's, and goes with a process that is killed. Networks
are read, changed and written one by one, a tensor at a time: memory holds one network, in half precision.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from toonstream.engines.store import cache_folder
from toonstream.errors import ModelError
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.export.parts import networks
from toonstream.export.parts.layouts import motion_layouts, original_unet_name
from toonstream.export.parts.locate import Locator
from toonstream.export.parts.lora import Lora, fuse, read_lora
from toonstream.export.parts.match import match
from toonstream.export.parts.networks import Skeleton
from toonstream.export.parts.textual_inversion import read_embedding
from toonstream.export.parts.weights import Weights, open_weights
from toonstream.export.plan import Plan, make_plan
from toonstream.export.presets import Preset, find_preset, load_presets

__all__ = ["assemble", "assembled_folder", "load_model", "model_folder", "models_folder"]

_VERSION = 1  # of what is written; another one makes other keys
_KEY_LENGTH = 16  # hexadecimal digits
_IN_GRAPHS = ("clip_skip", "motion_norm")  # settings that exported graphs depend on
_SCHEDULERS = {"ddim": "DDIMScheduler", "lcm": "LCMScheduler", "euler": "EulerDiscreteScheduler"}
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_MODEL = "model.safetensors"  # what transformers calls it

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
        engine: its name; all but torch want ONNX files. An assembled model is exported once, beside its
            weights; into a folder of the user's own nothing is written.
        allow_pickle: read pickled files.
        say: is told what is done, where that takes a while.

    Raises:
        SettingError: there is no such preset.
        ModelError: the model's parts are missing, or are not what they should be.
    """
    folder = model_folder(model, allow_pickle=allow_pickle, say=say)
    opened = open_model(folder)
    exported = all(path.is_file() for path in opened.onnx_files.values())
    if engine == "torch" or exported or folder.parent != models_folder():
        return opened
    from toonstream.export.onnx import export_model

    with _locked(folder):
        export_model(
            folder,
            only_missing=True,
            started=lambda network: say(f"{opened.defaults.name}: exporting {network}, once"),
        )
    return open_model(folder)


def models_folder() -> Path:
    """Where assembled models are kept."""
    return cache_folder() / "models"


def assembled_folder(plan: Plan) -> Path:
    """Where a preset's model folder is, or would be."""
    facts = {
        "version": _VERSION,
        "files": {role: found.identity for role, found in sorted(plan.files.items())},
        "loras": {name: part.weight for name, part in sorted(plan.preset.loras.items())},
        "graphs": {name: plan.preset.defaults.get(name) for name in _IN_GRAPHS},
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]
    return models_folder() / f"{plan.preset.name}-{key}"


def assemble(preset: Preset, *, allow_pickle: bool = False, say: Say = lambda line: None) -> Path:
    """Give a preset's model folder, assembled first where it is not there.

    Args:
        preset: which.
        allow_pickle: read pickled files.
        say: is told what is done, where that takes a while.

    Raises:
        ModelError: parts are missing (all their files are named), or are not what they should be.
    """
    if preset.folder is not None:
        return preset.folder
    locator = Locator(allow_pickle=allow_pickle or preset.allow_pickle)
    plan = make_plan(preset, locator, say=say)
    folder = assembled_folder(plan)
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
                _write(plan, making, say)
                _write_settings(making, settings)
                making.rename(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        elif _read_settings(folder) != settings:
            _write_settings(folder, settings)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which need not be there yet."""
    from filelock import FileLock

    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{folder.name}.lock"):
        yield


def _settings(plan: Plan) -> dict[str, object]:
    """Give what is in a folder's small files, which may change while its weights stay."""
    preset = plan.preset
    scheduler = str(preset.defaults.get("scheduler", "ddim"))
    config = networks.scheduler_config(_path(plan, "scheduler"))
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
            "_class_name": _SCHEDULERS.get(scheduler, "DDIMScheduler"),
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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A network that is to be written: every tensor is known to be there and to fit.

    Attributes:
        folder: its name. file: of its weights. skeleton: what it is.
        sources: the name of each tensor → the file it is in, and its name there.
    """

    folder: str
    file: str
    skeleton: Skeleton
    sources: Mapping[str, tuple[Weights, str]]


def _write(plan: Plan, folder: Path, say: Say) -> None:
    """Write everything but the settings. All parts are checked before the first is written."""
    jobs = _jobs(plan)
    text, unet = jobs[0].skeleton, jobs[1].skeleton
    loras = _loras(plan, text=text, unet=unet)
    embeddings = {
        word: read_embedding(_open(plan, f"embedding_{word}"), width=text.config["hidden_size"])
        for word in plan.preset.embeddings
    }
    for number, job in enumerate(jobs, 1):
        say(f"{plan.preset.name}: assembling {job.folder} ({number} of {len(jobs)})")
        place = folder / job.folder
        place.mkdir(parents=True)
        job.skeleton.save(place)
        save_file(_tensors(job, loras), place / job.file, metadata={"format": "pt"})
    if embeddings:
        vectors = {word: vector.float().contiguous() for word, vector in embeddings.items()}
        save_file(vectors, folder / "text_encoder" / "embeddings.safetensors")
    _write_tokenizer(plan, folder / "tokenizer")
    _write_index(plan, jobs, folder / "model_index.json")


def _jobs(plan: Plan) -> list[_Job]:
    """Check all networks; the text encoder is first and the UNet second."""
    text = networks.text_encoder(_config(plan, "text_encoder"))
    jobs = [_job("text_encoder", text, _open(plan, "text_encoder"), file=_MODEL)]

    base = _open(plan, "unet")
    motion = _open(plan, "motion") if "motion" in plan.files else None
    adapter = networks.motion_config(_path(plan, "motion.config"), motion) if motion is not None else None
    unet = networks.unet(_config(plan, "unet"), adapter, weights=base)
    jobs.append(_job("unet", unet, base, motion=motion))

    vae = _open(plan, "vae")
    jobs.append(_job("vae", networks.vae(_vae_config(plan, vae), weights=vae), vae))
    for name in plan.preset.controlnets:
        role = f"controlnet_{name}"
        weights = _open(plan, role)
        controlnet = networks.controlnet(_config(plan, role, kind="controlnet"), weights=weights)
        _require_alike(weights, controlnet, unet)
        jobs.append(_job(role, controlnet, weights))
    for name in plan.preset.annotators:
        weights, path = _open(plan, f"annotator_{name}"), _path(plan, f"annotator_{name}.config")
        config = networks.read_config(path, "annotator") if path else None
        annotator = networks.annotator(config, weights=weights)
        jobs.append(_job(f"annotators/{name}", annotator, weights, file=_MODEL))
    if text.config["hidden_size"] != _setting(unet, "cross_attention_dim"):
        raise ModelError(
            f"{base.path} wants text of {_setting(unet, 'cross_attention_dim')} numbers a token, "
            f"and the text encoder's has {text.config['hidden_size']}; take both from one checkpoint"
        )
    return jobs


def _job(
    folder: str, skeleton: Skeleton, weights: Weights, *, file: str = _WEIGHTS, motion: Weights | None = None
) -> _Job:
    inside = {name: shape for name, shape in skeleton.shapes.items() if "motion_modules." in name}
    own = {name: shape for name, shape in skeleton.shapes.items() if name not in inside}
    found = match(weights, own, skeleton.layouts, what=skeleton.what)
    sources = {name: (weights, there) for name, there in found.items()}
    if motion is not None:
        names = motion_layouts()
        found = match(motion, inside, names, what="motion modules of SD 1.5")
        sources |= {name: (motion, there) for name, there in found.items()}
    return _Job(folder=folder, file=file, skeleton=skeleton, sources=sources)


def _loras(plan: Plan, *, text: Skeleton, unet: Skeleton) -> list[Lora]:
    layers, ups = _setting(unet, "layers_per_block"), _setting(unet, "up_block_types")
    attending = frozenset(index for index, kind in enumerate(ups) if "CrossAttn" in kind)
    return [
        read_lora(
            _open(plan, f"lora_{name}"),
            weight=part.weight,
            networks={"unet": unet.shapes, "text_encoder": text.shapes},
            original_unet_name=lambda name: original_unet_name(name, layers=layers, attending=attending),
        )
        for name, part in plan.preset.loras.items()
    ]


def _tensors(job: _Job, loras: list[Lora]) -> dict[str, Tensor]:
    """Read a network's tensors one by one: fused with the LoRAs, then in half precision."""
    tensors = {}
    for name, (weights, there) in job.sources.items():
        tensor = weights[there].detach().reshape(job.skeleton.shapes[name])
        tensors[name] = fuse(tensor, loras, network=job.folder, name=name).to(torch.float16).contiguous()
    return tensors


def _write_tokenizer(plan: Plan, folder: Path) -> None:
    folder.mkdir()
    source = plan.files["tokenizer"].path
    if "tokenizer.merges" not in plan.files:
        shutil.copyfile(source, folder / "tokenizer.json")
        return
    from transformers import CLIPTokenizer

    with TemporaryDirectory() as both:  # the two files may lie apart
        shutil.copyfile(source, Path(both) / "vocab.json")
        shutil.copyfile(plan.files["tokenizer.merges"].path, Path(both) / "merges.txt")
        tokenizer = CLIPTokenizer.from_pretrained(both)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def _write_index(plan: Plan, jobs: Iterable[_Job], path: Path) -> None:
    scheduler = _SCHEDULERS.get(str(plan.preset.defaults.get("scheduler", "ddim")), "DDIMScheduler")
    index: dict[str, object] = {
        "_class_name": "AnimateDiffControlNetPipeline",
        "scheduler": ["diffusers", scheduler],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    for job in jobs:
        if "/" not in job.folder:
            network = job.skeleton.config.get("_class_name")
            index[job.folder] = ["diffusers", network] if network else ["transformers", "CLIPTextModel"]
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _require_alike(weights: Weights, controlnet: Skeleton, unet: Skeleton) -> None:
    for name in ("block_out_channels", "layers_per_block", "cross_attention_dim", "in_channels"):
        has, wanted = _setting(controlnet, name), _setting(unet, name)
        if has != wanted:
            raise ModelError(
                f"{weights.path} is a ControlNet for another UNet: its {name} is {has}, the UNet's {wanted}; "
                "take one of the same family"
            )


def _setting(skeleton: Skeleton, name: str) -> Any:
    value = skeleton.config[name]
    return list(value) if isinstance(value, tuple) else value


def _vae_config(plan: Plan, weights: Weights) -> networks.Config:
    tiny = any(name.startswith("decoder.layers.") for name in weights.shapes)
    return _config(plan, "vae", kind="tiny_vae" if tiny else "vae")


def _config(plan: Plan, role: str, *, kind: str = "") -> networks.Config:
    return networks.read_config(_path(plan, f"{role}.config"), kind or role)


def _path(plan: Plan, role: str) -> Path | None:
    return plan.files[role].path if role in plan.files else None


def _open(plan: Plan, role: str) -> Weights:
    found = plan.files[role]
    return open_weights(found.path, allow_pickle=found.allow_pickle)
