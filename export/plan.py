"""Which files a preset is made of: found, or named in one error. Nothing large is read here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from toonstream.engines.store import cache_folder
from toonstream.errors import ModelError
from toonstream.export.parts.locate import Located, Locator
from toonstream.export.parts.part import Part
from toonstream.export.parts.weights import PICKLED
from toonstream.export.presets import Preset

__all__ = ["TOKENIZER", "Plan", "make_plan"]

# Where a single-file checkpoint's tokenizer comes from: CLIP's own, which all of Stable Diffusion 1.5 shares.
TOKENIZER = Part(source="openai/clip-vit-large-patch14", licence="MIT", bytes=2_200_000)

_NETWORK = tuple(
    f"diffusion_pytorch_model{variant}.{suffix}"
    for suffix in ("safetensors", "bin")
    for variant in (".fp16", "")
)
_MODEL = ("model.fp16.safetensors", "model.safetensors", "pytorch_model.fp16.bin", "pytorch_model.bin")
_LORA = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_EMBEDDING = ("learned_embeds.safetensors", "learned_embeds.bin")

Say = Callable[[str], None]


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
    finder = _Finder(locator)
    finder.base(preset)
    if preset.motion is not None:
        finder.network("motion", preset.motion)
    if preset.vae is not None:
        finder.network("vae", preset.vae)
    for name, part in preset.controlnets.items():
        finder.network(f"controlnet_{name}", part)

    def kept(kind: str, parts: Mapping[str, Part], names: tuple[str, ...]) -> dict[str, Part]:
        found = {}
        for name, part in parts.items():
            if finder.file(f"{kind}_{name}", part, *([part.file] if part.file else names)):
                found[name] = part
            elif part.optional:
                say(
                    f"{preset.name} goes without {kind} {name}: it is not here, or is pickled and not allowed"
                )
        return found

    preset = replace(
        preset,
        loras=kept("lora", preset.loras, _LORA),
        embeddings=kept("embedding", preset.embeddings, _EMBEDDING),
        annotators=kept("annotator", preset.annotators, _MODEL),
    )
    for name, part in preset.annotators.items():
        if not part.file:
            finder.file(f"annotator_{name}.config", part, "config.json")
    if locator.missing:
        raise ModelError(_missing(preset, locator))
    for found in finder.files.values():
        if found.path.suffix in PICKLED and not found.allow_pickle:
            raise ModelError(
                f"{found.path} is pickled, and no .safetensors lies beside it; where you trust it, set "
                "allow_pickle = true in the preset or say --allow-pickle"
            )
    return Plan(preset=preset, files=finder.files)


def _missing(preset: Preset, locator: Locator) -> str:
    why = " and the hub cannot be reached" if locator.unreachable else ""
    return (
        f"{preset.name} needs {len(locator.missing)} files that are not here{why}: "
        f"{', '.join(locator.missing)}; put the hub's files below {cache_folder() / 'parts'}, "
        "under just these names, or give paths of your own in the preset"
    )


class _Finder:
    """Finds the files of each kind of part, by role."""

    def __init__(self, locator: Locator) -> None:
        self.files: dict[str, Located] = {}
        self._locator = locator

    def file(self, role: str, part: Part, *names: str) -> bool:
        found = self._locator.find(part, *names, required=not part.optional)
        if found is None or (part.optional and found.path.suffix in PICKLED and not found.allow_pickle):
            return False
        self.files[role] = found
        return True

    def base(self, preset: Preset) -> None:
        part = preset.base
        assert part is not None
        networks = ["text_encoder", "unet"] + (["vae"] if preset.vae is None else [])
        for network in networks:
            if part.file:
                self.file(network, part, part.file)
                self._config(network, part, f"{network}/config.json")
            else:
                names = _MODEL if network == "text_encoder" else _NETWORK
                self.file(network, part, *(f"{network}/{name}" for name in names))
                self.file(f"{network}.config", part, f"{network}/config.json")
        if not part.file:
            self.file("scheduler", part, "scheduler/scheduler_config.json")
        tokenizer = preset.tokenizer or (TOKENIZER if part.file else part)
        below = "tokenizer/" if tokenizer is part else ""
        self.file("tokenizer", tokenizer, f"{below}tokenizer.json", f"{below}vocab.json")
        if "tokenizer" in self.files and self.files["tokenizer"].path.name == "vocab.json":
            self.file("tokenizer.merges", tokenizer, f"{below}merges.txt")

    def network(self, role: str, part: Part) -> None:
        if part.file:
            self.file(role, part, part.file)
            self._config(role, part, "config.json")
        else:
            self.file(role, part, *_NETWORK)
            self.file(f"{role}.config", part, "config.json")

    def _config(self, role: str, part: Part, name: str) -> None:
        if part.config:
            self.file(f"{role}.config", Part(source=part.config), name)
