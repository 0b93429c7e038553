"""What is to take over from torch: how it is built where weights were put in, and what it has proved."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from toonstream.engines.build import BuildJob, Built
from toonstream.engines.engine import Network, NetworkSource, TensorSpec
from toonstream.engines.shapes import Triple
from toonstream.engines.store import EngineStore
from toonstream.engines.tensorrt.candidate import Candidate
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.engines.weights import read_weights, replace_weights
from toonstream.errors import EngineError
from toonstream.export.checkpoints import open_model, shipped_model

SHAPES = {"latents": Triple((1, 32, 8, 8), (1, 32, 8, 8), (1, 32, 8, 8))}


class Constant:
    """A network that gives a number."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, value: float) -> None:
        self.value = value
        self.calls = 0

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        return {"image": torch.full((2,), self.value)}


@pytest.fixture
def plain() -> NetworkSource:
    return open_model(shipped_model()).sources["vae_decoder"]


@pytest.fixture
def changed(plain: NetworkSource) -> NetworkSource:
    """With a LoRA, so to speak."""
    name, weight = next(iter(read_weights(plain).items()))
    return replace_weights(plain, {name: weight + 1})


Make = Callable[..., Candidate]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    def build(job: BuildJob, output: Path, **_: object) -> Built:
        output.write_bytes(b"engine")
        return Built(seconds=0.0, peak_bytes=None)

    def load(
        engine: TensorRtEngine,
        runtime: object,
        source: NetworkSource,
        find: Callable[[NetworkSource], object],
    ) -> Network:
        find(replace(source, weights={}))
        return Constant(1.0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr("toonstream.engines.tensorrt.engine.run_build", build)
    monkeypatch.setattr(TensorRtEngine, "_load", load)

    def made(*sources: NetworkSource, **options: object) -> Candidate:
        engine = TensorRtEngine(
            "tensorrt-rtx", shapes=lambda source: SHAPES, store=EngineStore(tmp_path), model="toonlet"
        )
        return Candidate(engine, sources, free=lambda: 8 << 30, **options)  # type: ignore[arg-type]

    return made


def test_weights_that_were_put_in_are_no_build_of_their_own_and_prove_themselves(
    make: Make, plain: NetworkSource, changed: NetworkSource, tmp_path: Path
) -> None:
    candidate = make(changed)
    network = candidate.load(changed)
    (stored,) = EngineStore(tmp_path).engines()
    assert stored.key["weights"] == ""  # they go in by refit
    candidate.judge(changed, Constant(1.01), network, {})
    assert make(changed).load_proved()
    assert not make(plain).load_proved()  # which has shown nothing
    assert make(plain).objection() is None
    with pytest.raises(EngineError, match="toonlet vae_decoder in tensorrt-rtx does not compute"):
        make(plain).judge(plain, Constant(2.0), network, {})
    assert "its image is 5.0e-01 off" in (make(plain).objection() or "")
    assert make(changed).objection() is None


def test_it_is_asked_once(make: Make, plain: NetworkSource) -> None:
    candidate, serving = make(plain), Constant(1.0)
    network = candidate.load(plain)
    for _ in range(2):
        candidate.judge(plain, serving, network, {})
    assert serving.calls == 1


def test_what_cannot_be_compared_is_asked_again(make: Make, plain: NetworkSource) -> None:
    candidate = make(plain)
    network = candidate.load(plain)
    with pytest.raises(EngineError, match="nothing to compare with"):
        candidate.judge(plain, Constant(float("nan")), network, {})
    assert candidate.objection() is None
    assert not candidate.load_proved()
    candidate.judge(plain, Constant(1.0), network, {})
    assert candidate.load_proved()


def test_what_is_missing_is_exported_and_given_up_when_it_closes(make: Make, plain: NetworkSource) -> None:
    bare = replace(plain, onnx=None)
    stops: list[bool] = []

    def export(source: NetworkSource, stop: threading.Event) -> NetworkSource:
        stops.append(stop.is_set())
        return replace(source, onnx=plain.onnx)

    candidate = make(bare, export=export)
    assert candidate.objection() is None
    assert not candidate.load_proved()
    candidate.load(bare)
    candidate.close()
    candidate.load(bare)
    assert stops == [False, True]
