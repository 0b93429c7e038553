"""Prompt → token ids → hidden states."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.errors import InputError, ModelError

__all__ = ["PromptTokenizer", "encode_prompt"]

_LENGTH = 77
_START, _END = "<|startoftext|>", "<|endoftext|>"


class PromptTokenizer:
    """CLIP's tokenizer, from a `tokenizer.json`, without transformers.

    Raises:
        ModelError: the file cannot be read, or lacks CLIP's start and end tokens.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_buffer(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is no tokenizer ({error}); get the file again") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        start, end = (self._tokenizer.token_to_id(token) for token in (_START, _END))
        if start is None or end is None:
            raise ModelError(f"{path} lacks {_START} or {_END}; get the tokenizer of a CLIP text encoder")
        self._start, self._end = start, end

    def __call__(self, prompt: str) -> Tensor:
        """Give the token ids of a prompt: (1, 77) int64, start, words, end, and ends to fill up.

        Raises:
            InputError: the prompt is too long.
        """
        ids = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        room = _LENGTH - 2
        if len(ids) > room:
            raise InputError(f"the prompt has {len(ids)} tokens and {room} fit; shorten it")
        return torch.tensor([[self._start, *ids, *[self._end] * (1 + room - len(ids))]])


def encode_prompt(network: Network, tokenizer: PromptTokenizer, prompt: str) -> Tensor:
    """Run the text encoder on a prompt: (1, 77, D) float32.

    Raises:
        InputError: the prompt is too long.
    """
    return network({"input_ids": tokenizer(prompt)})["hidden_states"]
