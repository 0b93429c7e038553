"""Writing a model folder from the files of a preset, in diffusers' layout and in half precision.

Networks are read, changed and written one by one, a tensor at a time: memory holds one network.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from toonstream.errors import ModelError
from toonstream.export.parts import networks
from toonstream.export.parts.layouts import motion_layouts, original_unet_name
from toonstream.export.parts.lora import Lora, fuse, read_lora
from toonstream.export.parts.match import match
from toonstream.export.parts.networks import Skeleton
from toonstream.export.parts.textual_inversion import read_embedding
from toonstream.export.parts.weights import Weights, open_weights
from toonstream.export.plan import Plan

__all__ = ["INDEX", "scheduler_class", "write_model"]

INDEX = "model_index.json"
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_MODEL = "model.safetensors"  # what transformers calls it
_SCHEDULERS = {"ddim": "DDIMScheduler", "lcm": "LCMScheduler", "euler": "EulerDiscreteScheduler"}

Say = Callable[[str], None]


def scheduler_class(plan: Plan) -> str:
    """Give diffusers' name of the scheduler that a preset asks for."""
    return _SCHEDULERS.get(str(plan.preset.defaults.get("scheduler")), "DDIMScheduler")


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


def write_model(plan: Plan, folder: Path, say: Say = lambda line: None) -> None:
    """Write all of a model folder but its settings. Every part is checked before the first is written.

    Args:
        plan: the files to read.
        folder: an empty one.
        say: is told which network is being written.

    Raises:
        ModelError: a part is not what it should be.
    """
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
    _write_index(plan, jobs, folder / INDEX)


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
    index: dict[str, object] = {
        "_class_name": "AnimateDiffControlNetPipeline",
        "scheduler": ["diffusers", scheduler_class(plan)],
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
