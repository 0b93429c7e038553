"""Live streams whose frames attend to the past and to a picture."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from toonstream.config import RenderSettings, Size
from toonstream.engines.torch import TorchEngine
from toonstream.errors import InputError
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.export.reference import with_reference
from toonstream.stream.clock import Stopwatch
from toonstream.stream.frame import Frame
from toonstream.stream.live.core import wished
from toonstream.stream.live.networks import SharedNetworks
from toonstream.stream.live.settings import LiveSettings
from toonstream.stream.live.switching import Pushed
from toonstream.stream.opening import prepare_frames
from toonstream.stream.serving import open_live_networks
from toonstream.stream.stylizer import load_stylizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # diffusers on its own configuration
SIZE = (64, 48)
FRAMES = 8


@pytest.fixture(scope="module")
def model() -> Model:
    """The shipped one, to which what it attends to matters more than it does."""
    shipped = open_model(shipped_model())
    return replace(
        shipped, defaults=replace(shipped.defaults, remember_strength=50.0, reference_strength=50.0)
    )


@pytest.fixture
def asked(tmp_path: Path) -> LiveSettings:
    sheet = np.random.default_rng(5).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    (tmp_path / "sheet.png").write_bytes(cv2.imencode(".png", sheet)[1].tobytes())
    return LiveSettings(
        size=Size(exact=SIZE), window=4, stride=2, steps=2, remember=2, reference=tmp_path / "sheet.png"
    )


def source() -> list[Frame]:
    random = np.random.default_rng(1)
    picture = random.integers(0, 200, (SIZE[1], SIZE[0], 3), np.uint8)
    return [
        Frame(index=index, pts=index, time_base=Fraction(1, 24), image=picture + np.uint8(2 * index))
        for index in range(FRAMES)
    ]


def drawn(shared: SharedNetworks, asked: LiveSettings) -> list[NDArray[np.uint8]]:
    render = shared.check(asked)
    words = shared.words(render)
    segment = shared.segment(wished(render, SIZE), words, size=SIZE, observe=lambda plan, run: None)
    toons = [toon for frame in source() for toon in segment.push(Pushed(frame=frame, words=words))]
    return [toon.toon.image for toon in (*toons, *segment.finish())]


def as_a_clip(model: Model, render: RenderSettings) -> list[NDArray[np.uint8]]:
    stylizer = load_stylizer(
        with_reference(model, engine="torch"), render, engine=TorchEngine(), stopwatch=Stopwatch()
    )
    scenes = prepare_frames(model, SIZE)
    toons = [toon for frame in source() for toon in stylizer.push(scenes(frame))]
    return [toon.toon.image for toon in (*toons, *stylizer.finish())]


def test_a_live_stream_attends_as_a_clip_does(model: Model, asked: LiveSettings) -> None:
    shared = open_live_networks("torch", model, asked)
    toons = drawn(shared, asked)
    shared.close()
    assert len(toons) == FRAMES
    for mine, theirs in zip(toons, as_a_clip(model, asked.resolve(model.defaults)), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("without", [{"remember": 0}, {"reference": None}])
def test_each_of_them_shows(model: Model, asked: LiveSettings, without: dict[str, Any]) -> None:
    def of(settings: LiveSettings) -> list[NDArray[np.uint8]]:
        shared = open_live_networks("torch", model, settings)
        toons = drawn(shared, settings)
        shared.close()
        return toons

    assert not np.array_equal(of(asked)[-1], of(replace(asked, **without))[-1])


def test_a_picture_that_is_none_is_said_before_anything_is_loaded(
    model: Model, asked: LiveSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(SharedNetworks, "load", load)
    with pytest.raises(InputError, match="No such file"):
        open_live_networks("torch", model, replace(asked, reference=tmp_path / "nowhere.png"))
