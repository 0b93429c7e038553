"""Beside the window or within it: the same frames, the same pictures, in the same order."""

import threading
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from toonstream.config import Settings
from toonstream.engines.compiled import CompiledStore
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.stream.ahead import AT_ONCE
from toonstream.stream.beside import Beside, load_beside
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditioned, Conditions
from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Stylizer, Toon, load_stylizer

SIZE = 128, 64  # not 64 x 64: an odd number of such frames comes out of OpenVINO a little differently each
# time, in bfloat16
ROUNDING = 2  # levels of 255: ControlNets run with other shapes, which bfloat16 rounds otherwise


def conditioned(count: int, *, cut: int | None = None) -> Iterable[Conditioned]:
    """Noise that drifts; from `cut` on it is another scene."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (64, 192, 3), dtype=np.uint8)
    conditions = Conditions(("outline", "colour"), size=SIZE, multiple=8)
    for index in range(count):
        image = np.ascontiguousarray(noise[:, index : index + 128])
        made = conditions(Frame(index=index, pts=index, time_base=Fraction(1, 24), image=image))
        scene = int(cut is not None and index >= cut)
        yield Conditioned(frame=made.frame, hints=made.hints, scene=scene)


def through(stylizer: Beside | Stylizer, frames: Iterable[Conditioned]) -> list[Toon]:
    toons = [toon for frame in frames for toon in stylizer.push(frame)]
    return toons + list(stylizer.finish())


@pytest.mark.parametrize(
    ("settings", "count", "cut"),
    [
        (Settings(), 8, 4),
        (Settings(), 1, None),
        (Settings(steps=2, window=2, stride=1, guidance=2.0), 4, None),
    ],
    ids=["default", "one frame", "guided"],
)
def test_the_pictures_are_the_same(settings: Settings, count: int, cut: int | None, cache: Path) -> None:
    model = open_model(shipped_model())
    choices = settings.resolve(model.defaults)
    engine = OpenVinoEngine(at_once=AT_ONCE, compiled=CompiledStore(cache / "openvino"))
    beside = load_beside(model, choices, engine=engine, stopwatch=Stopwatch(), size=SIZE)
    assert isinstance(beside, Beside)
    plain = load_stylizer(model, choices, engine=engine, stopwatch=Stopwatch())
    expected = through(plain, conditioned(count, cut=cut))
    got = through(beside, conditioned(count, cut=cut))
    assert [toon.toon.index for toon in got] == list(range(count))
    assert [toon.scene for toon in got] == [toon.scene for toon in expected]
    for one, other in zip(got, expected, strict=True):
        off = np.abs(one.toon.image.astype(int) - other.toon.image)
        assert off.max() <= (ROUNDING if choices.steps == 1 else 0)
        assert np.array_equal(one.source.image, other.source.image)


def test_other_engines_work_as_before(cache: Path) -> None:
    model = open_model(shipped_model())
    engine = OpenVinoEngine(compiled=CompiledStore(cache / "openvino"))
    engine.name = "another"
    options = {"engine": engine, "stopwatch": Stopwatch(), "size": SIZE}
    assert isinstance(load_beside(model, Settings().resolve(model.defaults), **options), Stylizer)


def as_it_is(frame: Conditioned) -> Conditioned:
    return frame


class Stand:
    """A stylizer that commits every frame at once, and decodes on demand."""

    def __init__(self, decode, prepare=as_it_is) -> None:
        self._decode = decode
        self.prepare = prepare

    def enter(self, frame: Conditioned):
        return [lambda: self._decode(frame)]

    def end(self):
        return []


def test_what_waits_is_bounded() -> None:
    gate = threading.Event()
    decoded = []

    def decode(frame: Conditioned) -> int:
        gate.wait()
        decoded.append(frame.frame.index)
        return frame.frame.index

    beside = Beside(Stand(decode), ahead=2)
    frames = list(conditioned(7))
    for frame in frames[:4]:
        assert list(beside.push(frame)) == []
    assert decoded == []
    gate.set()
    given = [index for frame in frames[4:] for index in beside.push(frame)]
    assert given + list(beside.finish()) == decoded == list(range(7))
    assert len(given) >= 3


def test_frames_are_held_back_once_there_is_a_first_picture_and_not_before() -> None:
    entered = []

    class Late(Stand):
        def enter(self, frame: Conditioned):
            entered.append(frame.frame.index)
            return super().enter(frame) if len(entered) > 3 else []

    beside = Beside(Late(lambda frame: 0), ahead=2)
    held = []
    for frame in conditioned(8):
        list(beside.push(frame))
        held.append(frame.frame.index + 1 - len(entered))
    assert held == [0, 0, 0, 0, 1, 2, 2, 2]
    beside.settle()


@pytest.mark.parametrize("where", ["preparing", "pictures"])
def test_a_failure_reaches_whoever_pushes(where: str) -> None:
    def fail(given):
        raise ValueError("broken")

    decode, prepare = (lambda frame: 0, fail) if where == "preparing" else (fail, as_it_is)
    beside = Beside(Stand(decode, prepare), ahead=1)
    with pytest.raises(ValueError, match="broken"):
        through(beside, conditioned(6))
