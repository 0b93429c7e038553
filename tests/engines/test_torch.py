"""What the torch engine does on a GPU, as far as a CPU can tell."""

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from toonstream.engines.engine import NetworkSource
from toonstream.engines.memory import gpu_too_old, out_of_memory
from toonstream.engines.replay import Buffered, Step
from toonstream.engines.select import engine_name
from toonstream.engines.torch import TorchEngine, use_memory_efficient_attention
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


def test_calls_go_through_buffers_that_are_recorded_once_a_shape(toy: NetworkSource) -> None:
    module = toy.build()
    recorded: list[Step] = []
    buffers: list[Tensor] = []

    def prepare(given: object) -> Step:
        buffers.append(given["image"])  # type: ignore[index]
        return lambda: dict(zip(("blurred", "total"), module(*given.values()), strict=True))  # type: ignore[attr-defined]

    def record(step: Step) -> Step:
        recorded.append(step)
        return step

    run = Buffered(module.inputs, device=CPU, prepare=prepare, record=record)
    direct = TorchEngine(device=CPU).load(toy)
    with torch.no_grad():
        for batch in (1, 2, 1, 2):
            given = {"image": torch.randn(batch, 3, 6, 6), "count": torch.arange(batch)}
            for name, tensor in run(given).items():
                torch.testing.assert_close(tensor, direct(given)[name])
    assert len(recorded) == len(buffers) == 2
    assert buffers[0].data_ptr() != buffers[1].data_ptr()


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
