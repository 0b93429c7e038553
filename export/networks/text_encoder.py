"""The text encoder."""

from typing import Any

import torch
from torch import Tensor

from toonstream.export.networks.base import TensorModule, spec

__all__ = ["TextEncoder"]


class TextEncoder(TensorModule):
    """A transformers `CLIPTextModel`, its last hidden states after the final norm.

    Input: `input_ids` (B, 77) int64. Output: `hidden_states` (B, 77, D).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        length = network.config.max_position_embeddings
        self.inputs = (spec("input_ids", "batch", length, dtype=torch.int64),)
        self.outputs = (spec("hidden_states", "batch", length, network.config.hidden_size),)
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        self.register_buffer("causal_mask", mask[None, None], persistent=False)

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """Encode prompts."""
        network = self.network
        hidden = network.embeddings(input_ids=input_ids)
        hidden = network.encoder(inputs_embeds=hidden, attention_mask=self.causal_mask).last_hidden_state
        return (network.final_layer_norm(hidden),)
