"""What a file of weights looks like, for telling a user that it is another one than was wanted."""

from collections.abc import Mapping

__all__ = ["describe"]

_Shapes = Mapping[str, tuple[int, ...]]
_Signs = tuple[tuple[tuple[str, ...], str], ...]

_CROSS_ATTENTION = "attn2.to_k.weight"
_TEXT_WIDTHS = {768: "SD 1.5", 1024: "SD 2", 2048: "SDXL"}  # what cross-attention of each family takes
# The first whose words all occur in the names of the tensors.
_SIGNS: _Signs = (
    (("joint_blocks.",), "an SD 3 model"),
    (("double_blocks.",), "a Flux model"),
    (("conditioner.embedders.1.",), "an SDXL checkpoint"),
    (("cond_stage_model.model.transformer.",), "an SD 2 checkpoint"),
    (("hada_w1_a",), "a LoHa, a kind of LoRA"),
    (("lokr_w1",), "a LoKr, a kind of LoRA"),
    (("lora_te2_",), "a LoRA for SDXL"),
    (("lora",), "a LoRA"),
    (("clip_g",), "a textual inversion for SDXL"),
    (("emb_params",), "a textual inversion"),
    (("string_to_param",), "a textual inversion"),
)
_KINDS: _Signs = (
    (("add_embedding.linear_1.", "down_blocks."), "an SDXL network"),
    (("zero_convs.",), "a ControlNet{family}"),
    (("controlnet_down_blocks.",), "a ControlNet{family}"),
    (("model.diffusion_model.", "first_stage_model."), "a whole checkpoint{family}"),
    (("model.diffusion_model.",), "the UNet of a checkpoint{family}, without its VAE"),
    (("motion_modules.", "conv_in."), "a UNet with motion modules{family}"),
    (("motion_modules.",), "a motion module"),
    (("down_blocks.", "conv_norm_out.", "time_embedding."), "a UNet{family}"),
    (("decoder.layers.", "encoder.layers."), "a tiny VAE"),
    (("decoder.mid", "encoder.mid"), "a VAE"),
    (("encoder.layers.", "embeddings.token_embedding"), "a CLIP text encoder"),
)


def describe(shapes: _Shapes) -> str:
    """Say in a few words what tensors of these names and shapes are, such as "an SDXL checkpoint"."""
    if not shapes:
        return "a file without tensors"
    names = "\n".join(shapes)
    for words, text in _SIGNS:
        if all(word in names for word in words):
            return text
    for words, text in _KINDS:
        if all(word in names for word in words):
            return text.format(family=_family(shapes))
    return "nothing that toonstream knows"


def _family(shapes: _Shapes) -> str:
    widths = {shape[-1] for name, shape in shapes.items() if name.endswith(_CROSS_ATTENTION)}
    known = [_TEXT_WIDTHS[width] for width in widths if width in _TEXT_WIDTHS]
    first = shapes.get("model.diffusion_model.input_blocks.0.0.weight") or shapes.get("conv_in.weight")
    inpainting = " for inpainting" if first is not None and len(first) == 4 and first[1] == 9 else ""
    return f" of {known[0]}{inpainting}" if len(known) == 1 else inpainting
