"""The bookkeeping of the hot path, with a stand-in for TensorRT that computes on the CPU."""

import ctypes
import gc
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from enum import Enum
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toonstream.engines.replay import Step
from toonstream.engines.tensorrt import network as network_module
from toonstream.engines.tensorrt.network import TensorRtNetwork
from toonstream.errors import EngineError

CPU = torch.device("cpu")
MOST = 16  # the largest axis that the stand-in takes
Kind = Enum("Kind", ["FLOAT", "HALF", "INPUT", "OUTPUT"])
Strategy = Enum("Strategy", ["LAZY", "EAGER"])
Allocation = Enum("Allocation", ["STATIC", "USER_MANAGED"])


class Cache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content or b"kernels"


class Options:
    dynamic_shapes_kernel_specialization_strategy = Strategy.LAZY

    def __init__(self) -> None:
        self.cache: Cache | None = None
        self.allocation = Allocation.STATIC

    def get_execution_context_allocation_strategy(self) -> Allocation:
        return self.allocation

    def set_execution_context_allocation_strategy(self, strategy: Allocation) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> Cache:
        return Cache()

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.cache = cache
        return True


class Context:
    """Doubles `image`, a (batch, 3) tensor of floats, into `doubled`."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.shape: tuple[int, ...] = ()
        self.addresses: dict[str, int] = {}
        self.runs: list[int] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= MOST

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.engine.bindings += 1
        self.addresses[name] = address
        return True

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def execute_async_v3(self, stream: int) -> bool:
        self.runs.append(stream)
        count = self.shape[0] * 3
        given = (ctypes.c_float * count).from_address(self.addresses["image"])
        made = (ctypes.c_float * count).from_address(self.addresses["doubled"])
        made[:] = [2 * value for value in given]
        return self.engine.runs


class Engine:
    num_io_tensors = 2
    context = Context

    def __init__(self, *, memory: bool = True, runs: bool = True) -> None:
        self.contexts: list[Context] = []
        self.bindings = 0
        self.memory = memory
        self.runs = runs

    def get_tensor_name(self, index: int) -> str:
        return ["image", "doubled"][index]

    def get_tensor_mode(self, name: str) -> Kind:
        return Kind.INPUT if name == "image" else Kind.OUTPUT

    def get_tensor_dtype(self, name: str) -> Kind:
        return Kind.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 3), (2, 3), (MOST, 3)]

    def create_execution_context(self, *options: Options) -> Context | None:
        if not self.memory:
            return None
        self.contexts.append(self.context(self))
        return self.contexts[-1]


class RtxContext(Context):
    """Works in 100 bytes for every row of the image, which it is given."""

    memory: tuple[int, int] = 0, 0

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self.runs) and stream == 7

    def update_device_memory_size_for_shapes(self) -> int:
        return 100 * self.shape[0]

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.update_device_memory_size_for_shapes()
        self.memory = memory, size

    def execute_async_v3(self, stream: int) -> bool:
        ctypes.memset(self.memory[0], 1, self.memory[1])  # a crash, where that is not ours any more
        return super().execute_async_v3(stream)


class RtxEngine(Engine):
    context = RtxContext
    device_memory_size_v2 = 100 * MOST

    def __init__(self) -> None:
        super().__init__()
        self.options = Options()

    def create_runtime_config(self) -> Options:
        return self.options


class Recorder:
    """Keeps the steps it is given, as a recorder of CUDA graphs would."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, step: Step, may: Callable[[], bool]) -> Step:
        step()
        if may():
            self.steps.append(step)
        return step


def network(engine: Engine, **more: object) -> TensorRtNetwork:
    options = {"device": CPU, "stream": lambda: 7, "record": Recorder(), **more}
    return TensorRtNetwork("toy", engine, **options)  # type: ignore[arg-type]


def image(batch: int, value: float = 1.0) -> Mapping[str, Tensor]:
    return {"image": torch.full((batch, 3), value)}


def test_tensors_are_declared_as_the_engine_has_them() -> None:
    made = network(Engine())
    (given,), (out,) = made.inputs, made.outputs
    assert (given.name, given.dtype, given.shape) == ("image", torch.float32, ("image.0", 3))
    assert (out.name, out.dtype) == ("doubled", torch.float32)


def test_bindings_are_made_once_for_each_shape_and_runs_recorded_once() -> None:
    engine, recorder = Engine(), Recorder()
    run = network(engine, record=recorder)
    for value in (1.0, 2.0, 3.0):
        assert torch.equal(run(image(2, value))["doubled"], torch.full((2, 3), 2 * value))
    assert (engine.bindings, len(recorder.steps), len(engine.contexts)) == (2, 1, 1)
    assert engine.contexts[0].runs == [7, 7, 7, 7]  # the first one compiled kernels
    assert torch.equal(run(image(4))["doubled"], torch.full((4, 3), 2.0))
    assert torch.equal(run(image(2))["doubled"], torch.full((2, 3), 2.0))
    assert (engine.bindings, len(recorder.steps), len(engine.contexts)) == (4, 2, 2)


def test_few_shapes_are_kept_the_latest_used() -> None:
    engine = Engine()
    run = network(engine)
    for batch in (1, 2, 3, 4, 1, 5, 1):
        run(image(batch))
    assert len(engine.contexts) == 5
    run(image(2))  # was given up for 5
    assert len(engine.contexts) == 6


def test_what_is_given_out_is_the_callers() -> None:
    run = network(Engine())
    first = run(image(2, 1.0))["doubled"]
    run(image(2, 5.0))
    assert torch.equal(first, torch.full((2, 3), 2.0))


def test_inputs_of_another_type_and_layout_are_taken_in() -> None:
    given = torch.arange(6, dtype=torch.float16).reshape(3, 2).t()
    assert torch.equal(network(Engine())({"image": given})["doubled"], given.float() * 2)


def test_shapes_that_the_engine_was_not_built_for_say_so() -> None:
    with pytest.raises(EngineError, match=r"\[17, 3\].*\[1, 3\] to \[16, 3\].*toonstream engines build"):
        network(Engine())(image(17))


def test_a_workspace_without_room_says_what_to_lower() -> None:
    with pytest.raises(EngineError, match=r"not enough GPU memory.*--size, --window, --guidance"):
        network(Engine(memory=False))(image(1))


def test_memory_that_runs_out_says_what_to_lower() -> None:
    def exhausted(step: Step, may: Callable[[], bool]) -> Step:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    with pytest.raises(EngineError, match=r"\(tried to allocate 2\.00 GiB\); lower.*--size"):
        network(Engine(), record=exhausted)(image(1))


def test_a_run_that_is_refused_names_the_way_on() -> None:
    with pytest.raises(EngineError, match="--engine torch"):
        network(Engine(runs=False))(image(1))


def test_kernels_that_were_compiled_are_kept_beside_the_engine(tmp_path: Path) -> None:
    kernels = tmp_path / "kernels"
    first = RtxEngine()
    network(first, kernels=kernels)(image(1))
    assert kernels.read_bytes() == b"kernels"
    assert first.options.dynamic_shapes_kernel_specialization_strategy is Strategy.EAGER
    kernels.write_bytes(b"kept")
    second = RtxEngine()
    network(second, kernels=kernels)(image(1))
    assert second.options.cache is not None
    assert second.options.cache.content == b"kept"


def test_kernels_that_cannot_be_kept_are_compiled_again(tmp_path: Path) -> None:
    """The engine may be pruned while it runs."""
    made = network(RtxEngine(), kernels=tmp_path / "gone" / "kernels")(image(1))
    assert torch.equal(made["doubled"], torch.full((1, 3), 2.0))
    kernels = tmp_path / "kernels"
    network(RtxEngine(), kernels=kernels)(image(1))
    assert list(tmp_path.iterdir()) == [kernels]


def test_a_cache_that_gives_nothing_is_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "serialize", lambda cache: None)
    made = network(RtxEngine(), kernels=tmp_path / "kernels")(image(1))
    assert torch.equal(made["doubled"], torch.full((1, 3), 2.0))
    assert not list(tmp_path.iterdir())


def test_what_a_context_was_made_of_stays_as_long_as_it_does(tmp_path: Path) -> None:
    engine, recorder = RtxEngine(), Recorder()
    run = network(engine, record=recorder, kernels=tmp_path / "kernels")
    run(image(1))
    assert engine.options.cache is not None
    beneath = [weakref.ref(each) for each in (engine, engine.options, engine.options.cache)]
    (step,) = recorder.steps
    recorder.steps.clear()
    del engine, run
    gc.collect()
    assert all(each() is not None for each in beneath)
    del step
    gc.collect()
    assert all(each() is None for each in beneath)


def test_what_is_given_up_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[tuple[str, int]] = []
    engine = Engine()
    monkeypatch.setattr(
        "toonstream.engines.replay._finish",
        lambda device: waited.append((device.type, len(engine.contexts))),
    )
    run = network(engine)
    for batch in range(1, 7):
        run(image(batch))
    assert waited == [("cpu", 4), ("cpu", 5)]


def test_what_cannot_be_recorded_is_not_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    run = network(RtxEngine(), record=recorder)
    run(image(1))
    assert len(recorder.steps) == 1
    assert not caplog.messages
    run = network(RtxEngine(), record=recorder, stream=lambda: 8)
    for batch in (1, 2):
        assert torch.equal(run(image(batch))["doubled"], torch.full((batch, 3), 2.0))
    assert len(recorder.steps) == 1
    assert caplog.messages == ["toy: TensorRT-RTX runs it without a CUDA graph, which is slower"]


def test_contexts_work_in_the_same_memory_as_much_as_their_shapes_need() -> None:
    engine = RtxEngine()
    run = network(engine)
    for batch in (1, 3, 2):
        run(image(batch))
    assert engine.options.allocation is Allocation.USER_MANAGED
    first, second, third = (context.memory for context in engine.contexts)  # type: ignore[attr-defined]
    assert (first[1], second[1]) == (100, 300)
    assert third == second
    assert first[0] != second[0]
    # Neither went when a larger one came.
    for batch in (1, 3, 2):
        assert torch.equal(run(image(batch))["doubled"], torch.full((batch, 3), 2.0))


def test_a_context_that_does_not_say_what_it_needs_gets_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RtxContext, "update_device_memory_size_for_shapes", lambda context: 0)
    engine = RtxEngine()
    network(engine)(image(1))
    assert engine.contexts[0].memory[1] == RtxEngine.device_memory_size_v2  # type: ignore[attr-defined]


def test_what_is_not_recorded_runs_on_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            log.append(f"{self.name} waits for {other.name}")

    def on(stream: Stream) -> nullcontext[None]:
        return nullcontext(log.append(f"on {stream.name}"))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("default"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    made = {"doubled": torch.ones(1)}
    run = network_module._beside(lambda: log.append("run") or made, torch.device("cuda"))  # type: ignore[func-returns-value]
    assert run() is made
    assert log == ["side waits for default", "on side", "run", "default waits for side"]


def test_an_engine_that_goes_leaves_its_memory_at_once() -> None:
    def record(step: Step, may: Callable[[], bool]) -> Step:
        return step

    left = weakref.ref(record)
    run = network(Engine(), record=record)
    run(image(1))
    del record
    gc.disable()
    try:
        del run
        assert left() is None
    finally:
        gc.enable()
