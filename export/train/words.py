"""Words that the text encoder tells from none, to begin with.

What a word does to a picture may be hard to draw. Then its embedding soon says nothing, because it was of no
use, and from there on nothing can be learned of it. "few colours" was lost that way for thousands of steps,
and came back within hundreds once its embedding had a direction of its own again. So before the pictures the
encoder learns for a minute, alone, to give each word one that it should have; what else it says stays.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTextModel

from toonstream.export.train.captions import draw_captions, telling_phrases
from toonstream.export.train.networks import token_ids
from toonstream.export.train.render import STYLES

__all__ = ["give_voice", "silent_choices"]

_SILENT = 0.05  # of an embedding's length: what differs by less is the same
_LOUD = 0.6  # of it: how far apart words are put that were silent
_STEPS = 300
_PAIRS = 12  # of captions, a step
_RATE = 3e-3
_USED = 16  # directions that what the encoder says so far is made of, nearly all of it
_LOOKED_AT = 200  # pairs of captions, to find these


def silent_choices(encoder: CLIPTextModel, tokenizer: Tokenizer) -> list[tuple[str, ...]]:
    """What captions may choose to say, and the encoder does not hear: all phrases for each."""
    return [
        phrases
        for phrases in telling_phrases()
        if np.mean([_loudness(encoder, tokenizer, phrase) for phrase in phrases]) < _SILENT
    ]


def give_voice(
    encoder: CLIPTextModel, tokenizer: Tokenizer, choices: Sequence[tuple[str, ...]], *, seed: int
) -> None:
    """Give each of these choices a direction of its own, from the end of its words on."""
    if not choices:
        return
    random = torch.Generator().manual_seed(seed)
    _read_anew(encoder, tokenizer, choices, random)
    before = copy.deepcopy(encoder).eval()
    directions = _directions(before, tokenizer, len(choices), random)
    wanted = [
        (_words(tokenizer, phrase), direction)
        for phrases, direction in zip(choices, directions, strict=True)
        for phrase in phrases
    ]
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, total_steps=_STEPS + 1, pct_start=0.05)
    for step in range(_STEPS):
        texts = _texts((seed, 5, step), _PAIRS)
        for phrases in choices:
            texts += [f"{style} style, {phrases[step % len(phrases)]}" for style in STYLES]
        ids = token_ids(tokenizer, texts)
        with torch.no_grad():
            target = before(ids).last_hidden_state
        for row, tokens in zip(target, ids.tolist(), strict=True):
            for words, direction in wanted:
                place = _place(tokens, words)
                if place is not None:
                    row[place + len(words) - 1 :] += direction
        loss = (encoder(ids).last_hidden_state - target).square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()


@torch.no_grad()
def _read_anew(
    encoder: CLIPTextModel, tokenizer: Tokenizer, choices: Sequence[tuple[str, ...]], random: torch.Generator
) -> None:
    """Draw embeddings for the tokens that these choices alone use: those they have may be like any other's.

    Attention cannot find what is read as something else, and what is not found is not told apart either.
    """
    silent = {phrase for phrases in choices for phrase in phrases}
    heard = {phrase for phrases in telling_phrases() for phrase in phrases} - silent | set(STYLES)
    used = {token for phrase in heard for token in _words(tokenizer, phrase)}
    tokens = sorted({token for phrase in silent for token in _words(tokenizer, phrase)} - used)
    embedding = encoder.get_input_embeddings().weight
    spread = embedding[sorted(used)].std(dim=0)
    embedding[tokens] = spread * torch.randn(len(tokens), len(spread), generator=random)


@torch.no_grad()
def _loudness(encoder: CLIPTextModel, tokenizer: Tokenizer, phrase: str) -> float:
    """By how much of its length the embedding changes, on average from the phrase's last token on."""
    texts = [f"{STYLES[0]} style, {phrase}", f"{STYLES[0]} style"]
    ids = token_ids(tokenizer, texts)
    words = _words(tokenizer, phrase)
    place = _place(ids[0].tolist(), words)
    assert place is not None
    said, unsaid = encoder(ids).last_hidden_state[:, place + len(words) - 1 :]
    return float(((said - unsaid).norm(dim=-1) / unsaid.norm(dim=-1)).mean())


@torch.no_grad()
def _directions(encoder: CLIPTextModel, tokenizer: Tokenizer, count: int, random: torch.Generator) -> Tensor:
    """(count, D): orthogonal to one another, and to what the encoder says so far."""
    said = encoder(token_ids(tokenizer, _texts((0, 6), _LOOKED_AT))).last_hidden_state.flatten(0, 1)
    used = torch.linalg.svd(said - said.mean(0), full_matrices=False).Vh[:_USED]
    fresh = torch.randn(count, said.shape[1], generator=random)
    free = torch.linalg.qr(torch.cat([used, fresh]).T).Q.T[_USED:]
    return _LOUD * said.norm(dim=-1).mean() * free


def _texts(seed: Sequence[int], pairs: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [caption.text for _ in range(pairs) for caption in draw_captions(random)]


def _words(tokenizer: Tokenizer, phrase: str) -> list[int]:
    """Tokens of a phrase, without the marks of beginning and end, and what fills it up."""
    encoded = tokenizer.encode(phrase, add_special_tokens=False)
    return [token for token, is_word in zip(encoded.ids, encoded.attention_mask, strict=True) if is_word]


def _place(tokens: Sequence[int], words: Sequence[int]) -> int | None:
    """Where a phrase begins among a caption's tokens; None where it does not occur."""
    starts = range(len(tokens) - len(words) + 1)
    return next((start for start in starts if list(tokens[start : start + len(words)]) == words), None)
