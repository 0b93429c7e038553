"""Prompt → token ids → hidden states.

A text encoder takes 77 tokens at once: a start, 75 of the prompt, an end. Longer prompts are cut into such
chunks, whose hidden states follow one another: (1, 77·n, D).
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.errors import InputError, ModelError
from toonstream.export.networks.base import CHUNK_TOKENS
from toonstream.export.prompt import parse_prompt

__all__ = ["PromptEncoder", "PromptTokenizer", "Tokens", "encode_prompt"]

_ROOM = CHUNK_TOKENS - 2  # tokens of a prompt in a chunk
_MOST_CHUNKS = 8
_MOST_CHARACTERS = 10_000
_KEPT_PROMPTS = 64
_START, _END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """A prompt as the text encoder takes it.

    Attributes:
        ids: (n, 77) int64, n chunks of start, tokens, end, and ends to fill up.
        weights: (n, 77) float32, how much each counts; 1 is as usual.
    """

    ids: Tensor
    weights: Tensor


class PromptTokenizer:
    """CLIP's tokenizer, from a `tokenizer.json`, without transformers.

    Args:
        path: of the file.
        embeddings: textual inversions: words that stand for several tokens, and the ids of those.

    Raises:
        ModelError: the file cannot be read, or lacks CLIP's start and end tokens.
    """

    def __init__(self, path: Path, embeddings: Mapping[str, range] | None = None) -> None:
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
        self._embeddings = {word.lower(): tuple(ids) for word, ids in (embeddings or {}).items()}
        # The longest first, so that "style-2" is not read as "style" and something.
        words = "|".join(re.escape(word) for word in sorted(self._embeddings, key=len, reverse=True))
        self._word = re.compile(rf"(?<!\w)({words})(?!\w)", re.IGNORECASE) if words else None

    def __call__(self, prompt: str) -> Tokens:
        """Give the tokens of a prompt, see `export.prompt` for how it is written.

        Raises:
            InputError: the prompt is longer than any model takes.
        """
        if len(prompt) > _MOST_CHARACTERS:
            raise InputError(f"the prompt has {len(prompt)} characters; shorten it to {_MOST_CHARACTERS}")
        chunks: list[list[tuple[int, float]]] = [[]]
        for ids, weight in self._pieces(prompt):
            # A textual inversion is not torn apart, unless it fills more than a chunk.
            if len(ids) <= _ROOM < len(chunks[-1]) + len(ids):
                chunks.append([])
            for token in ids:
                if len(chunks[-1]) == _ROOM:
                    chunks.append([])
                chunks[-1].append((token, weight))
        if len(chunks) > _MOST_CHUNKS:
            raise InputError(
                f"the prompt fills {len(chunks)} chunks of {_ROOM} tokens; shorten it to {_MOST_CHUNKS}"
            )
        rows = [
            [(self._start, 1.0), *chunk, *[(self._end, 1.0)] * (_ROOM + 1 - len(chunk))] for chunk in chunks
        ]
        return Tokens(
            ids=torch.tensor([[token for token, _ in row] for row in rows]),
            weights=torch.tensor([[weight for _, weight in row] for row in rows]),
        )

    def _pieces(self, prompt: str) -> Iterator[tuple[tuple[int, ...], float]]:
        """Give the ids that belong together, in order, and how much they count."""
        for part in parse_prompt(prompt):
            # Every second text is a textual inversion, because the expression captures it.
            texts = [part.text] if self._word is None else self._word.split(part.text)
            for index, text in enumerate(texts):
                if index % 2:
                    yield self._embeddings[text.lower()], part.weight
                else:
                    for token in self._tokenizer.encode(text, add_special_tokens=False).ids:
                        yield (token,), part.weight


class PromptEncoder:
    """Encodes prompts, and remembers the latest of them.

    Args:
        network: the text encoder.
        tokenizer: its tokenizer.
        readers: networks that will be given the text; one may be made for texts of one length.
    """

    def __init__(
        self, network: Network, tokenizer: PromptTokenizer, *, readers: Iterable[Network] = ()
    ) -> None:
        self._network = network
        self._tokenizer = tokenizer
        lengths = [spec.shape[1] for reader in readers for spec in reader.inputs if spec.name == "text"]
        self._most = min((length for length in lengths if isinstance(length, int)), default=None)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, *prompts: str, chunks: int = 1) -> tuple[Tensor, ...]:
        """Encode prompts that are used together, such as both sides of guidance.

        Args:
            prompts: what to encode.
            chunks: how many chunks of 77 tokens to give at least.

        Returns:
            One (1, 77·n, D) float32 per prompt; n is that of the longest, the others are filled up with
            empty chunks.

        Raises:
            InputError: a prompt is longer than the model takes.
        """
        texts = [self._encoded(prompt) for prompt in prompts]
        length = max([chunks * CHUNK_TOKENS, *(text.shape[1] for text in texts)])
        return tuple(self._filled(text, length) for text in texts)

    def _encoded(self, prompt: str) -> Tensor:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        tokens = self._tokenizer(prompt)
        if self._most is not None and tokens.ids.numel() > self._most:
            raise InputError(
                f"the prompt has more than the {self._most - 2} tokens that this model was exported for; "
                "shorten it, or export the model again"
            )
        text = torch.cat(
            [
                _weighted(self._network({"input_ids": ids[None]})["hidden_states"], weights)
                for ids, weights in zip(tokens.ids, tokens.weights, strict=True)
            ],
            dim=1,
        )
        self._kept[prompt] = text
        if len(self._kept) > _KEPT_PROMPTS:
            self._kept.popitem(last=False)
        return text

    def _filled(self, text: Tensor, length: int) -> Tensor:
        missing = (length - text.shape[1]) // CHUNK_TOKENS
        return torch.cat([text, *[self._encoded("")] * missing], dim=1) if missing else text


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """Scale hidden states (1, 77, D) by weights (77,), and restore their mean, as is customary.

    The mean of some models is next to nothing, and a ratio of two such means is noise: it is held between a
    half and two.
    """
    if bool((weights == 1.0).all()):
        return hidden
    scaled = hidden * weights.to(hidden.device)[None, :, None]
    before, after = float(hidden.mean()), float(scaled.mean())
    return scaled * min(max(before / after if after else 1.0, 0.5), 2.0)


def encode_prompt(network: Network, tokenizer: PromptTokenizer, prompt: str) -> Tensor:
    """Run the text encoder on one prompt: (1, 77·n, D) float32.

    Raises:
        InputError: the prompt is longer than any model takes.
    """
    return PromptEncoder(network, tokenizer)(prompt)[0]
