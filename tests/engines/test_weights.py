"""Weights by name: what is read, what is put in, and that every engine goes A → B → A without a trace."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toonstream.engines.engine import Engine, NetworkSource
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.torch import TorchEngine
from toonstream.engines.weights import (
    network_checksum,
    read_weights,
    replace_weights,
    rewrite,
    stored_weights,
    weights_checksum,
)
from toonstream.errors import EngineError
from toonstream.export.checkpoints import open_model, shipped_model

ENGINES = {
    "openvino": lambda: OpenVinoEngine(precision="float32"),
    "onnxruntime": OnnxRuntimeEngine,
    "torch": lambda: TorchEngine(device=torch.device("cpu")),
}


@pytest.fixture(scope="module")
def source() -> NetworkSource:
    return open_model(shipped_model()).sources["vae_encoder"]


@pytest.fixture(scope="module")
def other(source: NetworkSource) -> NetworkSource:
    """The same network in another style: every weight is moved a little."""
    torch.manual_seed(0)
    weights = read_weights(source)
    moved = {name: value.float() + 0.02 * torch.randn(value.shape) for name, value in weights.items()}
    return replace_weights(source, moved)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    made: Engine = ENGINES[request.param]()
    return made


def run(engine: Engine, source: NetworkSource) -> Tensor:
    image = torch.rand((1, 3, 32, 40), generator=torch.Generator().manual_seed(1))
    return engine.load(source)({"image": image})["latents"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # diffusers on its own configuration
def test_there_and_back_again_is_the_same_bit_for_bit(
    engine: Engine, source: NetworkSource, other: NetworkSource
) -> None:
    first, second, third = run(engine, source), run(engine, other), run(engine, replace(other, weights={}))
    assert torch.equal(first, third)
    assert (first - second).abs().max() > 0.01
    restored = replace_weights(other, read_weights(source))  # by putting A's own weights in
    assert torch.equal(first, run(engine, restored))


def test_engines_agree_on_weights_that_were_put_in(other: NetworkSource) -> None:
    made = [run(make(), other) for make in ENGINES.values()]
    for latents in made[:-1]:
        torch.testing.assert_close(latents, made[-1], rtol=1e-4, atol=1e-4)


def test_weights_are_read_as_the_file_has_them(source: NetworkSource, other: NetworkSource) -> None:
    assert source.onnx is not None
    weights = read_weights(source)
    state = source.build().state_dict()
    assert weights
    for name, value in weights.items():
        assert value.dtype == torch.float16
        assert torch.equal(value.float(), state[f"network.{name}"])
    (name, *_) = stored_weights(source.onnx)
    assert torch.equal(read_weights(other, [name])[name], other.weights[name])


def test_a_network_is_rewritten_without_another_export(
    source: NetworkSource, other: NetworkSource, tmp_path: Path
) -> None:
    assert source.onnx is not None
    path = rewrite(other, tmp_path)
    assert path.read_bytes() == source.onnx.read_bytes()
    written = replace(source, onnx=path)
    engine = ENGINES["openvino"]()
    assert torch.equal(run(engine, written), run(engine, other))
    assert network_checksum(path) != network_checksum(source.onnx)
    back = tmp_path / "back"
    back.mkdir()
    again = rewrite(replace_weights(written, read_weights(source)), back)
    assert network_checksum(again) == network_checksum(source.onnx)
    (weights,) = back.glob("*.safetensors")
    assert weights.read_bytes() == (source.onnx.parent / weights.name).read_bytes()


def test_of_a_shared_file_only_a_networks_own_weights_count(source: NetworkSource, tmp_path: Path) -> None:
    model = open_model(shipped_model())
    decoder = model.sources["vae_decoder"]
    assert source.onnx is not None
    assert decoder.onnx is not None
    change = {name: value + 1 for name, value in read_weights(decoder).items()}
    rewrite(replace_weights(decoder, change), tmp_path)  # writes the weights' file of both
    encoder = tmp_path / source.onnx.name
    encoder.write_bytes(source.onnx.read_bytes())
    assert network_checksum(encoder) == network_checksum(source.onnx)


def test_checksums_tell_weights_apart() -> None:
    one, two = torch.zeros(2, dtype=torch.float16), torch.zeros(1, 2, dtype=torch.float16)
    assert weights_checksum({}) == ""
    assert weights_checksum({"a": one, "b": two}) == weights_checksum({"b": two, "a": one.clone()})
    different = [{"a": one}, {"b": one}, {"a": two}, {"a": one + 1}, {"a": one.float()}]
    assert len({weights_checksum(weights) for weights in different}) == len(different)


def test_what_does_not_fit_is_named(source: NetworkSource) -> None:
    assert source.onnx is not None
    (name, place), *_ = stored_weights(source.onnx).items()
    with pytest.raises(EngineError, match=f"vae_encoder has no weight .*did you mean {name}"):
        replace_weights(source, {name + "x": torch.zeros(1)})
    with pytest.raises(EngineError, match=r"vae_encoder has no weight qqq; .*another network"):
        read_weights(source, ["qqq"])
    with pytest.raises(EngineError, match=r"\[7\].*another network"):
        replace_weights(source, {name: torch.zeros(7)})
    with pytest.raises(EngineError, match="has no weight qqq"):
        TorchEngine().load(replace(source, weights={"qqq": torch.zeros(1)}))
    assert place.shape


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"this is not a graph")
    with pytest.raises(EngineError, match=r"damaged\.onnx is not readable as ONNX"):
        stored_weights(damaged)
