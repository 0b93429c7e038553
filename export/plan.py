"""Which files a preset is made of: found, or named in one error. Nothing large is read here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from toonstream.engines.store import cache_folder
from toonstream.errors import ModelError
from toonstream.export.parts.locate import Located, Locator
from toonstream.export.parts.part import Part
from toonstream.export.parts.weights import PICKLED
from toonstream.export.presets import Preset

__all__ = ["Plan", "files_here", "make_plan"]

_NETWORK = tuple(
    f"diffusion_pytorch_model{variant}.{suffix}"
    for suffix in ("safetensors", "bin")
    for variant in (".fp16", "")
)
_MODEL = ("model.fp16.safetensors", "model.safetensors", "pytorch_model.fp16.bin", "pytorch_model.bin")
_LORA = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_EMBEDDING = ("learned_embeds.safetensors", "learned_embeds.bin")

Say = Callable[[str], None]
_Wanted = Mapping[str, tuple[Part, Sequence[str]]]  # role → where, and under which names


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The files of a preset.

    Attributes:
        preset: without the parts that it does without.
        files: by role: `unet`, `unet.config`, `motion`, `controlnet_NAME`, `lora_NAME`, `embedding_WORD`, …
    """

    preset: Preset
    files: Mapping[str, Located]


def make_plan(preset: Preset, locator: Locator, *, say: Say = lambda line: None) -> Plan:
    """Find every file of a preset.

    Args:
        preset: one that is made of parts.
        locator: finds them.
        say: is told which optional parts are left out.

    Raises:
        ModelError: files are missing (all of them are named), or pickled and not allowed.
    """
    files: dict[str, Located] = {}
    gone = []
    for what, part in preset.parts().items():
        found = _find(what, part, preset, locator)
        files |= found
        if part.optional and not found:
            gone.append(what)
    if locator.missing:
        raise ModelError(_missing(preset, locator))
    for what in gone:
        say(f"{preset.name} goes without {what}: it is not here, or is pickled and wants --allow-pickle")
    for file in files.values():
        if file.path.suffix in PICKLED and not file.allow_pickle:
            raise ModelError(
                f"{file.path} is pickled, and no .safetensors lies beside it; where you trust it, set "
                "allow_pickle = true in the preset or say --allow-pickle"
            )
    return Plan(preset=preset.without(gone), files=files)


def files_here(preset: Preset) -> dict[str, tuple[Located, ...] | None]:
    """Give the files of each part by what it is; None where some are not on this machine."""
    here: dict[str, tuple[Located, ...] | None] = {}
    for what, part in preset.parts().items():
        locator = Locator(download=False, allow_pickle=True)
        found = _find(what, replace(part, optional=False), preset, locator)
        here[what] = None if locator.missing else tuple(found.values())
    return here


def _missing(preset: Preset, locator: Locator) -> str:
    why = " and the hub cannot be reached" if locator.unreachable else ""
    hubs = dict.fromkeys(part.source for part in preset.parts().values() if part.on_hub)
    listed = [line for line in locator.missing if not line.startswith(tuple(f"{hub}/" for hub in hubs))]
    for hub in hubs:
        names = [line.removeprefix(f"{hub}/") for line in locator.missing if line.startswith(f"{hub}/")]
        listed += [f"of {hub} {', '.join(names)}"] if names else []
    number = len(locator.missing)
    count = "a file that is" if number == 1 else f"{number} files that are"
    return (
        f"{preset.name} needs {count} not here{why}: {'; '.join(listed)}. "
        f"Put the hub's files below {cache_folder() / 'parts'}/OWNER/NAME, under just these names, or give "
        "paths of your own in the preset"
    )


def _find(what: str, part: Part, preset: Preset, locator: Locator) -> dict[str, Located]:
    """Find the files of one part by role; those of an optional part all, or none."""
    wanted = _wanted(what, part, preset)
    found = {}
    for role, (source, names) in wanted.items():
        file = locator.find(source, *names, required=not part.optional)
        if file is not None and not (part.optional and file.path.suffix in PICKLED and not file.allow_pickle):
            found[role] = file
    if part.optional and found.keys() != wanted.keys():
        return {}
    if "tokenizer" in found and found["tokenizer"].path.name == "vocab.json":
        below = wanted["tokenizer"][1][0].removesuffix("tokenizer.json")
        if merges := locator.find(wanted["tokenizer"][0], f"{below}merges.txt"):
            found["tokenizer.merges"] = merges
    return found


def _wanted(what: str, part: Part, preset: Preset) -> _Wanted:
    """Say what files a part has."""
    role = what.replace(" ", "_", 1)
    match what.partition(" ")[0]:
        case "base":
            return _of_base(part, preset)
        case "tokenizer":
            return {role: (part, ("tokenizer.json", "vocab.json"))}
        case "lora":
            return {role: (part, (part.file,) if part.file else _LORA)}
        case "embedding":
            return {role: (part, (part.file,) if part.file else _EMBEDDING)}
        case "annotator":
            alone: _Wanted = {role: (part, (part.file,) if part.file else _MODEL)}
            return alone if part.file else {**alone, f"{role}.config": (part, ("config.json",))}
    return _of_network(role, part, "", _NETWORK)


def _of_network(role: str, part: Part, below: str, names: tuple[str, ...]) -> _Wanted:
    config = (f"{below}config.json",)
    if not part.file:
        return {role: (part, tuple(below + name for name in names)), f"{role}.config": (part, config)}
    alone: _Wanted = {role: (part, (part.file,))}
    return {**alone, f"{role}.config": (Part(source=part.config), config)} if part.config else alone


def _of_base(part: Part, preset: Preset) -> _Wanted:
    wanted = {
        **_of_network("text_encoder", part, "text_encoder/", _MODEL),
        **_of_network("unet", part, "unet/", _NETWORK),
    }
    if preset.vae is None:
        wanted |= _of_network("vae", part, "vae/", _NETWORK)
    if not part.file:
        wanted["scheduler"] = part, ("scheduler/scheduler_config.json",)
        if preset.tokenizer is None:
            wanted["tokenizer"] = part, ("tokenizer/tokenizer.json", "tokenizer/vocab.json")
    return wanted
