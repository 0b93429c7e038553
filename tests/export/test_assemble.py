"""Model folders made of parts in every layout, held to what diffusers builds of the same files."""

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from toonstream.errors import ModelError, SettingError
from toonstream.export.assemble import ExportProgress, assemble, load_model, model_folder, models_folder
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.parts.part import Part
from toonstream.export.presets import Preset

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a hub that is out of reach."""
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def part(path: Path, **more: Any) -> Part:
    if path.is_file():
        return Part(source=str(path.parent), file=path.name, **more)
    return Part(source=str(path), **more)


@pytest.fixture
def folders(small: Any) -> Preset:
    """Everything in diffusers' layout."""
    return Preset(
        name="small",
        base=part(small.folder),
        motion=part(small.motion),
        controlnets={"outline": part(small.controlnet, weight=0.5)},
        defaults={"prompt": "a cat", "steps": 3, "clip_skip": 2, "motion_norm": "frame"},
    )


@pytest.fixture
def files(small: Any) -> Preset:
    """Everything as single files in the original layouts."""
    return Preset(
        name="files",
        base=part(small.single, config=str(small.folder)),
        tokenizer=part(small.tokenizer),
        motion=part(small.original["motion"], config=str(small.motion)),
        vae=part(small.original["vae"], config=str(small.vae)),
        controlnets={"outline": part(small.original["controlnet"], config=str(small.controlnet))},
    )


def weights(folder: Path) -> dict[str, dict[str, Tensor]]:
    return {
        path.parent.name: load_file(path)
        for path in folder.rglob("*.safetensors")
        if path.name != "embeddings.safetensors"
    }


def by_diffusers(small: Any, *, motion: bool = True) -> dict[str, nn.Module]:
    from diffusers import AutoencoderKL, ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel
    from transformers import CLIPTextModel

    unet = UNet2DConditionModel.from_pretrained(small.folder / "unet")
    adapter = MotionAdapter.from_pretrained(small.motion)
    return {
        "unet": UNetMotionModel.from_unet2d(unet, adapter) if motion else unet,
        "vae": AutoencoderKL.from_pretrained(small.vae),
        "controlnet_outline": ControlNetModel.from_pretrained(small.controlnet),
        "text_encoder": CLIPTextModel.from_pretrained(small.folder / "text_encoder"),
    }


def assert_same(folder: Path, networks: dict[str, nn.Module]) -> None:
    ours = weights(folder)
    assert ours.keys() == networks.keys()
    for network, module in networks.items():
        state = {name.removeprefix("text_model."): value for name, value in module.state_dict().items()}
        assert ours[network].keys() == state.keys()
        for name, value in state.items():
            assert torch.equal(ours[network][name], value.half()), (network, name)


@pytest.mark.parametrize("layout", ["folders", "files"])
def test_every_tensor_is_where_diffusers_has_it(
    layout: str, small: Any, request: pytest.FixtureRequest
) -> None:
    assert_same(assemble(request.getfixturevalue(layout)), by_diffusers(small))


def test_the_folder_is_a_model(folders: Preset) -> None:
    model = open_model(assemble(folders))
    assert model.defaults.name == "small"
    assert model.defaults.controlnets == {"outline": 0.5}
    assert (model.defaults.steps, model.defaults.clip_skip, model.defaults.motion_norm) == (3, 2, "frame")
    assert (model.latent_scale, model.vae_scale_factor, model.latent_channels) == (0.18215, 8, 4)
    assert model.scheduler_config["beta_schedule"] == "scaled_linear"
    assert model.scheduler_config["_class_name"] == "DDIMScheduler"
    assert set(model.sources) >= {"text_encoder", "unet", "vae_decoder", "hint_outline", "controlnet_outline"}


@pytest.mark.parametrize("network", ["vae_encoder", "vae_decoder", "controlnet_outline"])
def test_the_networks_compute_what_those_of_diffusers_compute(
    network: str, folders: Preset, small: Any
) -> None:
    from toonstream.export.networks.base import random_inputs

    module: Any = open_model(assemble(folders)).sources[network].build()
    inputs = random_inputs(module.inputs, {"batch": 2, "h": 8, "w": 16})
    theirs: Any = by_diffusers(small)["vae" if network.startswith("vae") else network]
    theirs = theirs.half().float().eval()
    with torch.inference_mode():
        ours = module(*inputs.values())
        match network:
            case "vae_encoder":
                expected = [theirs.encode(inputs["image"]).latent_dist.mean]
            case "vae_decoder":
                expected = [theirs.decode(inputs["latents"]).sample]
            case _:
                hint = torch.rand(2, 3, 64, 128)
                embedding = theirs.controlnet_cond_embedding(hint)
                ours = module(inputs["sample"], inputs["timestep"], inputs["text"], embedding)
                options = {"encoder_hidden_states": inputs["text"], "controlnet_cond": hint}
                down, mid = theirs(inputs["sample"], inputs["timestep"], return_dict=False, **options)
                expected = [*down, mid]
    for mine, other in zip(ours, expected, strict=True):
        assert other.std() > 0.01
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_without_motion_modules_it_is_a_plain_unet(folders: Preset, small: Any) -> None:
    folder = assemble(replace(folders, motion=None))
    assert_same(folder, by_diffusers(small, motion=False))
    module: Any = open_model(folder).sources["unet"].build()
    assert type(module.network).__name__ == "UNet2DConditionModel"


def test_a_tiny_vae_takes_the_place_of_the_full_one(folders: Preset, small: Any) -> None:
    folder = assemble(replace(folders, vae=part(small.tiny_vae)))
    assert open_model(folder).latent_scale == 1.0
    tiny = weights(folder)["vae"]
    assert all(
        torch.equal(tiny[name], value.half())
        for name, value in small.networks["tiny_vae"].state_dict().items()
    )


def test_motion_modules_of_other_versions_load_without_a_config(small: Any, tmp_path: Path) -> None:
    """Version 1 and 3 have none in the middle block, and version 1 counts 24 frames; the file shows it."""
    from toonstream.export.parts.networks import motion_config
    from toonstream.export.parts.weights import open_weights

    tensors = load_file(small.original["motion"])
    assert motion_config(None, open_weights(small.original["motion"]))["motion_max_seq_length"] == 24
    path = tmp_path / "v3.safetensors"
    save_file({name: value for name, value in tensors.items() if "mid_block" not in name}, path)
    assert motion_config(None, open_weights(path))["use_motion_mid_block"] is False


def lora(small: Any, path: Path, layer: str = "down_blocks_0_attentions_0_proj_in") -> Path:
    torch.manual_seed(3)
    shapes = {"lora_down": (2, 8, 1, 1), "lora_up": (8, 2, 1, 1)}
    save_file(
        {f"lora_unet_{layer}.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}, path
    )
    return path


def test_loras_are_fused_and_part_of_the_key(folders: Preset, small: Any, tmp_path: Path) -> None:
    file = lora(small, tmp_path / "lora.safetensors")
    plain = assemble(folders)
    strong = assemble(replace(folders, loras={"x": part(file, weight=1.0)}))
    weak = assemble(replace(folders, loras={"x": part(file, weight=0.5)}))
    assert len({plain, strong, weak}) == 3
    name = "down_blocks.0.attentions.0.proj_in.weight"
    before, half, whole = (weights(folder)["unet"][name].float() for folder in (plain, weak, strong))
    torch.testing.assert_close(half - before, (whole - before) / 2, rtol=1e-2, atol=5e-3)
    assert (whole - before).abs().mean() > 0.1


def test_textual_inversions_are_kept_by_their_word(folders: Preset, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    vectors = torch.randn(3, 16)
    save_file({"emb_params": vectors}, path)
    folder = assemble(replace(folders, embeddings={"bad v1.3": part(path)}))
    assert torch.equal(load_file(folder / "text_encoder" / "embeddings.safetensors")["bad v1.3"], vectors)
    assert "bad v1.3" in open_model(folder).embeddings


def test_annotators_are_known_by_their_tensors(folders: Preset, tmp_path: Path) -> None:
    from toonstream.export.annotators import make_annotator

    network = make_annotator({"model_type": "informative_drawings"}).network
    path = tmp_path / "sk_model.pth"
    torch.save(network.state_dict(), path)
    preset = replace(folders, annotators={"outline": part(path, allow_pickle=True)})
    folder = assemble(preset)
    config = json.loads((folder / "annotators" / "outline" / "config.json").read_text())
    assert config == {"model_type": "informative_drawings"}
    built: Any = open_model(folder).sources["annotator_outline"].build()
    assert all(
        torch.equal(value, network.state_dict()[name].half().float())
        for name, value in built.network.state_dict().items()
    )


def test_a_tokenizer_in_two_files_becomes_one(folders: Preset, small: Any) -> None:
    from transformers import CLIPTokenizer

    from toonstream.export.tokenizer import PromptTokenizer

    ids = PromptTokenizer(open_model(assemble(folders)).tokenizer_path)("A  Cat, dozing").ids
    expected = CLIPTokenizer.from_pretrained(small.folder / "tokenizer")("A  Cat, dozing").input_ids
    assert ids[0, : len(expected)].tolist() == expected


def pickled(small: Any, path: Path) -> Path:
    torch.save({"state_dict": load_file(small.single), "epoch": 7, "global_step": 9}, path)
    return path


def test_pickled_checkpoints_load_when_allowed(files: Preset, small: Any, tmp_path: Path) -> None:
    base = part(pickled(small, tmp_path / "model.ckpt"), config=str(small.folder))
    with pytest.raises(ModelError, match=r"model\.ckpt is pickled.*allow_pickle = true.*--allow-pickle"):
        assemble(replace(files, base=base))
    assert not list(models_folder().glob("files-*"))
    folder = assemble(replace(files, base=replace(base, allow_pickle=True)))
    assert_same(folder, by_diffusers(small))
    assert assemble(replace(files, base=base), allow_pickle=True) == folder


class Trap:
    def __reduce__(self) -> Any:
        return os.mkdir, ("trapped",)


def test_a_pickled_file_never_runs_code(
    files: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Trap()}, tmp_path / "evil.ckpt")
    with pytest.raises(ModelError, match=r"evil\.ckpt holds more than tensors"):
        assemble(replace(files, base=part(tmp_path / "evil.ckpt", allow_pickle=True)))
    assert not (tmp_path / "trapped").exists()


def test_optional_parts_are_left_out_where_pickles_are_not_allowed(folders: Preset, tmp_path: Path) -> None:
    path = tmp_path / "bad.pt"
    torch.save({"string_to_param": {"*": torch.zeros(1, 16)}}, path)
    preset = replace(folders, embeddings={"bad": part(path, optional=True)})
    said: list[str] = []
    without = assemble(preset, say=said.append)
    assert "small goes without embedding bad" in said[0]
    assert without == assemble(folders)
    assert (assemble(preset, allow_pickle=True) / "text_encoder" / "embeddings.safetensors").is_file()


@pytest.mark.parametrize(
    ("names", "looks"),
    [
        (["conditioner.embedders.1.model.ln_final.weight"], "an SDXL checkpoint"),
        (["cond_stage_model.model.transformer.resblocks.0.ln_1.weight"], "an SD 2 checkpoint"),
        (["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"], "an SD 3 model"),
        (["double_blocks.0.img_attn.qkv.weight"], "a Flux model"),
        (["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["control_model.zero_convs.0.0.weight"], "a ControlNet"),
        (
            ["first_stage_model.x", "encoder.mid.block_1.norm1.weight", "decoder.mid.block_1.norm1.weight"],
            "a VAE",
        ),
        (["emb_params"], "a textual inversion"),
        (["something"], "nothing that toonstream knows"),
    ],
)
def test_the_wrong_checkpoint_is_called_by_its_name(
    names: list[str], looks: str, files: Preset, tmp_path: Path
) -> None:
    path = tmp_path / "wrong.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    with pytest.raises(ModelError, match=r"lacks \d+ of the \d+ tensors of a text encoder") as error:
        assemble(replace(files, base=replace(part(path), config=files.base.config)))  # type: ignore[union-attr]
    assert f"it looks like {looks}" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(models_folder().iterdir()) or [p.name for p in models_folder().iterdir()] == [".locks"]


def test_parts_that_do_not_belong_together_are_refused(folders: Preset, small: Any, tmp_path: Path) -> None:
    from diffusers import ControlNetModel, MotionAdapter

    shape: dict[str, Any] = {"block_out_channels": (8, 16, 16, 32), "norm_num_groups": 4}
    other = ControlNetModel(cross_attention_dim=16, attention_head_dim=2, layers_per_block=1, **shape)
    other.save_pretrained(tmp_path / "controlnet")
    with pytest.raises(ModelError, match=r"a ControlNet for another UNet: its block_out_channels"):
        assemble(replace(folders, controlnets={"outline": part(tmp_path / "controlnet")}))
    adapter = MotionAdapter(
        block_out_channels=(8, 16, 16, 32), motion_layers_per_block=1, motion_norm_num_groups=4
    )
    adapter.save_pretrained(tmp_path / "motion")
    with pytest.raises(ModelError, match="the motion modules have"):
        assemble(replace(folders, motion=part(tmp_path / "motion")))
    with pytest.raises(ModelError, match="belongs to a ControlNetModel"):
        assemble(replace(folders, vae=part(small.controlnet)))


def test_a_second_time_nothing_is_written(folders: Preset) -> None:
    folder = assemble(folders)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    said: list[str] = []
    assert assemble(folders, say=said.append) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not said


def test_settings_change_without_the_weights_being_written_again(folders: Preset) -> None:
    folder = assemble(folders)
    written = (folder / UNET).stat().st_mtime_ns
    changed = replace(folders, defaults={**folders.defaults, "steps": 7})
    assert assemble(changed) == folder
    assert open_model(folder).defaults.steps == 7
    assert (folder / UNET).stat().st_mtime_ns == written


def test_what_graphs_depend_on_is_in_the_key(folders: Preset) -> None:
    assert assemble(folders) != assemble(replace(folders, defaults={**folders.defaults, "clip_skip": 1}))


def test_a_changed_file_makes_another_folder(folders: Preset, small: Any, tmp_path: Path) -> None:
    copy = shutil.copytree(small.controlnet, tmp_path / "controlnet")
    preset = replace(folders, controlnets={"outline": part(copy)})
    folder = assemble(preset)
    file = copy / "diffusion_pytorch_model.safetensors"
    save_file({name: value * 2 for name, value in load_file(file).items()}, file)
    assert assemble(preset) != folder


def _assemble(preset: Preset, started: Any, said: Any) -> None:
    started.wait()
    assemble(preset, say=said.put)


def test_several_processes_assemble_once(folders: Preset) -> None:
    context = multiprocessing.get_context("fork")
    started, said = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_assemble, args=(folders, started, said)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    lines = [said.get() for _ in range(4)]
    assert [line.split()[2] for line in lines] == ["text_encoder", "unet", "vae", "controlnet_outline"]
    assert said.empty()
    assert len(list(models_folder().glob("small-*"))) == 1


def test_what_a_killed_process_left_is_swept(folders: Preset) -> None:
    folder = assemble(folders)
    left = folder.with_name(f".{folder.name}.abc")
    folder.rename(left)
    assert assemble(folders) == folder
    assert not left.exists()


def test_a_failed_assembly_leaves_nothing(folders: Preset, small: Any, tmp_path: Path) -> None:
    broken = shutil.copytree(small.vae, tmp_path / "vae")
    (broken / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is not readable"):
        assemble(replace(folders, vae=part(broken)))
    assert [path.name for path in models_folder().iterdir()] == [".locks"]


def hub_copy(folder: Path, hub: Path, repository: str, revision: str = "abc123") -> Part:
    """Lay a folder out as the hub's cache does."""
    place = hub / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / revision)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(revision)
    return Part(source=repository)


def test_hub_parts_load_from_its_cache_and_by_hand(
    folders: Preset, small: Any, tmp_path: Path, cache: Path
) -> None:
    base = hub_copy(small.folder, tmp_path / "hub", "someone/small")
    shutil.copytree(small.motion, cache / "parts" / "someone" / "motion")
    motion = Part(source="someone/motion")
    folder = assemble(replace(folders, base=base, motion=motion))
    assert_same(folder, by_diffusers(small))
    (tmp_path / "hub" / "models--someone--small" / "refs" / "main").write_text("def456")
    with pytest.raises(ModelError, match="small needs"):
        assemble(replace(folders, base=base, motion=motion))
    assert assemble(replace(folders, base=replace(base, revision="abc123"), motion=motion)) == folder


@pytest.mark.parametrize("why", ["offline", "unreachable"])
def test_all_that_is_missing_is_named_at_once(
    why: str,
    folders: Preset,
    small: Any,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if why == "unreachable":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        nowhere = "http://127.0.0.1:9"
        template = nowhere + "/{repo_id}/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nowhere)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the hub's own retries
    copy = shutil.copytree(small.folder, tmp_path / "pipeline")
    (copy / "unet" / "config.json").unlink()
    preset = replace(
        folders,
        base=part(copy),
        motion=Part(source="someone/motion"),
        vae=Part(source="someone/vae", subfolder="vae"),
    )
    with pytest.raises(ModelError) as error:
        assemble(preset)
    text = str(error.value)
    assert "small needs 5 files that are not here and the hub cannot be reached" in text
    for name in (
        str(copy / "unet" / "config.json"),
        "of someone/motion diffusion_pytorch_model.fp16.safetensors (or diffusion_pytorch_model.safetensors)",
        ", config.json; of someone/vae vae/diffusion_pytorch_model",
        "vae/config.json. Put the hub's files below ",
    ):
        assert name in text
    assert "Retrying" not in capfd.readouterr().err
    assert str(cache / "parts") in text
    assert "\n" not in text


def test_names_and_folders_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder(None) == shipped_model()
    assert model_folder("toonlet") == shipped_model()
    assert model_folder(Path("toonlet")) == Path("toonlet")
    assert model_folder("./toonlet") == Path("toonlet")
    Path("mine").mkdir()
    assert model_folder("mine") == Path("mine")
    with pytest.raises(SettingError, match="there is no model 'toonlett', did you mean toonlet"):
        model_folder("toonlett")


def test_an_assembled_model_is_exported_once_where_the_engine_wants_it(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = tmp_path / "presets.toml"
    presets.write_text(
        f'[mine]\nbase = "{small.folder}"\nvae = "{small.tiny_vae}"\nprompt = "a cat"\n', encoding="utf-8"
    )
    monkeypatch.setenv("TOONSTREAM_CONFIG", str(presets))
    said: list[str] = []
    assert load_model("mine", engine="torch").sources["unet"].onnx is None
    model = load_model("mine", engine="onnxruntime", say=said.append)
    assert all(source.onnx is not None for source in model.sources.values())
    names = ["text_encoder", "vae_encoder", "vae_decoder", "unet"]
    assert "its networks are exported for onnxruntime, once: 4 of them" in said[0]
    assert "`toonstream models get mine --engine onnxruntime` does that ahead" in said[0]
    assert [line.split()[2] for line in said[1::2]] == names
    assert [line.split()[1] for line in said[2::2]] == names
    said.clear()
    load_model("mine", engine="onnxruntime", say=said.append)
    assert not said


def test_an_export_says_how_far_it_is(tmp_path: Path) -> None:
    files = {}
    for name, megabytes in (("tiny", 1), ("large", 30), ("last", 10)):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "weights.safetensors").open("wb") as file:
            file.truncate(megabytes * 1_000_000)
        files[name] = tmp_path / name / "model.onnx"
    now, said = 0.0, []
    progress = ExportProgress(files, say=said.append, clock=lambda: now)
    for name, seconds in (("tiny", 10.0), ("large", 300.0), ("last", 100.0)):
        progress.started(name)
        now += seconds
    progress.done()
    assert said == [
        "exporting tiny (1 of 3, 1 MB)",
        "tiny took 10 s",
        "exporting large (2 of 3, 30 MB)",
        "large took 5 min",
        "exporting last (3 of 3, 10 MB); about 100 s left",
        "last took 100 s",
    ]
