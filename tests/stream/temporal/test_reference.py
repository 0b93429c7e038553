"""What is remembered, for how long, and how much of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toonstream.engines.engine import TensorSpec
from toonstream.errors import SettingError
from toonstream.export.networks.base import spec
from toonstream.export.networks.reference import BIAS, EMPTY
from toonstream.stream.rolling import Rolling
from toonstream.stream.temporal.reference import FrameMemory, Remembering
from toonstream.stream.window import Windows

SIZE = (8, 4)
CPU = torch.device("cpu")
SIDES = 2
STEP = 1000  # a frame's features say which it is: index + 1000 * (step + 1)


class Unet:
    """What the memory wants to know of the network."""

    inputs: tuple[TensorSpec, ...] = (
        spec("sample", "batch", "frames", 4, "h", "w"),
        spec(BIAS, "batch", "remembered"),
        spec("remembered_0_at_4", "batch", "remembered", "h/4", "w/4", 3),
        spec("remembered_1_at_1", "batch", "remembered", "h", "w", 2),
    )
    outputs: tuple[TensorSpec, ...] = ()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise AssertionError("the memory does not run it")


def memory(sink: int, recent: int, *, steps: int = 1, **more: object) -> FrameMemory:
    options: dict[str, object] = {
        "remembering": Remembering(sink=sink, recent=recent), "steps": steps, "sides": SIDES, "device": CPU,
        **more,
    }  # fmt: skip
    return FrameMemory(Unet(), **options)  # type: ignore[arg-type]


def seen(values: Sequence[float], size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    """What the UNet gives of frames whose features are all these numbers; negative on the other side."""
    sides = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1, 1)
    each = torch.tensor(values).reshape(1, -1, 1, 1, 1)
    return {
        "features_0_at_4": (sides * each).expand(2, -1, size[0] // 4, size[1] // 4, 3).clone(),
        "features_1_at_1": (sides * each).expand(2, -1, *size, 2).clone() + 0.5,
    }


def told(inputs: Mapping[str, Tensor]) -> list[int]:
    """Which features the UNet is given, in places that count."""
    first, second = inputs["remembered_0_at_4"], inputs["remembered_1_at_1"]
    assert first.shape[3:] == (SIZE[1] // 4, 3)
    assert second.shape[2:] == (*SIZE, 2)
    assert inputs[BIAS].shape == first.shape[:2] == second.shape[:2]
    found = []
    for place in range(first.shape[1]):
        if inputs[BIAS][0, place] == EMPTY:
            assert not first[:, place].any()
            assert not second[:, place].any()
        else:
            found.append(int(first[1, place, 0, 0, 0]))
            assert (first[0, place] == -first[1, place]).all()
            assert (second[1, place] == first[1, place, 0, 0, 0] + 0.5).all()
    return found


@dataclass
class Run:
    """A stream as the denoiser runs it: what each window was told, by (scene, step, first frame)."""

    memory: FrameMemory
    windows: Windows
    steps: int
    skewed: bool
    told: dict[tuple[int, int, int], list[int]] = field(default_factory=dict)
    most: int = 0

    def scenes(self, lengths: Sequence[int]) -> None:
        first = 0
        for scene, length in enumerate(lengths):
            rolling = Rolling(self.windows, steps=self.steps, skewed=self.skewed)
            for _ in range(length):
                rolling.arrive()
                self._run(rolling, scene, first)
            for index in rolling.end():
                self.memory.climbed(0, [first + index])
            self._run(rolling, scene, first)
            assert rolling.committed == length
            self.memory.cut()
            assert self.memory.remembered == 0
            first += length

    def _run(self, rolling: Rolling, scene: int, first: int) -> None:
        while tasks := rolling.ready():
            frames = [range(first + task.span.start, first + task.span.stop) for task in tasks]
            for task, indices in zip(tasks, frames, strict=True):
                inputs = self.memory.inputs(task.step, indices, SIZE)
                self.told[scene, task.step, task.span.start] = told(inputs)
            for task, indices in zip(tasks, frames, strict=True):
                values = [index + STEP * (task.step + 1) for index in indices]
                self.memory.keep(task.step, indices, seen(values))
            for task in tasks:
                self.memory.climbed(task.step, [first + index for index in rolling.complete(task)])
            self.most = max(self.most, self.memory.remembered)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_windows_are_told_of_the_first_and_the_latest_frames_before_them(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 6))
    windows = Windows(length=length, stride=data.draw(st.integers(1, length)))
    steps = data.draw(st.integers(1, 3))
    sink, recent = data.draw(
        st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda both: sum(both) > 0)
    )
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=3))
    runs = [Run(memory(sink, recent, steps=steps), windows, steps, skewed=skewed) for skewed in (False, True)]
    for run in runs:
        run.scenes(lengths)
        assert run.most <= steps * (sink + recent)
    assert runs[0].told == runs[1].told
    for (scene, step, start), found in runs[0].told.items():
        first = sum(lengths[:scene])
        before = [index + STEP * (step + 1) for index in range(first, first + start)]
        rest = before[sink:]
        assert found == before[:sink] + (rest[-recent:] if recent else [])


def test_a_frame_is_remembered_as_the_last_window_saw_it_and_once() -> None:
    remembering = memory(0, 2)
    remembering.keep(0, range(4), seen([0, 1, 2, 3]))
    remembering.climbed(0, [0, 1])
    remembering.keep(0, range(2, 6), seen([12, 13, 14, 15]))
    remembering.climbed(0, [2, 3])
    assert told(remembering.inputs(0, range(4, 8), SIZE)) == [12, 13]
    remembering.climbed(0, [4, 5])  # the stream has ended, and no window has run
    assert told(remembering.inputs(0, range(6, 8), SIZE)) == [12, 13]


def test_anchored_segments_remember_what_they_made_and_not_what_they_keep_to() -> None:
    remembering = memory(1, 2)
    remembering.keep(0, range(4), seen([0, 1, 2, 3]))
    remembering.climbed(0, [0, 1, 2, 3])
    assert told(remembering.inputs(0, range(2, 6), SIZE)) == [0, 2, 3]
    remembering.keep(0, range(2, 6), seen([92, 93, 4, 5]))
    remembering.climbed(0, [4, 5])
    assert told(remembering.inputs(0, range(4, 8), SIZE)) == [0, 4, 5]


def test_what_is_remembered_is_a_copy_of_its_own() -> None:
    """A slice would hold on to all frames of its window."""
    remembering = memory(0, 1)
    outputs = seen([0, 1, 2, 3])
    remembering.keep(0, range(4), outputs)
    remembering.climbed(0, [0, 1])
    for tensor in outputs.values():
        tensor.zero_()
    assert told(remembering.inputs(0, range(2, 6), SIZE)) == [1]
    held = [
        parked.take() for level in remembering._levels for kept in level.recent for parked in kept.values()
    ]
    assert [tensor.untyped_storage().nbytes() for tensor in held] == [2 * 2 * 3 * 4, 2 * 8 * 4 * 2 * 4]


def test_features_wait_in_what_the_network_computes_in() -> None:
    class Half(Unet):
        """As torch declares it on a GPU."""

        inputs = tuple(replace(tensor, dtype=torch.float16) for tensor in Unet.inputs)

    remembering = FrameMemory(
        Half(),
        remembering=Remembering(recent=1),
        steps=1,
        sides=SIDES,
        device=CPU,
        look_at=lambda size: [seen([700], size)],
    )
    remembering.inputs(0, range(2), SIZE)
    remembering.keep(0, range(2), seen([0, 1]))
    remembering.climbed(0, [0])
    level = remembering._levels[0]
    held = [parked.take() for kept in (*level.recent, *level.picture) for parked in kept.values()]
    assert [tensor.dtype for tensor in held] == [torch.float16] * 4
    assert told(remembering.inputs(0, range(1, 3), SIZE)) == [700, 0]


def test_strength_is_shared_among_frames_and_the_picture_has_its_own() -> None:
    looked: list[tuple[int, int]] = []

    def look_at(size: tuple[int, int]) -> list[dict[str, Tensor]]:
        looked.append(size)
        return [seen([700 + step], size) for step in range(2)]

    remembering = memory(
        1,
        2,
        steps=2,
        remembering=Remembering(sink=1, recent=2, strength=3.0, picture_strength=0.5),
        look_at=look_at,
    )
    inputs = remembering.inputs(1, range(4), SIZE)
    assert told(inputs) == [701]
    assert inputs[BIAS].tolist() == [[pytest.approx(log(0.5)), EMPTY, EMPTY, EMPTY]] * 2
    remembering.keep(1, range(4), seen([0, 1, 2, 3]))
    remembering.climbed(1, [0, 1])
    inputs = remembering.inputs(1, range(2, 6), SIZE)
    assert told(inputs) == [701, 0, 1]
    share = pytest.approx(log(1.5))
    assert inputs[BIAS].tolist() == [[pytest.approx(log(0.5)), share, share, EMPTY]] * 2
    assert told(remembering.inputs(0, range(2, 6), SIZE)) == [700]
    remembering.cut()
    assert told(remembering.inputs(1, range(6, 10), SIZE)) == [701]
    assert looked == [SIZE]


def test_another_size_forgets_the_frames_and_looks_at_the_picture_anew() -> None:
    looked: list[tuple[int, int]] = []

    def look_at(size: tuple[int, int]) -> list[dict[str, Tensor]]:
        looked.append(size)
        return [seen([700], size)]

    remembering = memory(1, 1, look_at=look_at)
    remembering.inputs(0, range(2), (16, 8))
    remembering.keep(0, range(2), seen([0, 1], (16, 8)))
    remembering.climbed(0, [0, 1])
    assert told(remembering.inputs(0, range(2, 4), SIZE)) == [700]
    assert looked == [(16, 8), SIZE]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(SettingError, match="nothing to remember"):
        memory(0, 0)
    with pytest.raises(SettingError, match="-1 frames"):
        Remembering(recent=-1)
    with pytest.raises(SettingError, match="leave out"):
        Remembering(strength=0.0)
