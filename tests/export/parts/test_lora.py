"""LoRAs: fused by us, they change the weights as diffusers and peft change them."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from toonstream.errors import ModelError
from toonstream.export.parts.layouts import original_unet_name
from toonstream.export.parts.lora import Lora, fuse, read_lora
from toonstream.export.parts.weights import open_weights

RANK, ALPHA = 3, 6
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def pipeline(small: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    def make() -> Any:
        return StableDiffusionPipeline(
            vae=small.networks["vae"],
            text_encoder=CLIPTextModel.from_pretrained(small.folder / "text_encoder"),
            tokenizer=CLIPTokenizer.from_pretrained(small.folder / "tokenizer"),
            unet=UNet2DConditionModel.from_pretrained(small.folder / "unet"),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    return make


@pytest.fixture(scope="module")
def peft_file(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on nothing and saved as diffusers' training scripts save: α and the rest in the metadata."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(1)
    pipe = pipeline()
    targets = ["to_q", "to_k", "to_out.0", "conv1", "proj_in", "ff.net.0.proj", "time_emb_proj"]
    common = {"r": RANK, "lora_alpha": ALPHA, "init_lora_weights": False}
    pipe.unet.add_adapter(LoraConfig(target_modules=targets, **common))
    pipe.text_encoder.add_adapter(LoraConfig(target_modules=["q_proj", "out_proj"], **common))
    folder = tmp_path_factory.mktemp("lora")
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
        text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["default"].to_dict(),
    )
    return folder / "pytorch_lora_weights.safetensors"


def kohya(peft: State, *, original: bool = False) -> State:
    state = {}
    for key, value in peft.items():
        layer, which = re.fullmatch(r"(.*)\.lora_([AB])\.weight", key).groups()  # type: ignore[union-attr]
        network, _, layer = layer.partition(".")
        if original and network == "unet":
            layer = original_unet_name(f"{layer}.weight", **NAMING).removesuffix(".weight")
        prefix = "lora_unet_" if network == "unet" else "lora_te_text_model_"
        name = prefix + layer.replace(".", "_")
        state[f"{name}.lora_{'down' if which == 'A' else 'up'}.weight"] = value
        state[f"{name}.alpha"] = torch.tensor(float(ALPHA))
    return state


def old_diffusers(peft: State) -> State:
    """Attention alone, named by its processors, and scaled by 1."""
    state = {}
    for key, value in peft.items():
        if found := re.fullmatch(r"unet\.(.*\.attn\d)\.(to_\w+?)(\.0)?\.lora_([AB])\.weight", key):
            which = "down" if found[4] == "A" else "up"
            state[f"unet.{found[1]}.processor.{found[2]}_lora.{which}.weight"] = value
    return state


NAMING: Any = {"layers": 1, "attending": frozenset({1, 2, 3})}


def read(path: Path, small: Any, weight: float = 1.0) -> Lora:
    networks = {
        name: {key.removeprefix("text_model."): tuple(value.shape) for key, value in network.items()}
        for name, network in states(small).items()
    }
    return read_lora(
        open_weights(path),
        weight=weight,
        networks=networks,
        original_unet_name=lambda name: original_unet_name(name, **NAMING),
    )


def states(small: Any) -> dict[str, State]:
    return {name: small.networks[name].state_dict() for name in ("unet", "text_encoder")}


def fused(loras: list[Lora], small: Any) -> dict[str, State]:
    return {
        network: {
            name: fuse(value, loras, network=network, name=name.removeprefix("text_model."))
            for name, value in state.items()
        }
        for network, state in states(small).items()
    }


def by_diffusers(pipe: Any, loras: dict[Path, float]) -> dict[str, State]:
    for index, path in enumerate(loras):
        pipe.load_lora_weights(path.parent, weight_name=path.name, adapter_name=f"a{index}")
    names = [f"a{index}" for index in range(len(loras))]
    pipe.set_adapters(names, list(loras.values()))
    pipe.fuse_lora(adapter_names=names)
    pipe.unload_lora_weights()
    return {"unet": pipe.unet.state_dict(), "text_encoder": pipe.text_encoder.state_dict()}


def assert_same(ours: dict[str, State], theirs: dict[str, State], small: Any, *, changed: int) -> None:
    before = states(small)
    count = 0
    for network, state in theirs.items():
        assert state.keys() == ours[network].keys()
        for name, value in state.items():
            torch.testing.assert_close(ours[network][name], value, rtol=1e-5, atol=1e-5)
            count += not torch.equal(before[network][name], value)
    assert count == changed


@pytest.mark.parametrize("layout", ["peft", "kohya", "old diffusers"])
def test_every_naming_fuses_as_in_diffusers(
    layout: str, small: Any, pipeline: Any, peft_file: Path, tmp_path: Path
) -> None:
    path, peft = peft_file, load_file(peft_file)
    if layout != "peft":
        path = tmp_path / "lora.safetensors"
        save_file(kohya(peft) if layout == "kohya" else old_diffusers(peft), path)
    theirs = by_diffusers(pipeline(), {path: 0.7})
    lora = read(path, small, 0.7)
    assert_same(fused([lora], small), theirs, small, changed=len(lora.layers))
    assert len(lora.layers) == (len(old_diffusers(peft)) if layout == "old diffusers" else len(peft)) // 2


def test_original_names_of_layers_mean_the_same(small: Any, peft_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(kohya(load_file(peft_file), original=True), path)
    assert any("input_blocks_1_1" in name for name in open_weights(path))
    expected = fused([read(peft_file, small)], small)
    for network, state in fused([read(path, small)], small).items():
        assert all(torch.equal(value, expected[network][name]) for name, value in state.items())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_several_at_once_fuse_as_in_diffusers(
    small: Any, pipeline: Any, peft_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.safetensors"
    torch.manual_seed(2)
    save_file(kohya({k: torch.randn_like(v) / 9 for k, v in load_file(peft_file).items()}), other)
    theirs = by_diffusers(pipeline(), {peft_file: 0.5, other: -0.25})
    loras = [read(peft_file, small, 0.5), read(other, small, -0.25)]
    assert_same(fused(loras, small), theirs, small, changed=len(loras[0].layers))


def test_motion_modules_do_not_take_the_names_of_attentions() -> None:
    """Both are the second layer of a block: `input_blocks.1.1.proj_in` is the attention's alone."""
    motion = "down_blocks.0.motion_modules.0.proj_in.weight"
    assert original_unet_name(motion, **NAMING) == motion
    attention = motion.replace("motion_modules", "attentions")
    assert original_unet_name(attention, **NAMING) == "input_blocks.1.1.proj_in.weight"


def test_weight_zero_changes_nothing(small: Any, peft_file: Path) -> None:
    ours = fused([read(peft_file, small, 0.0)], small)
    for network, state in states(small).items():
        assert all(torch.equal(ours[network][name], value) for name, value in state.items())


def _for_another_family(state: State) -> State:
    return {key: torch.cat([value, value]) if "lora_up" in key else value for key, value in state.items()}


def _unknown_layer(state: State) -> State:
    return {key.replace("lora_unet_mid", "lora_te2_mid"): value for key, value in state.items()}


def _without_half(state: State) -> State:
    name = next(key for key in state if key.endswith("lora_up.weight"))
    return {key: value for key, value in state.items() if key != name}


def _loha(state: State) -> State:
    return {key.replace("lora_down.weight", "hada_w1_a"): value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_for_another_family, "fit nowhere, such as lora_"),
        (_unknown_layer, "looks like a LoRA for SDXL"),
        (_without_half, "1 of "),
        (_loha, "looks like a LoHa"),
        (lambda state: {"a": torch.zeros(1)}, "looks like nothing that toonstream knows"),
    ],
)
def test_a_lora_for_something_else_is_refused(
    change: Any, says: str, small: Any, peft_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(change(kohya(load_file(peft_file))), path)
    with pytest.raises(ModelError, match=says):
        read(path, small)


def test_metadata_is_read(small: Any, peft_file: Path) -> None:
    with safe_open(peft_file, "pt") as file:
        assert "lora_adapter_metadata" in file.metadata()
    assert {layer.scale for layer in read(peft_file, small).layers.values()} == {ALPHA / RANK}
