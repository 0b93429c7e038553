"""The text encoder."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from toonstream.errors import ModelError
from toonstream.export.networks.base import TensorModule, spec

__all__ = ["TextEncoder"]


class TextEncoder(TensorModule):
    """A transformers `CLIPTextModel`: the hidden states of one of its last layers, after the final norm.

    Input: `input_ids` (B, 77) int64; ids from the end of the vocabulary on are rows of `embeddings`.
    Output: `hidden_states` (B, 77, D).

    Args:
        network: the text model.
        clip_skip: which layer's hidden states, counted from the end: 1 is the last, 2 the one before.
        embeddings: textual inversions, (n, D): further tokens, appended to the vocabulary.

    Raises:
        ModelError: there is no such layer, or the embeddings are of another width.
    """

    embeddings: Tensor | None

    def __init__(self, network: Any, *, clip_skip: int = 1, embeddings: Tensor | None = None) -> None:
        super().__init__()
        config = network.config
        layers, width = config.num_hidden_layers, config.hidden_size
        if not 1 <= clip_skip <= layers:
            raise ModelError(
                f"clip_skip {clip_skip}: this text encoder has {layers} layers; take 1 (the last) to {layers}"
            )
        if embeddings is not None and embeddings.shape[1:] != (width,):
            raise ModelError(
                f"the textual inversions are {embeddings.shape[-1]} wide and the text encoder is {width}; "
                "use some made for SD 1.5"
            )
        del network.encoder.layers[layers + 1 - clip_skip :]
        self.network = network
        length = config.max_position_embeddings
        self.inputs = (spec("input_ids", "batch", length, dtype=torch.int64),)
        self.outputs = (spec("hidden_states", "batch", length, width),)
        mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
        self.register_buffer("causal_mask", mask[None, None], persistent=False)
        self.register_buffer("embeddings", embeddings, persistent=False)

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """Encode prompts."""
        network = self.network
        table = network.embeddings.token_embedding.weight
        if self.embeddings is not None:
            table = torch.cat([table, self.embeddings])
        hidden = network.embeddings(inputs_embeds=functional.embedding(input_ids, table))
        hidden = network.encoder(inputs_embeds=hidden, attention_mask=self.causal_mask).last_hidden_state
        return (network.final_layer_norm(hidden),)
