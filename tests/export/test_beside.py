"""Exports while torch draws: in a process of its own, and only what is missing."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from toonstream.engines.engine import NetworkSource
from toonstream.errors import EngineError
from toonstream.export import beside, worker
from toonstream.export.assemble import export_for, load_model
from toonstream.export.beside import ExportBeside
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.export.reference import with_reference

BEHIND = "torch+tensorrt-rtx"


@pytest.fixture
def mine(small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model that was assembled, opened for TensorRT behind torch."""
    presets = tmp_path / "presets.toml"
    presets.write_text(
        f'[mine]\nbase = "{small.folder}"\nvae = "{small.tiny_vae}"\nprompt = "a cat"\n', encoding="utf-8"
    )
    monkeypatch.setenv("TOONSTREAM_CONFIG", str(presets))
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return load_model("mine", engine=BEHIND)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Jobs are done here and now, and written down."""
    jobs: list[dict[str, object]] = []

    def follow(module: str, job: dict[str, object], *, heard: Any, **_: object) -> None:
        jobs.append(job)
        worker.export(job, lambda event, /, **facts: heard({"event": event, **facts}))

    monkeypatch.setattr(beside, "follow", follow)
    return jobs


def test_a_model_behind_torch_is_not_exported_before_it_draws(mine: Model) -> None:
    assert [source.onnx for source in mine.sources.values()] == [None] * 4
    assert not list(mine.path.rglob("*.onnx"))


def test_all_that_is_missing_is_exported_once(mine: Model, in_process: list[dict[str, object]]) -> None:
    said: list[str] = []
    export, stop = ExportBeside(mine, engine="tensorrt-rtx", say=said.append), threading.Event()
    for source in mine.sources.values():
        made = export(source, stop)
        assert made.onnx is not None
        assert made.onnx.name.endswith(".float16.onnx")
        assert made.onnx.is_file()
    assert in_process == [{"engine": "tensorrt-rtx", "folder": str(mine.path), "attends": False}]
    assert "its networks are exported for tensorrt-rtx, once: 4 of them" in said[0]
    again = export_for(BEHIND, mine.path)
    assert all(source.onnx is not None for source in again.sources.values())
    weights = {"a": torch.zeros(1)}
    source = NetworkSource(name="unet", onnx=None, build=torch.nn.Identity, weights=weights)
    assert export(source, stop).weights is weights
    assert len(in_process) == 1


def test_what_frames_attend_to_the_past_with_is_exported_wherever_the_model_lies(
    mine: Model, in_process: list[dict[str, object]]
) -> None:
    attending = with_reference(mine, engine=BEHIND)
    source = attending.sources["unet_reference"]
    assert source.onnx is None
    made = ExportBeside(attending, engine="tensorrt-rtx")(source, threading.Event())
    assert made.onnx is not None
    assert made.onnx.is_file()
    assert in_process[0]["attends"]
    assert with_reference(mine, engine=BEHIND).sources["unet_reference"].onnx == made.onnx


def test_into_a_folder_of_ones_own_nothing_is_written(in_process: list[dict[str, object]]) -> None:
    shipped = open_model(shipped_model())
    source = NetworkSource(name="unet", onnx=None, build=torch.nn.Identity)
    assert ExportBeside(shipped, engine="tensorrt-rtx")(source, threading.Event()) is source
    assert not in_process


def test_it_runs_in_a_process_of_its_own_and_can_be_stopped(mine: Model) -> None:
    said: list[str] = []
    stop = threading.Event()
    stop.set()
    with pytest.raises(EngineError, match="mine: the export was stopped"):
        ExportBeside(mine, engine="tensorrt-rtx")(mine.sources["unet"], stop)
    export = ExportBeside(mine, engine="tensorrt-rtx", say=said.append)
    made = export(mine.sources["unet"], threading.Event())
    assert made.onnx is not None
    assert made.onnx.is_file()
    assert "once: 4 of them" in said[0]
