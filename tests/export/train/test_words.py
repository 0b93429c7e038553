"""Every word that changes the picture is heard by the text encoder."""

import pytest
import torch
from tokenizers import Tokenizer
from transformers import CLIPTextModel

from toonstream.export.checkpoints import shipped_model
from toonstream.export.train import words
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
    assert FEW in lost
    before = says(encoder, tokenizer, "ink style, warm")
    give_voice(encoder, tokenizer, lost, seed=2)
    assert FEW not in silent_choices(encoder, tokenizer)
    after = says(encoder, tokenizer, "ink style, warm")
    few = says(encoder, tokenizer, "ink style, warm, few colours")
    assert (after - before).norm() < 0.5 * (few - after).norm()
