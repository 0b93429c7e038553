"""Every word that changes the picture is heard by the text encoder."""

import pytest
import torch
from tokenizers import Tokenizer
from transformers import CLIPTextModel

from toonstream.export.checkpoints import shipped_model
from toonstream.export.train import words
from toonstream.export.train.render import STYLES
from toonstream.export.train.words import give_voice, silent_choices

FEW = ("few colors", "few colours", "posterized")


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(next((shipped_model() / "tokenizer").glob("tokenizer.json"))))


@pytest.fixture
def encoder() -> CLIPTextModel:
    return CLIPTextModel.from_pretrained(shipped_model() / "text_encoder").eval()


def says(encoder: CLIPTextModel, tokenizer: Tokenizer, text: str) -> torch.Tensor:
    with torch.no_grad():
        return encoder(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0]


def test_the_shipped_one_hears_all_of_them(encoder: CLIPTextModel, tokenizer: Tokenizer) -> None:
    assert silent_choices(encoder, tokenizer) == []


def test_what_was_lost_is_heard_again_and_the_rest_stays(
    encoder: CLIPTextModel, tokenizer: Tokenizer
) -> None:
    embedding = encoder.get_input_embeddings().weight
    nothing = tokenizer.token_to_id("<|endoftext|>")
    with torch.no_grad():  # lost: these words are read as nothing at all
        for phrase in FEW:
            for token in words._words(tokenizer, phrase):
                embedding[token] = embedding[nothing]
    lost = silent_choices(encoder, tokenizer)
    assert lost == [FEW]
    plain = [f"{style} style, {more}" for style in STYLES for more in ("warm", "night", "thick lines")]
    before = [says(encoder, tokenizer, text) for text in plain]
    give_voice(encoder, tokenizer, lost, seed=2)
    assert FEW not in silent_choices(encoder, tokenizer)
    after = [says(encoder, tokenizer, text) for text in plain]
    few = [says(encoder, tokenizer, f"{text}, few colours") for text in plain]
    moved = sum((one - other).norm() for one, other in zip(after, before, strict=True))
    said = sum((one - other).norm() for one, other in zip(few, after, strict=True))
    assert moved < 0.8 * said
