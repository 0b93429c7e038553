"""A ControlNet in two parts: the hint embedding, once per frame; the rest, once per frame and step."""

from typing import Any

from torch import Tensor

from toonstream.engines.engine import TensorSpec
from toonstream.errors import ModelError
from toonstream.export.networks.base import TIMESTEP, TensorModule, embedded_time, spec
from toonstream.export.networks.patches import to_patches

__all__ = ["ControlNet", "HintEmbedding", "residual_specs"]


def residual_specs(network: Any, *leading: str) -> tuple[TensorSpec, ...]:
    """Declare the residuals that a ControlNet gives to, or a UNet takes from, networks of this shape.

    Args:
        network: a diffusers `ControlNetModel` or `UNetMotionModel`.
        leading: the axes before the channels.
    """
    widths = network.config.block_out_channels
    layers = network.config.layers_per_block
    per_level = [layers] * len(widths) if isinstance(layers, int) else layers
    shapes = [(widths[0], 0)]  # (channels, level), first that of the first convolution
    for level, width in enumerate(widths):
        shapes += [(width, level)] * per_level[level]
        if level < len(widths) - 1:
            shapes.append((width, level + 1))  # the downsampler's
    names = [f"residual_{index}" for index in range(len(shapes))]
    return tuple(
        spec(name, *leading, channels, _down("h", level), _down("w", level))
        for name, (channels, level) in zip([*names, "residual_mid"], [*shapes, shapes[-1]], strict=True)
    )


def _down(axis: str, level: int) -> str:
    return f"{axis}/{2**level}" if level else axis


class HintEmbedding(TensorModule):
    """The part of a diffusers `ControlNetModel` that sees the hint and nothing else.

    Input: `hint` (B, 3, H, W) in [0, 1]. Output: `embedding` (B, C0, h, w), h = H/8. One that takes more than
    three channels takes square patches of pixels, laid into channels.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.inputs = (spec("hint", "batch", 3, "8h", "8w"),)
        self.outputs = (spec("embedding", "batch", network.config.block_out_channels[0], "h", "w"),)
        self._flip = network.config.controlnet_conditioning_channel_order == "bgr"

    def forward(self, hint: Tensor) -> tuple[Tensor]:
        """Embed hints."""
        ordered = hint.flip(1) if self._flip else hint
        patches = to_patches(ordered, self.network.config.conditioning_channels)
        return (self.network.controlnet_cond_embedding(patches),)


class ControlNet(TensorModule):
    """A diffusers `ControlNetModel` that takes the hint's embedding instead of the hint.

    Inputs: `sample` (B, C, h, w), `timestep` (B,) float32, `text` (B, tokens, D), `embedding` (B, C0, h, w).
    Outputs: `residual_0` … `residual_mid`, each (B, Ci, hi, wi), unscaled.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        config = network.config
        if config.addition_embed_type not in (None, "text") or config.class_embed_type is not None:
            raise ModelError("this ControlNet takes more than text and a hint; use one for SD 1.5")
        if config.global_pool_conditions:
            raise ModelError(
                "this ControlNet pools its residuals (shuffle), which is not supported; use another"
            )
        self.network = network
        self.inputs = (
            spec("sample", "batch", config.in_channels, "h", "w"),
            spec(TIMESTEP, "batch"),
            spec("text", "batch", "tokens", config.cross_attention_dim),
            spec("embedding", "batch", config.block_out_channels[0], "h", "w"),
        )
        self.outputs = residual_specs(network, "batch")

    def forward(
        self, sample: Tensor, timestep: Tensor, text: Tensor, embedding: Tensor
    ) -> tuple[Tensor, ...]:
        """Give the residuals of one denoising step."""
        network = self.network
        time = embedded_time(network, timestep, sample.dtype)
        if network.config.addition_embed_type == "text":
            time = time + network.add_embedding(text)
        hidden = network.conv_in(sample) + embedding
        states = [hidden]
        for block in network.down_blocks:
            hidden, more = _run(block, hidden, time, text)
            states.extend(more)
        if network.mid_block is not None:
            hidden = _run(network.mid_block, hidden, time, text)
        residuals = (
            project(state) for project, state in zip(network.controlnet_down_blocks, states, strict=True)
        )
        return (*residuals, network.controlnet_mid_block(hidden))


def _run(block: Any, hidden: Tensor, time: Tensor, text: Tensor) -> Any:
    """Run one of diffusers' blocks; those with cross-attention are given the text too."""
    if getattr(block, "has_cross_attention", False):
        return block(hidden, time, encoder_hidden_states=text)
    return block(hidden, time)
