"""The engine of a stream, and another that takes over while it runs."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from toonstream.config import Settings
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.engine import Engine
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.errors import EngineError
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditions
from toonstream.stream.frame import Frame
from toonstream.stream.serving import open_stream_engine
from toonstream.stream.stylizer import load_stylizer

SIZE = (64, 48)
FRAMES = 12


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(shipped_model())


def toons(model: Model, engine: Engine, *, settle_at: int | None = None) -> list[NDArray[np.uint8]]:
    """Stream a few frames; wait at one of them until what takes over is ready."""
    choices = Settings(window=2, stride=1).resolve(model.defaults)
    stylizer = load_stylizer(model, choices, engine=engine, stopwatch=Stopwatch())
    conditions = Conditions(model.defaults.controlnets, size=SIZE, multiple=model.size_multiple)
    made = []
    for index in range(FRAMES):
        if index == settle_at:
            assert isinstance(engine, SwitchableEngine)
            engine.settle()
        level = np.linspace(40, 200, SIZE[0], dtype=np.uint8) + 2 * index
        image = np.broadcast_to(level[None, :, None], (SIZE[1], SIZE[0], 3)).astype(np.uint8)
        frame = Frame(index=index, pts=index, time_base=Fraction(1, 24), image=image)
        made += [toon.toon.image for toon in stylizer.push(conditions(frame))]
    return made + [toon.toon.image for toon in stylizer.finish()]


def difference(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


def test_an_engine_takes_over_in_the_middle_of_a_stream_without_a_gap(model: Model) -> None:
    rough = OpenVinoEngine(precision="bfloat16")  # so that who drew a frame can be told
    before, after = toons(model, OnnxRuntimeEngine()), toons(model, rough)
    said: list[str] = []
    engine = SwitchableEngine(OnnxRuntimeEngine(), successor=rough, blended_windows=2, say=said.append)
    made = toons(model, engine, settle_at=4)
    assert len(made) == FRAMES
    assert said == ["openvino takes over"]
    assert all(np.array_equal(picture, old) for picture, old in zip(made[:2], before[:2], strict=True))
    assert difference(made[-1], after[-1]) < difference(made[-1], before[-1])
    # Nothing in between is further from the old or the new than these are from one another.
    for picture, old, new in zip(made, before, after, strict=True):
        assert difference(picture, old) + difference(picture, new) < 2 * difference(old, new) + 1.0


def test_an_engine_that_needs_no_building_serves_itself(model: Model) -> None:
    choices = Settings().resolve(model.defaults)
    assert open_stream_engine("onnxruntime", model, choices, size=SIZE).name == "onnxruntime"
    with pytest.raises(EngineError, match="unknown engine 'tensorflow'"):
        open_stream_engine("tensorflow", model, choices, size=SIZE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_tensorrt_says_so(model: Model) -> None:
    with pytest.raises(EngineError, match="NVIDIA GPU, and torch finds none here"):
        open_stream_engine("tensorrt-rtx", model, Settings().resolve(model.defaults), size=SIZE)


def test_on_a_gpu_torch_serves_until_tensorrt_is_built(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    choices = replace(Settings().resolve(model.defaults), guidance=2.0)
    engine = open_stream_engine("tensorrt-rtx", model, choices, size=SIZE)
    assert isinstance(engine, SwitchableEngine)
    assert engine.name == "torch"
    built = TensorRtEngine("tensorrt-rtx", shapes=lambda source: {}, capability=(8, 9))
    monkeypatch.setattr(TensorRtEngine, "is_built", lambda self, source: True)
    assert open_stream_engine("tensorrt-rtx", model, choices, size=SIZE).name == built.name
