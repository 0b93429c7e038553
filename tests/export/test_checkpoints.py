import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from toonstream.errors import ModelError
from toonstream.export.checkpoints import Model, open_model, shipped_model


def link(model: Model, folder: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(model.path, folder / "copy"))


def test_a_model_says_what_it_is(model: Model) -> None:
    assert set(model.sources) == set(model.onnx_files)
    assert all(source.onnx == model.onnx_files[name] for name, source in model.sources.items())
    assert (model.latent_channels, model.vae_scale_factor, model.size_multiple) == (4, 8, 32)
    assert (model.latent_scale, model.latent_shift) == (1.0, 0.0)
    assert model.scheduler_config["prediction_type"] == "v_prediction"
    assert model.defaults.name == "tiny"
    assert model.defaults.controlnets == {"outline": 1.0, "colour": 1.0}
    assert model.defaults.styles == ("hosoda", "ink")


def test_a_network_that_was_not_exported_has_no_file(model: Model, tmp_path: Path) -> None:
    copy = link(model, tmp_path)
    (copy / "unet" / "model.onnx").unlink()
    assert open_model(copy).sources["unet"].onnx is None


def test_opening_imports_neither_diffusers_nor_transformers(model: Model) -> None:
    program = (
        "import sys; from pathlib import Path; from toonstream.export.checkpoints import open_model; "
        f"open_model(Path({str(model.path)!r})); "
        "sys.exit(any(name in sys.modules for name in ('diffusers', 'transformers', 'onnx')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_all_missing_files_are_named(model: Model, tmp_path: Path) -> None:
    copy = link(model, tmp_path)
    missing = ["tokenizer/tokenizer.json", "controlnet_colour/config.json", "text_encoder/model.safetensors"]
    for name in missing:
        (copy / name).unlink()
    with pytest.raises(ModelError) as error:
        open_model(copy)
    assert all(name in str(error.value) for name in missing)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json is missing"):
        open_model(tmp_path)
    with pytest.raises(ModelError, match="is not a folder"):
        open_model(tmp_path / "nowhere")


def _not_json(copy: Path) -> None:
    (copy / "unet" / "config.json").write_text("{")


def _no_object(copy: Path) -> None:
    (copy / "vae" / "config.json").write_text("[]")


def _unknown_setting(copy: Path) -> None:
    path = copy / "toonstream.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"strides": 2}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_not_json, r"config\.json is not readable JSON"),
        (_no_object, r"config\.json holds no JSON object"),
        (_unknown_setting, r"toonstream\.json: strides unknown or missing"),
    ],
)
def test_damaged_files_are_named(
    model: Model, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = link(model, tmp_path)
    damage(copy)
    with pytest.raises(ModelError, match=message):
        open_model(copy)


def test_weights_that_do_not_fit_are_refused(model: Model, tmp_path: Path) -> None:
    copy = link(model, tmp_path)
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = "decoder.layers.0.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file)
    with pytest.raises(ModelError, match=rf"lacks 1 tensors, such as {name}"):
        open_model(copy).sources["vae_decoder"].build()
    save_file({**weights, name: weights[name][:1]}, file)
    with pytest.raises(ModelError, match=r"does not fit its config\.json"):
        open_model(copy).sources["vae_decoder"].build()
    file.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is not readable"):
        open_model(copy).sources["vae_decoder"].build()


def test_text_encoders_of_older_transformers_load(model: Model, tmp_path: Path) -> None:
    copy = link(model, tmp_path)
    file = copy / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    save_file({f"text_model.{name}": value for name, value in weights.items()}, file)
    expected = model.sources["text_encoder"].build().state_dict()
    loaded = open_model(copy).sources["text_encoder"].build().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(loaded[name].equal(expected[name]) for name in expected)


def test_the_shipped_model_lies_beside_the_code() -> None:
    assert shipped_model().parts[-3:] == ("export", "models", "toonlet")
