"""What one and the same tensor is called in the layouts that checkpoints come in.

Everything here maps a tensor's name in diffusers (or transformers) to its name in a file. "Original" are the
names of the CompVis code, which single-file checkpoints keep.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial

__all__ = [
    "Layout",
    "annotator_layouts",
    "controlnet_layouts",
    "motion_layouts",
    "original_unet_name",
    "text_layouts",
    "unet_layouts",
    "vae_layouts",
]

Layout = Callable[[str], str]
_Rules = Sequence[tuple[str, str]]

_RESNET: _Rules = (
    (r"norm1", "in_layers.0"),
    (r"conv1", "in_layers.2"),
    (r"time_emb_proj", "emb_layers.1"),
    (r"norm2", "out_layers.0"),
    (r"conv2", "out_layers.3"),
    (r"conv_shortcut", "skip_connection"),
)
_UNET: _Rules = (
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
    (r"^controlnet_down_blocks\.(\d+)", r"zero_convs.\1.0"),
    (r"^controlnet_mid_block", "middle_block_out.0"),
)
_VAE: _Rules = (
    (r"conv_norm_out", "norm_out"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"group_norm", "norm"),
    (r"to_([qkv])\.", r"\1."),
    (r"to_out\.0", "proj_out"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"conv_shortcut", "nin_shortcut"),
)
_VAE_OF_OLD_DIFFUSERS: _Rules = (
    (r"to_q\.", "query."),
    (r"to_k\.", "key."),
    (r"to_v\.", "value."),
    (r"to_out\.0", "proj_attn"),
)
_MOTION: _Rules = (
    (r"(motion_modules\.\d+)\.", r"\1.temporal_transformer."),
    (r"\.attn1\.", ".attention_blocks.0."),
    (r"\.attn2\.", ".attention_blocks.1."),
    (r"\.pos_embed\.", ".attention_blocks.0.pos_encoder."),
    (r"\.norm1\.", ".norms.0."),
    (r"\.norm2\.", ".norms.1."),
    (r"\.norm3\.", ".ff_norm."),
)


def unet_layouts(layers: int, attending: frozenset[int]) -> tuple[Layout, ...]:
    """Layouts of a UNet; see `original_unet_name`."""
    return _same, _prefixed("model.diffusion_model.", _original_unet(layers, attending))


def controlnet_layouts(layers: int, embedding_blocks: int) -> tuple[Layout, ...]:
    """Layouts of a ControlNet with so many layers a level, and blocks in the hint's embedding."""
    original = _original_unet(layers, frozenset())

    def name(tensor: str) -> str:
        tensor = re.sub(r"^controlnet_cond_embedding\.conv_in", "input_hint_block.0", tensor)
        last = f"input_hint_block.{2 * embedding_blocks + 2}"
        tensor = re.sub(r"^controlnet_cond_embedding\.conv_out", last, tensor)
        return original(
            re.sub(
                r"^controlnet_cond_embedding\.blocks\.(\d+)",
                lambda found: f"input_hint_block.{2 * int(found[1]) + 2}",
                tensor,
            )
        )

    return _same, _prefixed("control_model.", name), name


def vae_layouts(levels: int) -> tuple[Layout, ...]:
    """Layouts of an autoencoder of so many levels; files of a VAE alone leave the prefix out."""

    def name(tensor: str) -> str:
        tensor = re.sub(
            r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)",
            lambda found: (
                f"up.{levels - 1 - int(found[1])}.{'block' if found[2] == 'resnets' else 'upsample'}"
            ),
            tensor,
        )
        return _apply(_VAE, tensor)

    return _same, partial(_apply, _VAE_OF_OLD_DIFFUSERS), name, _prefixed("first_stage_model.", name)


def motion_layouts() -> tuple[Layout, ...]:
    """Layouts of motion modules: adapters in diffusers' layout, and AnimateDiff's own files."""
    original: Layout = partial(_apply, _MOTION)
    return _same, original, _prefixed("module.", original)


def text_layouts() -> tuple[Layout, ...]:
    """Layouts of CLIP's text encoder, alone or in a checkpoint."""
    prefixes = ("text_model.", "cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
    return _same, *(_prefixed(prefix, _same) for prefix in prefixes)


def annotator_layouts() -> tuple[Layout, ...]:
    """Layouts of annotators: the published files' own."""
    return _same, _prefixed("module.", _same)


def original_unet_name(name: str, *, layers: int, attending: frozenset[int]) -> str:
    """Give the original name of a tensor of a UNet; motion modules have none, and keep theirs.

    Args:
        name: in diffusers.
        layers: residual blocks a level.
        attending: which of the blocks on the way up attend; their upsamplers come third, not second.
    """
    if ".motion_modules." in name:
        return name
    if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        place = block * (layers + 1) + layer
        match way, kind:
            case "down", "downsamplers":
                return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
            case "up", "upsamplers":
                return f"output_blocks.{place + layers}.{1 + (block in attending)}.{rest}"
        blocks = f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"
        return f"{blocks}.0.{_apply(_RESNET, rest)}" if kind == "resnets" else f"{blocks}.1.{rest}"
    renamed = _apply(_UNET, name)
    return _apply(_RESNET, renamed) if name.startswith("mid_block.resnets.") else renamed


def _original_unet(layers: int, attending: frozenset[int]) -> Layout:
    return lambda name: original_unet_name(name, layers=layers, attending=attending)


def _same(name: str) -> str:
    return name


def _prefixed(prefix: str, layout: Layout) -> Layout:
    return lambda name: prefix + layout(name)


def _apply(rules: _Rules, name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
