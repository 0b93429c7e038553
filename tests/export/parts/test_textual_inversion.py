from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from toonstream.errors import ModelError
from toonstream.export.parts.textual_inversion import read_embedding
from toonstream.export.parts.weights import open_weights

WIDTH = 16
VECTORS = torch.arange(3 * WIDTH, dtype=torch.float32).reshape(3, WIDTH) / 100


def write(path: Path, layout: str) -> Path:
    match layout:
        case "safetensors":
            path = path.with_suffix(".safetensors")
            save_file({"emb_params": VECTORS}, path)
        case "pt":
            path = path.with_suffix(".pt")
            content = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": "bad"}
            torch.save(content | {"step": 100, "sd_checkpoint": None}, path)
        case "diffusers":
            path = path.with_suffix(".bin")
            torch.save({"bad": VECTORS}, path)
    return path


@pytest.mark.parametrize("layout", ["safetensors", "pt", "diffusers"])
def test_vectors_are_those_that_diffusers_puts_into_the_text_encoder(
    layout: str, small: Any, tmp_path: Path
) -> None:
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTextModel, CLIPTokenizer

    path = write(tmp_path / "bad", layout)
    encoder = CLIPTextModel.from_pretrained(small.folder / "text_encoder")
    tokenizer = CLIPTokenizer.from_pretrained(small.folder / "tokenizer")

    class Pipeline(TextualInversionLoaderMixin):  # type: ignore[misc]
        hf_device_map = None

    pipeline = Pipeline()
    pipeline.tokenizer, pipeline.text_encoder, pipeline.components = tokenizer, encoder, {}
    pipeline.load_textual_inversion(str(path), token="bad")
    ids = tokenizer("bad bad_1 bad_2", add_special_tokens=False).input_ids
    expected = encoder.get_input_embeddings().weight[ids]
    ours = read_embedding(open_weights(path, allow_pickle=True), width=WIDTH)
    assert torch.equal(ours, expected)


def test_one_vector_may_have_one_axis(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"emb_params": VECTORS[0]}, path)
    assert read_embedding(open_weights(path), width=WIDTH).shape == (1, WIDTH)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"emb_params": torch.zeros(2, 1024)}, "vectors of 1024 numbers, the text encoder takes 16"),
        ({"clip_g": torch.zeros(2, 1280), "clip_l": torch.zeros(2, 768)}, "textual inversion for SDXL"),
        ({"x.lora_down.weight": torch.zeros(2, 2), "x.lora_up.weight": torch.zeros(2, 2)}, "a LoRA"),
    ],
)
def test_something_else_is_refused(tensors: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelError, match=says):
        read_embedding(open_weights(path), width=WIDTH)
