import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from toonstream.engines.engine import Network, TensorSpec
from toonstream.engines.torch import TorchEngine
from toonstream.errors import InputError, ModelError
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.export.networks.base import spec
from toonstream.export.tokenizer import PromptEncoder, PromptTokenizer, encode_prompt

CAT, HOSODA, STYLE = 3, 4, 7
INVERSION = {"Bad-Style": range(10, 13), "bad": range(13, 14), "long": range(14, 94)}


def text_encoder(model: Model) -> Network:
    return TorchEngine(device=torch.device("cpu")).load(model.sources["text_encoder"])


class Counting:
    """A text encoder that gives each id as its hidden states, and counts its runs."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.runs += 1
        return {"hidden_states": tensors["input_ids"].float()[..., None].repeat(1, 1, 4)}


class Reader(Counting):
    def __init__(self, tokens: int | str) -> None:
        self.inputs = (spec("sample", 1), spec("text", "batch", tokens, 4))


def test_a_prompt_is_padded_with_end_tokens(model: Model) -> None:
    tokens = PromptTokenizer(model.tokenizer_path)("hosoda style")
    assert tokens.ids.shape == tokens.weights.shape == (1, 77)
    assert tokens.ids.dtype == torch.int64
    assert tokens.ids[0, :5].tolist() == [0, HOSODA, STYLE, 1, 1]
    assert (tokens.ids[0, 3:] == 1).all()
    assert (tokens.weights == 1).all()


def test_an_empty_prompt_is_a_start_and_ends(model: Model) -> None:
    ids = PromptTokenizer(model.tokenizer_path)("").ids
    assert ids.shape == (1, 77)
    assert ids[0, 0] == 0
    assert (ids[0, 1:] == 1).all()


@pytest.mark.parametrize(("words", "chunks"), [(1, 1), (75, 1), (76, 2), (150, 2), (151, 3), (600, 8)])
def test_a_long_prompt_comes_in_chunks(model: Model, words: int, chunks: int) -> None:
    ids = PromptTokenizer(model.tokenizer_path)("cat " * words).ids
    assert ids.shape == (chunks, 77)
    assert (ids[:, 0] == 0).all()
    assert (ids[:, -1] == 1).all()
    assert (ids[:, 1:76] == CAT).sum() == words


def test_a_prompt_without_end_is_refused(model: Model) -> None:
    tokenizer = PromptTokenizer(model.tokenizer_path)
    with pytest.raises(InputError, match="9 chunks of 75 tokens; shorten it to 8"):
        tokenizer("cat " * 601)
    with pytest.raises(InputError, match="shorten it to 10000"):
        tokenizer("(" * 10_001)


def test_weights_go_with_their_words(model: Model) -> None:
    tokens = PromptTokenizer(model.tokenizer_path)("hosoda (style cat:1.5) [ink]")
    assert tokens.ids[0, 1:4].tolist() == [HOSODA, STYLE, CAT]
    assert tokens.weights[0, :6].tolist() == pytest.approx([1, 1, 1.5, 1.5, 1 / 1.1, 1])


@pytest.mark.parametrize("prompt", ["ink lines", "  Hosoda-STYLE,night!!   don't  ", "café 猫 ½ <lora>", ""])
def test_ids_equal_transformers(prompt: str) -> None:
    from transformers import PreTrainedTokenizerFast

    path = open_model(shipped_model()).tokenizer_path
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<|endoftext|>")
    expected = theirs(prompt, padding="max_length", max_length=77, return_tensors="pt")["input_ids"]
    assert torch.equal(PromptTokenizer(path)(prompt).ids, expected)


def test_a_textual_inversion_becomes_its_tokens(model: Model) -> None:
    tokenizer = PromptTokenizer(model.tokenizer_path, INVERSION)
    tokens = tokenizer("cat (BAD-style:0.5) bad cat")
    assert tokens.ids[0, 1:8].tolist() == [CAT, 10, 11, 12, 13, CAT, 1]
    assert tokens.weights[0, 1:7].tolist() == [1, 0.5, 0.5, 0.5, 1, 1]
    assert 13 not in tokenizer("badcat catbad bad_ style").ids  # only whole words are


def test_a_textual_inversion_is_not_torn_apart(model: Model) -> None:
    tokenizer = PromptTokenizer(model.tokenizer_path, INVERSION)
    ids = tokenizer("cat " * 73 + "bad-style cat").ids
    assert ids[0, 73:].tolist() == [CAT, 1, 1, 1]
    assert ids[1, :6].tolist() == [0, 10, 11, 12, CAT, 1]
    ids = tokenizer("cat long").ids  # unless it has to be
    assert ids[0, 1:76].tolist() == [CAT, *range(14, 88)]
    assert ids[1, 1:8].tolist() == [*range(88, 94), 1]


@given(st.text("()[]:\\.129 abdlongstye-,", max_size=300))
def test_every_text_has_tokens(model: Model, prompt: str) -> None:
    tokens = PromptTokenizer(model.tokenizer_path, INVERSION)(prompt)
    assert tokens.ids.shape == tokens.weights.shape
    assert tokens.ids.shape[1] == 77


def test_a_prompt_becomes_hidden_states(model: Model) -> None:
    network, tokenizer = text_encoder(model), PromptTokenizer(model.tokenizer_path)
    ink, cat = (encode_prompt(network, tokenizer, prompt) for prompt in ("ink", "cat"))
    assert ink.shape == (1, 77, 16)
    assert (ink[:, 0] - cat[:, 0]).abs().max() < 1e-6  # the mask is causal: the start sees no word
    assert (ink[:, 1] - cat[:, 1]).abs().max() > 1e-3


def test_chunks_follow_one_another(model: Model) -> None:
    network, tokenizer = text_encoder(model), PromptTokenizer(model.tokenizer_path)
    long = encode_prompt(network, tokenizer, "cat " * 75 + "ink")
    parts = [encode_prompt(network, tokenizer, prompt) for prompt in ("cat " * 75, "ink")]
    torch.testing.assert_close(long, torch.cat(parts, dim=1))


def test_both_sides_get_the_same_number_of_chunks(model: Model) -> None:
    encoder = PromptEncoder(text_encoder(model), PromptTokenizer(model.tokenizer_path))
    long, short = encoder("cat " * 80, "ink")
    assert long.shape == short.shape == (1, 154, 16)
    (ink,), (empty,) = encoder("ink"), encoder("")
    torch.testing.assert_close(short, torch.cat([ink, empty], dim=1))
    assert encoder("ink", chunks=3)[0].shape == (1, 231, 16)


def test_weights_scale_hidden_states_and_restore_their_mean(model: Model) -> None:
    encoder = PromptEncoder(Counting(), PromptTokenizer(model.tokenizer_path))
    (plain,), (weighted,) = encoder("cat ink"), encoder("(cat:1.5) ink")
    factors = (weighted / plain)[0, 1:, 0]
    assert factors[0] / factors[1] == pytest.approx(1.5)
    assert (factors[1:] == factors[1]).all()
    assert float(weighted.mean()) == pytest.approx(float(plain.mean()), rel=1e-5)
    (nothing,) = encoder("(cat:0) (ink:-9)")  # the mean changes its sign: it is not restored at any price
    assert nothing.isfinite().all()
    assert nothing[0, 3:].abs().max() <= 2.0


def test_prompts_are_remembered_up_to_a_bound(model: Model) -> None:
    network = Counting()
    encoder = PromptEncoder(network, PromptTokenizer(model.tokenizer_path))
    first = encoder("cat", "ink")
    assert network.runs == 2
    assert all(torch.equal(one, other) for one, other in zip(first, encoder("cat", "ink"), strict=True))
    assert network.runs == 2
    for index in range(1000):
        encoder(f"cat {index}")
    assert network.runs == 1002
    encoder("cat")
    assert network.runs == 1003
    assert len(encoder._kept) <= 64


def test_a_network_of_fixed_length_takes_short_prompts_only(model: Model) -> None:
    tokenizer = PromptTokenizer(model.tokenizer_path)
    encoder = PromptEncoder(Counting(), tokenizer, readers=[Reader("text.1"), Reader(77)])
    encoder("cat " * 75)
    with pytest.raises(InputError, match=r"more than the 75 tokens.*export the model again"):
        encoder("cat " * 76)
    assert PromptEncoder(Counting(), tokenizer, readers=[Reader("tokens")])("cat " * 76)[0].shape[1] == 154


def with_inversions(model: Model, folder: Path, words: Mapping[str, Tensor]) -> Path:
    copy = Path(shutil.copytree(model.path, folder / "copy"))
    save_file(dict(words), copy / "text_encoder" / "embeddings.safetensors")
    return copy


def test_a_models_textual_inversions_are_as_transformers_computes_them(model: Model, tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    words = {"warm-2": torch.randn(2, 16), "Ugly": torch.randn(3, 16, dtype=torch.float16)}
    copy = open_model(with_inversions(model, tmp_path, words))
    assert copy.embeddings == {"Ugly": range(10, 13), "warm-2": range(13, 15)}
    tokenizer = PromptTokenizer(copy.tokenizer_path, copy.embeddings)
    actual = encode_prompt(text_encoder(copy), tokenizer, "cat ugly ink warm-2")

    theirs: Any = CLIPTextModel.from_pretrained(copy.path / "text_encoder", torch_dtype=torch.float32).eval()
    theirs.resize_token_embeddings(15, mean_resizing=False)
    theirs.get_input_embeddings().weight.data[10:] = torch.cat([words["Ugly"].float(), words["warm-2"]])
    ids = torch.tensor([[0, CAT, 10, 11, 12, 5, 13, 14, *[1] * 69]])
    with torch.inference_mode():
        torch.testing.assert_close(actual, theirs(ids).last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [({"x": torch.zeros(16)}, r"x is not \(tokens, width\)"), ({"x": torch.zeros(1, 24)}, "24 wide")],
)
def test_textual_inversions_of_another_shape_are_refused(
    words: dict[str, Tensor], message: str, model: Model, tmp_path: Path
) -> None:
    copy = with_inversions(model, tmp_path, words)
    with pytest.raises(ModelError, match=message):
        open_model(copy).sources["text_encoder"].build()


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
