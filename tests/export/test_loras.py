"""LoRAs put into a model that is there, on every engine, and what is said of those that do not fit."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from toonstream.config import LoraChoice
from toonstream.engines.engine import Engine
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.torch import TorchEngine
from toonstream.errors import ModelError
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.export.loras import find_loras, lora_sources, with_loras
from toonstream.export.networks.base import random_inputs

SIZES = {"batch": 1, "frames": 2, "h": 8, "w": 8}
ENGINES = {
    "openvino": lambda: OpenVinoEngine(precision="float32"),
    "onnxruntime": OnnxRuntimeEngine,
    "torch": lambda: TorchEngine(device=torch.device("cpu")),
}
FILES = {"unet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}


def weights(model: Model, network: str) -> dict[str, Tensor]:
    state = load_file(model.path / network / FILES[network])
    return {name.removeprefix("text_model."): value for name, value in state.items()}


def write_lora(path: Path, model: Model, *, networks: tuple[str, ...] = tuple(FILES), seed: int = 0) -> Path:
    """A LoRA of rank 2 for every attention of a model, in diffusers' naming."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for network in networks:
        for name, value in weights(model, network).items():
            layer = name.removesuffix(".weight")
            if layer.endswith((".to_q", ".to_out.0", ".q_proj", ".out_proj")) and value.ndim == 2:
                inside = "text_model." if network == "text_encoder" else ""
                for half, shape in (("A", (2, value.shape[1])), ("B", (value.shape[0], 2))):
                    tensor = 0.5 * torch.randn(shape, generator=generator)
                    state[f"{network}.{inside}{layer}.lora_{half}.weight"] = tensor
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def lora(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lora(tmp_path_factory.mktemp("loras") / "ink.safetensors", model)


def fused_by_hand(model: Model, lora: Path, folder: Path, weight: float) -> Model:
    """The same model with the LoRA written into its files."""
    shutil.copytree(model.path, folder)
    changes: Mapping[str, Tensor] = load_file(lora)
    for network, file in FILES.items():
        state = load_file(folder / network / file)
        for name, value in state.items():
            layer = name.removeprefix("text_model.").removesuffix(".weight")
            inside = "text_model." if network == "text_encoder" else ""
            if (down := changes.get(f"{network}.{inside}{layer}.lora_A.weight")) is not None:
                up = changes[f"{network}.{inside}{layer}.lora_B.weight"]
                state[name] = (value.float() + weight * (up @ down)).half()
        save_file(state, folder / network / file, metadata={"format": "pt"})  # at the same places, too
    return open_model(folder)


def run(engine: Engine, model: Model, network: str) -> Tensor:
    loaded = engine.load(model.sources[network])
    inputs = random_inputs(model.sources[network].build().inputs, SIZES)  # type: ignore[arg-type]
    return next(iter(loaded(inputs).values()))


@pytest.mark.parametrize("name", ENGINES)
def test_a_lora_that_is_put_in_is_one_that_was_written_in(
    name: str, model: Model, lora: Path, tmp_path: Path
) -> None:
    engine: Engine = ENGINES[name]()
    written = fused_by_hand(model, lora, tmp_path / "written", 0.5)
    put_in = with_loras(model, [LoraChoice(file=str(lora), weight=0.5)])
    for network in FILES:
        expected = run(engine, written, network)
        assert torch.equal(run(engine, put_in, network), expected)
        assert (run(engine, model, network) - expected).abs().max() > 1e-3


def test_several_add_up_and_none_changes_nothing(model: Model, lora: Path, tmp_path: Path) -> None:
    other = write_lora(tmp_path / "other.safetensors", model, networks=("unet",), seed=1)
    assert lora_sources(model, []) == {}
    assert lora_sources(model, [LoraChoice(file=str(lora), weight=0.0)]) == {}
    assert lora_sources(model, [LoraChoice(file=str(other))]).keys() == {"unet"}
    both = [LoraChoice(file=str(lora), weight=0.5), LoraChoice(file=str(other), weight=-1.0)]
    at_once = lora_sources(model, both)["unet"].weights
    one_by_one = with_loras(with_loras(model, both[:1]), both[1:]).sources["unet"].weights
    assert at_once.keys() == one_by_one.keys()
    for name, value in at_once.items():
        assert value.dtype == torch.float16
        torch.testing.assert_close(one_by_one[name].float(), value.float(), rtol=2e-3, atol=2e-3)


def test_layers_that_are_skipped_are_left_out(model: Model, lora: Path) -> None:
    skipping = replace(model, defaults=replace(model.defaults, clip_skip=2))
    choice = [LoraChoice(file=str(lora))]
    all_of_them = lora_sources(model, choice)["text_encoder"].weights
    kept = lora_sources(skipping, choice)["text_encoder"].weights
    assert {name for name in all_of_them if ".layers.0." in name} == set(kept)


def test_the_model_that_ships_takes_loras(tmp_path: Path) -> None:
    model = open_model(shipped_model())
    path = write_lora(tmp_path / "ink.safetensors", model)
    put_in = with_loras(model, [LoraChoice(file=str(path), weight=0.2)])
    before, after = (run(OnnxRuntimeEngine(), each, "text_encoder") for each in (model, put_in))
    assert (before - after).abs().max() > 1e-3
    assert len(put_in.sources["unet"].weights) > 4


def test_a_folder_offers_what_fits_and_says_what_does_not(model: Model, lora: Path, tmp_path: Path) -> None:
    said: list[str] = []
    shutil.copyfile(lora, tmp_path / "ink.safetensors")
    write_lora(tmp_path / "toonlet.safetensors", open_model(shipped_model()))
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("not one of them")
    assert find_loras(tmp_path, model, say=said.append) == {"ink": tmp_path / "ink.safetensors"}
    assert len(said) == 2
    assert all(line.startswith(f"left out: {tmp_path}") and "\n" not in line for line in said)
    (tmp_path / "empty").mkdir()
    assert find_loras(tmp_path / "empty", model, say=said.append) == {}
    assert said[-1].endswith("holds no LoRA for tiny")
    with pytest.raises(ModelError, match="is no folder; name one with LoRAs"):
        find_loras(tmp_path / "nowhere", model)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.safetensors", "there is no LoRA .*nowhere.safetensors"),
        ("config.json", "is not readable"),
        ("other.safetensors", "fit nowhere"),
        ("lora.pt", "is pickled"),
    ],
)
def test_what_cannot_be_put_in_is_one_line(name: str, says: str, model: Model, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "lora.pt").write_bytes(b"")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=says) as error:
        with_loras(model, [LoraChoice(file=str(tmp_path / name))])
    assert "\n" not in str(error.value)
