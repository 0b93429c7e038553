"""What clients ask for, as it reaches the live core; no frame is drawn."""

import math
from pathlib import Path

import pytest

from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.errors import InputError, SettingError
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.server.drawing import Drawing
from toonstream.server.live import Bounds, Change
from toonstream.stream.live.networks import SharedNetworks
from toonstream.stream.live.settings import LiveSettings


def test_loras_are_offered_and_asked_for_by_name() -> None:
    model = open_model(shipped_model())
    shared = SharedNetworks.load(model, OnnxRuntimeEngine(), loras={"ink": Path("ink.safetensors")})
    drawing = Drawing(shared, model, LiveSettings(latency=0.4))
    assert drawing.catalogue.loras == ("ink",)
    live = drawing(Change(loras={"ink": 0.5}), lambda toon, at: None, lambda reason: None)
    try:
        live.change(Change(loras={}))
        live.change(Change(loras={"ink": -1, "unasked": 0.0}))  # which counts for nothing
        for name in ("nope", "../ink", "/etc/ink.safetensors"):
            with pytest.raises(InputError, match="there is no LoRA"):
                live.change(Change(loras={name: 1.0}))
        with pytest.raises(InputError, match="-10 to 10"):
            live.change(Change(loras={"ink": 1e9}))
    finally:
        live.close()
        shared.close()
    with pytest.raises(InputError, match="there is no LoRA"):
        drawing(Change(loras={"nope": 1.0}), lambda toon, at: None, lambda reason: None)


def test_what_may_be_asked_for_is_bounded_by_what_the_operator_chose() -> None:
    model = open_model(shipped_model())
    shared = SharedNetworks.load(model, OnnxRuntimeEngine())
    drawing = Drawing(shared, model, LiveSettings(latency=0.4, steps=12))
    assert drawing.catalogue.bounds == Bounds(latency=0.1, steps=12, window=16)
    live = drawing(Change(latency=0.1, steps=12, window=16), lambda toon, at: None, lambda reason: None)
    beyond = (Change(latency=0.02), Change(latency=math.nan), Change(steps=13), Change(window=17))
    try:
        for change in beyond:
            with pytest.raises(SettingError, match=r"this server takes (100 ms or more|\d+ at most)"):
                live.change(change)
    finally:
        live.close()
        shared.close()
    for change in beyond:
        with pytest.raises(SettingError, match="this server takes"):
            drawing(change, lambda toon, at: None, lambda reason: None)


def test_deflickering_is_a_switch() -> None:
    model = open_model(shipped_model())
    shared = SharedNetworks.load(model, OnnxRuntimeEngine())
    try:
        assert Drawing(shared, model, LiveSettings(deflicker="causal")).catalogue.deflicker
        assert not Drawing(shared, model, LiveSettings(deflicker="off")).catalogue.deflicker
        live = Drawing(shared, model, LiveSettings())(Change(), lambda toon, at: None, lambda reason: None)
        for on in (False, True):
            live.change(Change(deflicker=on))
        live.close()
    finally:
        shared.close()
