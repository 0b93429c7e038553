"""The original AnimateDiff's motion module, plainly, on the layers of a diffusers one."""

from typing import Any

from torch import Tensor


def original_forward(module: Any, hidden_states: Tensor, num_frames: int) -> Tensor:
    """Its `TemporalTransformer3DModel`, from "(b f) c h w" to the same: the group norm is per frame."""
    batch, channels, height, width = hidden_states.shape
    tokens = module.norm(hidden_states)
    tokens = tokens.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    tokens = module.proj_in(tokens)
    for block in module.transformer_blocks:
        for attention, norm in ((block.attn1, block.norm1), (block.attn2, block.norm2)):
            tokens = versatile_attention(attention, block.pos_embed.pe, norm(tokens), num_frames) + tokens
        tokens = block.ff(block.norm3(tokens)) + tokens
    tokens = module.proj_out(tokens)
    return tokens.reshape(batch, height, width, channels).permute(0, 3, 1, 2) + hidden_states


def versatile_attention(attention: Any, positions: Tensor, tokens: Tensor, num_frames: int) -> Tensor:
    """Its `VersatileAttention`: "(b f) d c -> (b d) f c", positions, attention, and back."""
    batch, pixels, channels = tokens.shape[0] // num_frames, tokens.shape[1], tokens.shape[2]
    tokens = tokens.reshape(batch, num_frames, pixels, channels).transpose(1, 2)
    tokens = tokens.reshape(batch * pixels, num_frames, channels) + positions[:, :num_frames]

    def heads(states: Tensor) -> Tensor:
        return states.reshape(*states.shape[:2], attention.heads, -1).transpose(1, 2)

    query, key, value = (heads(layer(tokens)) for layer in (attention.to_q, attention.to_k, attention.to_v))
    scores = query @ key.transpose(-1, -2) * attention.scale
    mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(tokens.shape)
    mixed = attention.to_out[0](mixed)
    mixed = mixed.reshape(batch, pixels, num_frames, channels).transpose(1, 2)
    return mixed.reshape(batch * num_frames, pixels, channels)
