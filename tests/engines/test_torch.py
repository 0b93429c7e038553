"""What the torch engine does on a GPU, as far as a CPU can tell."""

import gc
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from toonstream.engines.engine import NetworkSource, TensorSpec
from toonstream.engines.memory import gpu_too_old, out_of_memory
from toonstream.engines.replay import Buffered, GraphRecorder, Step
from toonstream.engines.select import engine_name
from toonstream.engines.torch import TorchEngine, TorchNetwork, use_memory_efficient_attention
from toonstream.errors import EngineError

CPU = torch.device("cpu")


def test_it_computes_in_float32_on_a_cpu_and_as_told(toy: NetworkSource) -> None:
    given = {"image": torch.randn(1, 3, 8, 8), "count": torch.tensor([2])}
    exact = TorchEngine(device=CPU)
    assert exact.precision == "float32"
    rough = TorchEngine(device=CPU, dtype=torch.bfloat16)
    assert rough.precision == "bfloat16"
    made, expected = rough.load(toy)(given)["blurred"], exact.load(toy)(given)["blurred"]
    assert made.dtype == torch.float32
    assert 0 < (made - expected).norm() < 0.02 * expected.norm()


def test_on_a_gpu_it_computes_in_half_precision_through_graphs() -> None:
    engine = TorchEngine(device=torch.device("cuda"))
    assert (engine.precision, engine.graphs) == ("float16", True)


def recording(recorded: list[Step]) -> Callable[[Step], Step]:
    """Stands in for what records CUDA graphs: keeps what it is given."""

    def record(step: Step) -> Step:
        recorded.append(step)
        return step

    return record


def given(batch: int) -> dict[str, Tensor]:
    return {"image": torch.randn(batch, 3, 6, 6), "count": torch.arange(batch)}


def test_calls_go_through_buffers_that_are_recorded_once_a_shape(toy: NetworkSource) -> None:
    recorded: list[Step] = []
    module = toy.build()
    run = TorchNetwork("toy", module, CPU, torch.float32, record=recording(recorded))
    direct = TorchEngine(device=CPU).load(toy)
    for batch in (1, 2, 1, 2):
        inputs = given(batch)
        for name, tensor in run(inputs).items():
            torch.testing.assert_close(tensor, direct(inputs)[name])
    assert len(recorded) == 2


def test_buffers_stay_in_place(toy: NetworkSource) -> None:
    places: list[int] = []

    def prepare(buffers: Mapping[str, Tensor]) -> Step:
        return lambda: places.append(buffers["image"].data_ptr()) or {}  # type: ignore[func-returns-value]

    run = Buffered(toy.build().inputs, device=CPU, prepare=prepare)  # type: ignore[arg-type]
    for batch in (1, 2, 1, 2):
        run(given(batch))
    assert places[:2] == places[2:]
    assert places[0] != places[1]


@pytest.mark.parametrize("first", [True, False])
def test_callers_may_be_in_inference_mode_or_not(toy: NetworkSource, first: bool) -> None:
    """A stream is; whoever warms a network up, on another thread, is not."""
    run = TorchNetwork("toy", toy.build(), CPU, torch.float32, record=recording([]))
    for mode in (first, not first, first):
        with torch.inference_mode(mode):
            made = run(given(1))["blurred"]
    if not first:
        made.mul_(2)  # it is the caller's


def test_a_network_that_goes_leaves_its_memory_at_once(toy: NetworkSource) -> None:
    """Not when the collector comes: in commands that run for hours it passes over what was there at first."""
    module = toy.build()
    left = weakref.ref(module)
    network = TorchNetwork("toy", module, CPU, torch.float32, record=recording([]))
    network(given(1))
    del module
    gc.disable()
    try:
        del network
        assert left() is None
    finally:
        gc.enable()


class Gpu:
    """Stands in for `torch.cuda`, and notes what is done in which order."""

    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self, *, refusal: Exception | None = None) -> None:
        self.log: list[str] = []
        self.refusal = refusal
        self.current = "main"
        self.pools = 0

    def CUDAGraph(self) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    def graph_pool_handle(self) -> int:
        self.pools += 1
        return self.pools

    def current_stream(self) -> SimpleNamespace:
        name = self.current
        return SimpleNamespace(
            name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}")
        )

    def set_stream(self, stream: SimpleNamespace) -> None:
        self.current = stream.name

    def stream(self, stream: SimpleNamespace) -> nullcontext[None]:
        return nullcontext(self.log.append(f"on {stream.name}"))

    def graph(self, graph: object, *, pool: int, capture_error_mode: str) -> "Recording":
        self.log.append(f"pool {pool}, {capture_error_mode}")
        return Recording(self)


class Recording:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.capture_stream = SimpleNamespace(
            name="side", wait_stream=lambda other: gpu.log.append(f"side waits for {other.name}")
        )

    def __enter__(self) -> None:
        self.gpu.current = "side"
        self.gpu.log.append("begin")

    def __exit__(self, *error: object) -> None:
        if self.gpu.refusal is not None:  # as torch's does: it stays on its own stream
            raise self.gpu.refusal
        self.gpu.current = "main"
        self.gpu.log.append("end")


def test_a_step_is_warmed_up_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    monkeypatch.setattr(torch, "cuda", gpu)
    record = GraphRecorder()

    def step() -> Mapping[str, Tensor]:
        gpu.log.append("step")
        return {"image": torch.ones(1)}

    replay = record(step)
    assert gpu.log == [
        "pool 1, thread_local", "side waits for main", "on side", "step", "step", "main waits for side",
        "begin", "step", "end",
    ]  # fmt: skip
    gpu.log.clear()
    assert torch.equal(replay()["image"], torch.ones(1))
    assert gpu.log == ["replay"]
    record(step)
    assert gpu.pools == 1  # its graphs share their memory


def test_a_step_that_cannot_be_recorded_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(refusal=RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors"))
    monkeypatch.setattr(torch, "cuda", gpu)

    def step() -> Mapping[str, Tensor]:
        return {}

    with pytest.warns(RuntimeWarning, match="without a CUDA graph: operation not permitted when .*ing$"):
        assert GraphRecorder()(step) is step
    assert gpu.current == "main"
    gpu.refusal = torch.cuda.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        GraphRecorder()(step)
    assert gpu.current == "main"
    gpu.refusal = None  # and the lock is free again
    assert GraphRecorder()(step) is not step


def test_a_step_that_may_not_be_recorded_is_asked_for_beside_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not on torch's default stream, which cannot be recorded at all; and when it has run."""
    gpu = Gpu()
    monkeypatch.setattr(torch, "cuda", gpu)

    def step() -> Mapping[str, Tensor]:
        gpu.log.append("step")
        return {}

    assert GraphRecorder()(step, lambda: bool(gpu.log.append("asked"))) is step
    assert gpu.log[-5:] == ["on side", "step", "step", "asked", "main waits for side"]


def test_what_is_recorded_keeps_what_its_graph_works_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as an execution context of TensorRT's, and its memory."""
    monkeypatch.setattr(torch, "cuda", Gpu())

    class Held:
        def __call__(self) -> Mapping[str, Tensor]:
            return {}

    step = Held()
    left = weakref.ref(step)
    replay = GraphRecorder()(step)
    del step
    gc.collect()
    assert left() is not None
    del replay
    gc.collect()
    assert left() is None


class Attending(nn.Module):
    """A network of diffusers', as far as its attention can be switched."""

    switched = False

    def enable_xformers_memory_efficient_attention(self) -> None:
        self.switched = True


def test_attention_goes_through_xformers_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(Attending(), nn.Identity())
    monkeypatch.setitem(sys.modules, "xformers", None)
    assert not use_memory_efficient_attention(module)
    installed = ModuleType("xformers")
    installed.__spec__ = object()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "xformers", installed)
    assert use_memory_efficient_attention(module)
    assert module[0].switched


def test_memory_that_runs_out_says_what_to_lower() -> None:
    with (
        pytest.raises(EngineError, match=r"unet: not enough .* \(tried to allocate 2\.5 GiB\).*--size"),
        out_of_memory("unet"),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.5 GiB. GPU 0 has less")


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_memory_that_runs_out_in_a_library_says_the_same(said: str) -> None:
    with (
        pytest.raises(EngineError, match=r"^unet: not enough GPU memory; lower.*--size"),
        out_of_memory("unet"),
    ):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="misaligned"), out_of_memory("unet"):
        raise RuntimeError("CUDA error: misaligned address")


def test_inputs_are_declared_as_what_it_computes_in() -> None:
    """So that whoever keeps them for it keeps no more than that."""

    class Timed(nn.Module):
        inputs = (
            TensorSpec(name="sample", dtype=torch.float32, shape=("batch",)),
            TensorSpec(name="timestep", dtype=torch.float32, shape=("batch",)),
            TensorSpec(name="count", dtype=torch.int64, shape=("batch",)),
        )
        outputs = (inputs[0],)
        exact = ("timestep",)

        def forward(self, sample: Tensor, timestep: Tensor, count: Tensor) -> tuple[Tensor]:
            assert (sample.dtype, timestep.dtype, count.dtype) == (
                torch.float16, torch.float32, torch.int64,
            )  # fmt: skip
            return (sample,)

    network = TorchNetwork("timed", Timed(), CPU, torch.float16)
    assert [spec.dtype for spec in network.inputs] == [torch.float16, torch.float32, torch.int64]
    made = network({"sample": torch.ones(1), "timestep": torch.ones(1), "count": torch.ones(1)})
    assert made["sample"].dtype == torch.float32


def test_a_gpu_that_is_too_old_is_said_and_auto_goes_without(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_too_old() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90", "sm_75", "sm_100a", "compute_120"])
    with pytest.raises(
        EngineError, match=r"too old: it has compute capability 6\.1.* from 7\.5 on; use --eng"
    ):
        TorchEngine()
    assert engine_name("auto") != "torch"
    assert TorchEngine(device=torch.device("cpu")).device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (10, 0))
    assert gpu_too_old() is None
    assert engine_name("auto") == "torch"


class Refusing(Attending):
    """A network whose attention is switched after a trial, which fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def enable_xformers_memory_efficient_attention(self) -> None:
        self.switched = True
        raise self.error

    def disable_xformers_memory_efficient_attention(self) -> None:
        self.switched = False


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError(
            "No operator found for `memory_efficient_attention_forward`\nquery: shape=(1, 2)"
        ),
        ModuleNotFoundError("Refer to https://github.com/facebookresearch/xformers", name="xformers"),
        AttributeError("module 'xformers' has no attribute 'ops'"),
        ValueError("torch.cuda.is_available() should be True but is False."),
    ],
)
def test_an_xformers_that_does_not_work_is_said_and_left(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    installed = ModuleType("xformers")
    installed.__spec__ = object()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "xformers", installed)
    module = nn.Sequential(Refusing(error), Attending())
    assert not use_memory_efficient_attention(module)
    assert not any(part.switched for part in module)
    (message,) = caplog.messages
    assert message == f"xformers does not work here, torch's own attention does: {str(error).splitlines()[0]}"


def test_an_xformers_that_does_not_work_is_tried_once(
    toy: NetworkSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[nn.Module] = []
    monkeypatch.setattr(
        "toonstream.engines.torch.use_memory_efficient_attention", lambda module: bool(tried.append(module))
    )
    monkeypatch.setattr("toonstream.engines.torch.TorchNetwork", lambda *given, **named: None)
    engine = TorchEngine(device=torch.device("cuda"))
    engine.load(toy)
    engine.load(toy)
    assert len(tried) == 1


def test_a_network_that_cannot_be_built_without_the_extra_says_so(toy: NetworkSource) -> None:
    def build() -> nn.Module:
        raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")

    with pytest.raises(
        EngineError, match=r"toy in torch needs diffusers; run `pip install 'toonstream\[export"
    ):
        TorchEngine(device=CPU).load(replace(toy, build=build))
