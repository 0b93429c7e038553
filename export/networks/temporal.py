"""Motion modules as the engines like them: the same function as diffusers', in another layout.

diffusers lays the tokens of a motion module out as (pixels, frames, channels). Here they stay
(frames, pixels, channels), near to how the convolutions around leave them. Attention over the frames then
has two forms. In a narrow module a window's few frames would make thousands of products of 4 by 4, which CPU
engines run slowly: there, each pair of frames is one elementwise product. In a wide one (AnimateDiff's have
320 channels and more) those products would fill gigabytes, and it is batched matrix products after all.

The group norm at a module's entrance is over each frame by itself in the original AnimateDiff code, which
Diffutoon uses, and over all frames of the window jointly in diffusers. The same checkpoint gives different
numbers; `MotionNorm` says which is meant.

`inject` replaces the motion modules of a network by `FrameMajorMotion`, which borrows their layers under
the same names (state dictionaries stay as they were); `eject` puts the originals back.
"""

from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from toonstream.errors import ModelError
from toonstream.export.configs import MotionNorm
from toonstream.export.networks.base import InPlaceOf

__all__ = ["FrameMajorMotion", "MotionNorm", "eject", "inject"]


_WIDE = 256  # channels from which attention is matrix products
_MOST_PIXELS = 65535  # that attend at once: CUDA's grids have no more blocks along an axis


def inject(network: nn.Module, *, norm: MotionNorm = "joint") -> None:
    """Replace every motion module of `network`, a diffusers `UNetMotionModel`, in place.

    Args:
        network: whose modules to replace; those that are replaced already stay.
        norm: what their group norms are over: all frames of a window jointly, or each frame.

    Raises:
        ModelError: the modules are not AnimateDiff's, or `norm` is unknown.
    """
    for modules in _motion_modules(network):
        for index, module in enumerate(modules):
            if not isinstance(module, FrameMajorMotion):
                modules[index] = FrameMajorMotion(module, norm=norm)


def eject(network: nn.Module) -> None:
    """Undo `inject`."""
    for modules in _motion_modules(network):
        for index, module in enumerate(modules):
            if isinstance(module, FrameMajorMotion):
                modules[index] = module.original


def _motion_modules(network: nn.Module) -> list[nn.ModuleList]:
    lists = [
        module for name, module in network.named_modules() if name.rpartition(".")[2] == "motion_modules"
    ]
    return [modules for modules in lists if isinstance(modules, nn.ModuleList)]


class FrameMajorMotion(InPlaceOf):
    """One `AnimateDiffTransformer3D`, computed frame-major.

    Args:
        original: the module whose layers to use.
        norm: what its group norm is over.

    Raises:
        ModelError: the module is not AnimateDiff's, or `norm` is unknown.
    """

    head_of_channel: Tensor

    def __init__(self, original: Any, *, norm: MotionNorm = "joint") -> None:
        super().__init__(original)
        if norm not in get_args(MotionNorm):
            raise ModelError(
                f"motion_norm {norm!r} is unknown; use joint (as diffusers) or frame (as AnimateDiff)"
            )
        for block in original.transformer_blocks:
            _require_known(block)
        self.norm: nn.Module = original.norm
        self.proj_in: nn.Module = original.proj_in
        self.transformer_blocks: nn.ModuleList = original.transformer_blocks
        self.proj_out: nn.Module = original.proj_out
        attention = original.transformer_blocks[0].attn1
        heads, channels = attention.heads, attention.to_q.out_features
        if channels < _WIDE:
            self.register_buffer("head_of_channel", _head_of_channel(heads, channels), persistent=False)
        self._wide = channels >= _WIDE
        self._joint = norm == "joint"

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        timestep: None = None,
        class_labels: None = None,
        num_frames: int = 1,
        cross_attention_kwargs: None = None,
    ) -> Tensor:
        """Map (B*F, C, h, w) to the same shape. The arguments are those of diffusers' own module."""
        _, channels, height, width = hidden_states.shape
        tokens = self._normalise(hidden_states, num_frames)  # (B, F, h*w, C)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = self._run_block(block, tokens, num_frames)
        tokens = self.proj_out(tokens)
        output: Tensor = tokens.transpose(2, 3).reshape(-1, channels, height, width) + hidden_states
        return output

    def _normalise(self, hidden_states: Tensor, num_frames: int) -> Tensor:
        """Normalise (B*F, C, h, w), and lay it out as (B, F, h*w, C)."""
        _, channels, height, width = hidden_states.shape
        apart = (-1, num_frames, channels, height * width)
        normal: Tensor
        if self._joint:
            normal = self.norm(hidden_states.reshape(apart).transpose(1, 2))
            return normal.permute(0, 2, 3, 1)
        normal = self.norm(hidden_states)
        return normal.reshape(apart).transpose(2, 3)

    def _run_block(self, block: Any, tokens: Tensor, num_frames: int) -> Tensor:
        """Run a diffusers `BasicTransformerBlock` with layer norms on tokens (B, F, L, C)."""
        position = block.pos_embed.pe[0, :num_frames].unsqueeze(1)  # (F, 1, C)
        tokens = tokens + self._attend(block.attn1, block.norm1(tokens) + position)
        if block.attn2 is not None:
            tokens = tokens + self._attend(block.attn2, block.norm2(tokens) + position)
        return tokens + _feed_forward(block.ff, block.norm3(tokens))

    def _attend(self, attention: Any, tokens: Tensor) -> Tensor:
        if self._wide:
            return _attend_by_products(attention, tokens)
        return _attend_by_pairs(attention, tokens, self.head_of_channel)


def _require_known(block: Any) -> None:
    """Refuse a block that is not as AnimateDiff has them: frames attend to frames, and to nothing else."""
    attentions = [block.attn1] if block.attn2 is None else [block.attn1, block.attn2]
    known = block.pos_embed is not None and block.norm_type == "layer_norm"
    known = known and all(not attention.is_cross_attention for attention in attentions)
    if not known or type(block.ff.net[0]).__name__ != "GEGLU":
        raise ModelError("these motion modules are not AnimateDiff's; use a motion adapter for SD 1.5")


def _feed_forward(layer: Any, tokens: Tensor) -> Tensor:
    """Run a diffusers `FeedForward` with GEGLU, as two products instead of one that is then cut in two."""
    project = layer.net[0].proj
    half = project.out_features // 2
    hidden = functional.linear(tokens, project.weight[:half], project.bias[:half])
    gate = functional.linear(tokens, project.weight[half:], project.bias[half:])
    output: Tensor = layer.net[2](hidden * functional.gelu(gate))
    return output


def _head_of_channel(heads: int, channels: int) -> Tensor:
    """Make (C, heads), 1 where a channel belongs to a head: sums products over heads, and spreads weights."""
    return torch.eye(heads).repeat_interleave(channels // heads, 0)


def _attend_by_pairs(attention: Any, tokens: Tensor, head_of_channel: Tensor) -> Tensor:
    """Self-attention of every pixel over the frames, each pair of frames one elementwise product.

    Args:
        attention: a diffusers `Attention`, whose layers are used.
        tokens: (B, F, L, C); each of the L pixels attends over its F frames only.
        head_of_channel: (C, heads), 1 where a channel belongs to a head, else 0.

    Returns:
        (B, F, L, C).
    """
    query = (attention.to_q(tokens) * attention.scale).unsqueeze(1)  # (B, 1, F, L, C)
    key = attention.to_k(tokens).unsqueeze(2)  # (B, G, 1, L, C)
    value = attention.to_v(tokens).unsqueeze(2)
    products = (query * key) @ head_of_channel
    weights = products.softmax(1)  # (B, G, F, L, heads), over the frames G attended to
    output: Tensor = attention.to_out[0](((weights @ head_of_channel.t()) * value).sum(1))
    return output


def _attend_by_products(attention: Any, tokens: Tensor) -> Tensor:
    """The same with (B, F, L, C), as batched matrix products, one for each pixel and head."""
    batch, frames, pixels, channels = tokens.shape
    apart = (batch, frames, pixels, attention.heads, channels // attention.heads)
    query, key, value = (
        project(tokens).reshape(apart).permute(0, 2, 3, 1, 4).flatten(0, 1)  # (B*L, heads, F, C/heads)
        for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    mixed = _mixed(query, key, value, scale=attention.scale)
    mixed = mixed.permute(0, 2, 1, 3).reshape(batch, pixels, frames, channels).transpose(1, 2)
    output: Tensor = attention.to_out[0](mixed)
    return output


def _mixed(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Scaled dot-product attention of (pixels, heads, F, C/heads), in parts where there are many pixels."""
    if torch.onnx.is_in_onnx_export() or len(query) <= _MOST_PIXELS:
        return functional.scaled_dot_product_attention(query, key, value, scale=scale)
    parts = [slice(start, start + _MOST_PIXELS) for start in range(0, len(query), _MOST_PIXELS)]
    return torch.cat(
        [
            functional.scaled_dot_product_attention(query[part], key[part], value[part], scale=scale)
            for part in parts
        ]
    )
