"""Tensors that wait: nothing is copied on a CPU, and the order of things on a GPU, with stand-ins."""

from contextlib import nullcontext

import pytest
import torch

from toonstream.engines.parking import HostMemory


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.ones(3)
    parked = HostMemory(torch.device("cpu")).park(tensor)
    parked.bring()
    assert parked.take() is tensor
    assert parked.take() is tensor


class Stream:
    """Notes what waits for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        self.log.append("event")
        return f"an event of {self.name}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")


def test_on_a_gpu_copies_have_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    copies, computing = Stream("copies", log), Stream("computing", log)
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: computing)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: log.append(f"on {stream.name}") or nullcontext())
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, pin_memory: empty(shape, dtype=dtype))
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: log.append(f"held for {stream.name}")
    )
    tensor = torch.arange(4.0)
    parked = HostMemory(torch.device("cuda")).park(tensor)
    assert log == ["copies waits for computing", "on copies", "held for copies"]
    log.clear()
    parked.bring()
    parked.bring()  # is under way
    assert log == ["on copies", "event"]
    assert torch.equal(parked.take(), tensor)
    # Not for the whole stream: what is brought for later is behind it.
    assert log == ["on copies", "event", "computing waits for an event of copies", "held for computing"]
    log.clear()
    assert torch.equal(parked.take(), tensor)  # without having been asked for
    assert log == ["on copies", "event", "computing waits for an event of copies", "held for computing"]


def test_what_cannot_be_pinned_waits_as_it_is_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    streams = Stream("copies", []), Stream("computing", [])
    tried: list[bool] = []
    empty = torch.empty

    def refuse(shape: torch.Size, dtype: torch.dtype, pin_memory: bool = False) -> torch.Tensor:
        tried.append(pin_memory)
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later")
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: streams[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[1])
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    host = HostMemory(torch.device("cuda"))
    for value in (1.0, 2.0):
        tensor = torch.full((4,), value)
        assert torch.equal(host.park(tensor).take(), tensor)
    assert tried == [True, False, False]
    (message,) = caplog.messages
    assert "(CUDA error: out of memory): lower --size" in message
