"""Attention to remembered frames (LVCD's prev-reference attention), put into a UNet from outside.

In the spatial self-attention of the chosen layers, a frame's queries also meet keys and values made of
remembered features: what entered the same layer (after its layer norm) when other frames were run, frames
of the same stream that are done or a reference picture. Features are kept and not keys and values: they are
half as large, and keys and values made of them anew are exact, whatever weights are put in meanwhile.

What is remembered goes in with every call and what was seen comes out of it; the network keeps nothing.

`inject` replaces the attention of a network's layers by `ReferenceAttention`, which borrows their parts under
the same names (state dictionaries stay as they were); `eject` puts the originals back.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toonstream.errors import ModelError
from toonstream.export.networks.base import InPlaceOf, spec
from toonstream.export.networks.temporal import MotionNorm
from toonstream.export.networks.unet import MotionUnet

__all__ = [
    "BIAS",
    "EMPTY",
    "FEATURES",
    "REMEMBERED",
    "ReferenceAttention",
    "ReferenceUnet",
    "divisor",
    "eject",
    "inject",
]

REMEMBERED = "remembered_"  # inputs: what is remembered of a layer
FEATURES = "features_"  # outputs: what is to be remembered of it
BIAS = "remembered_bias"
EMPTY = -1e4  # the bias of a place that holds nothing: its weight is 0 in every precision

_AT = re.compile(r".*_at_(\d+)")


class ReferenceUnet(MotionUnet):
    """A `MotionUnet` whose frames also attend to R remembered frames, R at least 1.

    Inputs: those of `MotionUnet`, then `remembered_bias` (B, R), added to the logits of each remembered
    frame's keys: 0 makes it weigh as the frame itself, log(s) s times as much, `EMPTY` not at all; then for
    each layer `remembered_0_at_4`, … (B, R, h/4, w/4, Ci), its features, at a quarter of the latents' size.
    Outputs: that of `MotionUnet`, then for each layer `features_0_at_4`, … (B, F, h/4, w/4, Ci).

    Args:
        network: the UNet.
        layers: which layers attend, see `inject`.
        motion_norm: as for `MotionUnet`.

    Raises:
        ModelError: it is a UNet of another family, or has no such layers.
    """

    def __init__(self, network: Any, *, layers: Sequence[str], motion_norm: MotionNorm = "joint") -> None:
        super().__init__(network, motion_norm=motion_norm)
        self._attentions = inject(network, layers=layers)  # a list, so that none is registered twice
        self._plain_inputs = len(self.inputs)
        places = [
            (f"{index}_at_{attention.divisor}", _shape(attention))
            for index, attention in enumerate(self._attentions)
        ]
        self.inputs = (
            *self.inputs,
            spec(BIAS, "batch", "remembered"),
            *(spec(REMEMBERED + name, "batch", "remembered", *shape) for name, shape in places),
        )
        self.outputs = (
            *self.outputs,
            *(spec(FEATURES + name, "batch", "frames", *shape) for name, shape in places),
        )

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *others: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Give the output of one denoising step of a window, and what is to be remembered of it."""
        plain = self._plain_inputs - 3
        residuals, (bias, *remembered) = others[:plain], others[plain:]
        frames, (height, width) = sample.shape[1], sample.shape[-2:]
        for attention, features in zip(self._attentions, remembered, strict=True):
            attention.remembered, attention.bias = features.flatten(2, 3), bias
        try:
            (output,) = super().forward(sample, timestep, text, *residuals)
            seen = [
                attention.features(frames, height // attention.divisor, width // attention.divisor)
                for attention in self._attentions
            ]
        finally:
            for attention in self._attentions:
                attention.remembered = attention.bias = attention.seen = None
        return (output, *seen)


def inject(network: Any, *, layers: Sequence[str]) -> list["ReferenceAttention"]:
    """Replace the spatial self-attention of layers of a diffusers UNet, in place.

    Args:
        network: a `UNet2DConditionModel` or `UNetMotionModel`.
        layers: beginnings of names of its blocks: down_0, down_1, …, mid, up_0, …; so `up` is all of the way
            up.

    Returns:
        What was put in, in the order in which it runs.

    Raises:
        ModelError: a name that no block with attention has, or a layer of another family.
    """
    found = [(name, place, block) for name, place, block in _blocks(network)]
    for wanted in layers:
        if not any(name.startswith(wanted) for name, _, _ in found):
            known = ", ".join(dict.fromkeys(name for name, _, _ in found)) or "none"
            raise ModelError(f"no layer {wanted!r} of this UNet has self-attention; those that do: {known}")
    injected = []
    for name, place, block in found:
        if name.startswith(tuple(layers)):
            if not isinstance(block.attn1, ReferenceAttention):
                _require_known(block)
                block.attn1 = ReferenceAttention(block.attn1, divisor=place)
            injected.append(block.attn1)
    return injected


def eject(network: Any) -> None:
    """Undo `inject`."""
    for _, _, block in _blocks(network):
        if isinstance(block.attn1, ReferenceAttention):
            block.attn1 = block.attn1.original


def divisor(name: str) -> int:
    """What the latents' height and width are divided by in a tensor called `remembered_0_at_4` or the like.

    Raises:
        ModelError: it is no such name.
    """
    match = _AT.fullmatch(name)
    if match is None:
        raise ModelError(f"{name} says no resolution; export the model again")
    return int(match[1])


class ReferenceAttention(InPlaceOf):
    """A diffusers self-`Attention` over the tokens of a frame, joined by those of remembered frames.

    Args:
        original: whose parts to use.
        divisor: of the latents' height and width, where it stands.
    """

    def __init__(self, original: Any, *, divisor: int) -> None:
        super().__init__(original)
        self.to_q: nn.Module = original.to_q
        self.to_k: nn.Module = original.to_k
        self.to_v: nn.Module = original.to_v
        self.to_out: nn.ModuleList = original.to_out
        self.divisor = divisor
        self.remembered: Tensor | None = None  # (B, R, M, C), during a call of the network only
        self.bias: Tensor | None = None  # (B, R), likewise
        self.seen: Tensor | None = None  # (B*F, N, C), likewise
        self._heads: int = original.heads
        self._scale: float = original.scale

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: None = None,
        attention_mask: None = None,
    ) -> Tensor:
        """Map (B*F, N, C) to the same shape. The arguments are those of diffusers' own module."""
        assert self.remembered is not None
        assert self.bias is not None
        self.seen = hidden_states
        batch, remembered, tokens, channels = self.remembered.shape
        others = self.remembered.reshape(batch, remembered * tokens, channels)
        frames = hidden_states.shape[0] // batch
        key = torch.cat([self.to_k(hidden_states), _per_frame(self.to_k(others), frames)], dim=1)
        value = torch.cat([self.to_v(hidden_states), _per_frame(self.to_v(others), frames)], dim=1)
        # One number per key, the same for all queries and heads.
        bias = self.bias.unsqueeze(2).expand(-1, -1, tokens).reshape(batch, 1, 1, remembered * tokens)
        bias = _per_frame(functional.pad(bias, (hidden_states.shape[1], 0)), frames)
        mixed = functional.scaled_dot_product_attention(
            self._apart(self.to_q(hidden_states)),
            self._apart(key),
            self._apart(value),
            attn_mask=bias,
            scale=self._scale,
        )
        output: Tensor = self.to_out[0](mixed.transpose(1, 2).flatten(2))
        return output

    def features(self, frames: int, height: int, width: int) -> Tensor:
        """What the frames had here in this call: (B, F, h, w, C)."""
        assert self.seen is not None
        return self.seen.reshape(-1, frames, height, width, self.seen.shape[-1])

    def _apart(self, tokens: Tensor) -> Tensor:
        """(B*F, N, C) by heads: (B*F, heads, N, C/heads)."""
        batch, count, channels = tokens.shape
        return tokens.reshape(batch, count, self._heads, channels // self._heads).transpose(1, 2)


def _per_frame(tensor: Tensor, frames: int) -> Tensor:
    """Repeat (B, …) for every frame: (B*F, …)."""
    return tensor.unsqueeze(1).expand(-1, frames, *tensor.shape[1:]).flatten(0, 1)


def _blocks(network: Any) -> Iterator[tuple[str, int, Any]]:
    """Give each transformer block within the frames: its layer's name, its divisor, and itself."""
    levels = len(network.down_blocks)
    places = [(f"down_{level}", 2**level, block) for level, block in enumerate(network.down_blocks)]
    if network.mid_block is not None:
        places.append(("mid", 2 ** (levels - 1), network.mid_block))
    places += [
        (f"up_{index}", 2 ** (levels - 1 - index), block) for index, block in enumerate(network.up_blocks)
    ]
    for name, place, layer in places:
        for transformer in getattr(layer, "attentions", ()):
            for block in transformer.transformer_blocks:
                yield name, place, block


def _require_known(block: Any) -> None:
    """Refuse a block that is not as Stable Diffusion 1.5 has them."""
    attention = block.attn1
    known = block.norm_type == "layer_norm" and block.pos_embed is None and not block.only_cross_attention
    plain = ("spatial_norm", "group_norm", "norm_q", "norm_k", "added_kv_proj_dim")
    known = known and all(getattr(attention, name, None) is None for name in plain)
    known = known and not attention.residual_connection and attention.rescale_output_factor == 1.0
    if not known:
        raise ModelError("this UNet's attention is not SD 1.5's; --reference and --remember need one that is")


def _shape(attention: ReferenceAttention) -> tuple[int | str, ...]:
    """The axes of a layer's features, after those that count frames."""
    place = attention.divisor
    channels = attention.to_q.in_features
    assert isinstance(channels, int)
    sides = ("h", "w") if place == 1 else (f"h/{place}", f"w/{place}")
    return (*sides, channels)
