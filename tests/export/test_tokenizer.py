from pathlib import Path

import pytest
import torch

from toonstream.engines.torch import TorchEngine
from toonstream.errors import InputError, ModelError
from toonstream.export.checkpoints import Model
from toonstream.export.tokenizer import PromptTokenizer, encode_prompt


def test_a_prompt_is_padded_with_end_tokens(model: Model) -> None:
    ids = PromptTokenizer(model.tokenizer_path)("hosoda style")
    assert ids.shape == (1, 77)
    assert ids.dtype == torch.int64
    assert ids[0, :5].tolist() == [0, 4, 7, 1, 1]
    assert (ids[0, 3:] == 1).all()


def test_an_empty_prompt_is_a_start_and_ends(model: Model) -> None:
    ids = PromptTokenizer(model.tokenizer_path)("")
    assert ids[0, 0] == 0
    assert (ids[0, 1:] == 1).all()


def test_a_prompt_may_fill_the_room_but_not_more(model: Model) -> None:
    tokenizer = PromptTokenizer(model.tokenizer_path)
    assert tokenizer("cat " * 75)[0, -2:].tolist() == [3, 1]
    with pytest.raises(InputError, match="76 tokens and 75 fit"):
        tokenizer("cat " * 76)


def test_ids_equal_transformers(model: Model) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(model.tokenizer_path), pad_token="<|endoftext|>")
    expected = theirs("ink lines", padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(PromptTokenizer(model.tokenizer_path)("ink lines"), expected)


def test_a_prompt_becomes_hidden_states(model: Model) -> None:
    network = TorchEngine(device=torch.device("cpu")).load(model.sources["text_encoder"])
    tokenizer = PromptTokenizer(model.tokenizer_path)
    ink, cat = (encode_prompt(network, tokenizer, prompt) for prompt in ("ink", "cat"))
    assert ink.shape == (1, 77, 16)
    assert (ink[:, 0] - cat[:, 0]).abs().max() < 1e-6  # the mask is causal: the start sees no word
    assert (ink[:, 1] - cat[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("content", ["", "{}", "not json"])
def test_a_file_that_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ModelError, match="is no tokenizer"):
        PromptTokenizer(path)


def test_a_tokenizer_of_another_family_is_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(model.tokenizer_path.read_text().replace("<|startoftext|>", "<s>"))
    with pytest.raises(ModelError, match="lacks"):
        PromptTokenizer(path)
