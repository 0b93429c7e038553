"""The text encoder against transformers, and its ONNX file against both."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from toonstream.engines.engine import NetworkSource
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.errors import ModelError
from toonstream.export.checkpoints import Model, open_model
from toonstream.export.networks.text_encoder import TextEncoder
from toonstream.export.onnx import export_network

WORDS, WIDTH, LAYERS = 20, 16, 3


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.inference_mode():
        yield


def clip() -> Any:
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    network = CLIPTextModel(config).eval()
    for parameter in network.parameters():
        parameter.copy_(torch.randn_like(parameter).mul(0.3).half().float())
    return network


def ids(words: int = WORDS) -> Tensor:
    return torch.randint(words, (2, 77), generator=torch.Generator().manual_seed(1))


def close(actual: Tensor, expected: Tensor) -> None:
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_takes_a_layer_from_the_end_and_the_final_norm(clip_skip: int) -> None:
    """As Diffutoon and most front ends count: 1 is the last layer, 2 the one before (1 in diffusers)."""
    network = clip()
    layers = network(ids(), output_hidden_states=True).hidden_states
    assert len(layers) == 1 + LAYERS
    expected = network.final_layer_norm(layers[-clip_skip])
    close(TextEncoder(clip(), clip_skip=clip_skip)(ids())[0], expected)
    if clip_skip == 1:
        close(expected, network(ids()).last_hidden_state)
    else:
        assert (expected - network(ids()).last_hidden_state).abs().max() > 0.01


@pytest.mark.parametrize("clip_skip", [0, 4])
def test_a_layer_that_is_not_there_is_refused(clip_skip: int) -> None:
    with pytest.raises(ModelError, match=r"has 3 layers; take 1 \(the last\) to 3"):
        TextEncoder(clip(), clip_skip=clip_skip)


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_onnx_runtime_computes_the_same(clip_skip: int, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_file({name: value.half() for name, value in clip().state_dict().items()}, weights)
    embeddings = torch.randn(5, WIDTH)
    module = TextEncoder(clip(), clip_skip=clip_skip, embeddings=embeddings).eval()
    path = tmp_path / "model.onnx"
    export_network(module, path, weights)
    network = OnnxRuntimeEngine().load(NetworkSource(name="text_encoder", onnx=path, build=lambda: module))
    close(network({"input_ids": ids(WORDS + 5)})["hidden_states"], module(ids(WORDS + 5))[0])


def test_a_models_defaults_say_which_layer(model: Model, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(model.path, tmp_path / "copy"))
    settings = json.loads((copy / "toonstream.json").read_text()) | {"clip_skip": 2}
    (copy / "toonstream.json").write_text(json.dumps(settings))
    theirs: Any = CLIPTextModel.from_pretrained(copy / "text_encoder", torch_dtype=torch.float32).eval()
    layers = theirs(ids(10), output_hidden_states=True).hidden_states
    (actual,) = open_model(copy).sources["text_encoder"].build()(ids(10))
    close(actual, theirs.final_layer_norm(layers[-2]))
