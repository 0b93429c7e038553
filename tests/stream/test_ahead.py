"""The UNet is compiled for just what the first window asks for, and what goes wrong is left to the window."""

import pytest
import torch

from toonstream.config import Settings
from toonstream.engines.openvino import OpenVinoEngine, OpenVinoNetwork
from toonstream.errors import EngineError
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.stream.ahead import prepare_unet
from toonstream.stream.render import render_clip


@pytest.mark.parametrize(
    "settings",
    [Settings(), Settings(steps=2, window=4, stride=2, guidance=2.0)],
    ids=["default", "guided"],
)
def test_a_run_compiles_no_unet_but_the_one_ahead(settings, make_clip, tmp_path, monkeypatch):
    clip = make_clip(seconds=4 / 24)  # one window
    compiled: dict[str, set[object]] = {}
    made = OpenVinoNetwork._compile

    def compile_(network, shapes):
        compiled.setdefault(network._name, set()).add(shapes)
        return made(network, shapes)

    monkeypatch.setattr(OpenVinoNetwork, "_compile", compile_)
    threads = []

    def prepare(*words, **options):
        thread = prepare_unet(*words, **options)
        assert thread is not None
        threads.append(thread)
        thread.join()
        assert len(compiled["unet"]) == 1
        return thread

    monkeypatch.setattr("toonstream.stream.stylizer.prepare_unet", prepare)
    assert render_clip(clip, tmp_path / "toon.mp4", settings).progress.frames_committed == 4
    assert threads
    assert {name: len(shapes) for name, shapes in compiled.items()} == dict.fromkeys(compiled, 1)


def load(*names):
    model = open_model(shipped_model())
    engine = OpenVinoEngine()
    return {name: engine.load(model.sources[name]) for name in names}


NAMES = ("unet", "hint_outline", "controlnet_outline")


def test_what_is_refused_is_not_told_here(monkeypatch):
    def refuse(network, tensors):
        raise EngineError("no")

    monkeypatch.setattr(OpenVinoNetwork, "prepare", refuse)
    thread = prepare_unet(
        load(*NAMES), hint="outline", size=(64, 48), text=torch.zeros(1, 77, 128), window=4, channels=16
    )
    assert thread is not None
    thread.join()


def test_an_engine_that_does_not_compile_is_left_alone():
    networks = {**load(*NAMES), "unet": lambda tensors: tensors}
    options = {"size": (64, 48), "text": torch.zeros(1, 77, 128), "window": 4, "channels": 16}
    assert prepare_unet(networks, hint="outline", **options) is None
