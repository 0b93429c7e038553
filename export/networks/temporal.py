"""Motion modules as the engines like them: the same function as diffusers', in another layout.

diffusers lays the tokens of a motion module out as (pixels, frames, channels) and attends with batched
matrix products. A window holds a handful of frames, so that is thousands of products of 4 by 4, which
CPU engines run slowly. Here the tokens stay (frames, pixels, channels), near to how the convolutions
around leave them, and each pair of frames is one elementwise product.

`inject` replaces the motion modules of a network by `FrameMajorMotion`, which borrows their layers under
the same names (state dictionaries stay as they were); `eject` puts the originals back.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FrameMajorMotion", "eject", "inject"]


def inject(network: nn.Module) -> None:
    """Replace every motion module of `network`, a diffusers `UNetMotionModel`, in place."""
    for modules in _motion_modules(network):
        for index, module in enumerate(modules):
            if not isinstance(module, FrameMajorMotion):
                modules[index] = FrameMajorMotion(module)


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


class FrameMajorMotion(nn.Module):
    """One `AnimateDiffTransformer3D`, computed frame-major."""

    head_of_channel: Tensor

    def __init__(self, original: Any) -> None:
        super().__init__()
        self.norm: nn.Module = original.norm
        self.proj_in: nn.Module = original.proj_in
        self.transformer_blocks: nn.ModuleList = original.transformer_blocks
        self.proj_out: nn.Module = original.proj_out
        attention = original.transformer_blocks[0].attn1
        heads, channels = attention.heads, attention.to_q.out_features
        self.register_buffer("head_of_channel", _head_of_channel(heads, channels), persistent=False)
        self._original = [original]  # in a list, so that its parameters are not registered twice

    @property
    def original(self) -> nn.Module:
        """The module that this one stands for."""
        module: nn.Module = self._original[0]
        return module

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
        # The norm is joint over the frames, as in diffusers (the original AnimateDiff has it per frame).
        tokens = hidden_states.reshape(-1, num_frames, channels, height * width).transpose(1, 2)
        tokens = self.norm(tokens).permute(0, 2, 3, 1)  # (B, F, h*w, C)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = _run_block(block, tokens, num_frames, self.head_of_channel)
        tokens = self.proj_out(tokens)
        output: Tensor = tokens.transpose(2, 3).reshape(-1, channels, height, width) + hidden_states
        return output


def _run_block(block: Any, tokens: Tensor, num_frames: int, head_of_channel: Tensor) -> Tensor:
    """Run a diffusers `BasicTransformerBlock` with layer norms on tokens (B, F, L, C)."""
    position = block.pos_embed.pe[0, :num_frames].unsqueeze(1)  # (F, 1, C)
    tokens = tokens + _attend_over_frames(block.attn1, block.norm1(tokens) + position, head_of_channel)
    if block.attn2 is not None:
        tokens = tokens + _attend_over_frames(block.attn2, block.norm2(tokens) + position, head_of_channel)
    return tokens + _feed_forward(block.ff, block.norm3(tokens))


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


def _attend_over_frames(attention: Any, tokens: Tensor, head_of_channel: Tensor) -> Tensor:
    """Self-attention of every pixel over the frames.

    Args:
        attention: a diffusers `Attention`, whose layers are used.
        tokens: (B, F, L, C); each of the L pixels attends over its F frames only.
        head_of_channel: (C, heads), 1 where a channel belongs to a head, else 0.

    Returns:
        (B, F, L, C).
    """
    query = attention.to_q(tokens * attention.scale).unsqueeze(1)  # (B, 1, F, L, C)
    key = attention.to_k(tokens).unsqueeze(2)  # (B, G, 1, L, C)
    value = attention.to_v(tokens).unsqueeze(2)
    weights = ((query * key) @ head_of_channel).softmax(
        1
    )  # (B, G, F, L, heads), over the frames G attended to
    output: Tensor = attention.to_out[0](((weights @ head_of_channel.t()) * value).sum(1))
    return output
