"""Networks that are replaced while they run."""

import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from toonstream.engines.background import SwitchableEngine
from toonstream.engines.engine import Network, NetworkSource, TensorSpec
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.weights import read_weights, replace_weights
from toonstream.errors import EngineError
from toonstream.export.checkpoints import open_model, shipped_model

SPEC = TensorSpec(name="x", dtype=torch.float32, shape=("n",))


@dataclass(kw_only=True)
class Constant:
    """A network that gives its value, and counts its calls."""

    value: float
    calls: int = 0
    inputs: tuple[TensorSpec, ...] = (SPEC,)
    outputs: tuple[TensorSpec, ...] = (SPEC,)

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls += 1
        return {"x": torch.full_like(tensors["x"], self.value)}


@dataclass(kw_only=True)
class Constants:
    """An engine of them; loading waits for `allowed`, and fails where `fails` says so."""

    name: str
    value: float
    fails: str = ""
    allowed: threading.Event = field(default_factory=threading.Event)
    made: dict[str, Constant] = field(default_factory=dict)
    per_shape: bool = False

    def load(self, source: NetworkSource) -> Constant:
        self.allowed.wait()
        if source.name == self.fails:
            raise EngineError("no such luck")
        self.made[source.name] = Constant(value=self.value)
        return self.made[source.name]


def source(name: str) -> NetworkSource:
    return NetworkSource(name=name, onnx=None, build=torch.nn.Identity)


def constants(name: str, value: float, **more: str) -> Constants:
    made = Constants(name=name, value=value, **more)
    made.allowed.set()
    return made


def value(network: object) -> float:
    return float(network({"x": torch.zeros(2)})["x"][0])  # type: ignore[operator]


def test_the_old_network_serves_until_the_new_ones_are_ready_and_fades() -> None:
    engine = SwitchableEngine(constants("old", 0.0), blended_windows=3)
    one, two = engine.load(source("one")), engine.load(source("two"))
    assert (value(one), value(two)) == (0.0, 0.0)
    new = Constants(name="new", value=4.0)
    engine.replace(engine=new)
    for _ in range(3):  # nothing is ready
        engine.boundary()
        assert (value(one), value(two)) == (0.0, 0.0)
    new.allowed.set()
    engine.settle()
    assert (value(one), value(two)) == (0.0, 0.0)  # between boundaries nothing changes
    seen = []
    for _ in range(6):
        engine.boundary()
        seen.append((value(one), value(two)))
    assert seen == [(share, share) for share in (1.0, 2.0, 3.0, 4.0, 4.0, 4.0)]
    assert engine.name == "new"
    assert new.made["one"].calls == 1 + 6  # once to warm up, the rest since it began to take over
    engine.boundary()


def test_without_blending_it_switches_at_once() -> None:
    engine = SwitchableEngine(constants("old", 0.0), blended_windows=0)
    network = engine.load(source("one"))
    engine.replace(engine=constants("new", 1.0))
    engine.settle()
    assert value(network) == 0.0
    engine.boundary()
    assert value(network) == 1.0


def test_the_old_network_does_not_run_once_it_is_replaced() -> None:
    old = constants("old", 0.0)
    engine = SwitchableEngine(old, blended_windows=1)
    network = engine.load(source("one"))
    engine.replace(engine=constants("new", 1.0))
    engine.settle()
    engine.boundary()
    assert value(network) == 0.5
    engine.boundary()
    calls = old.made["one"].calls
    assert value(network) == 1.0
    assert old.made["one"].calls == calls


def test_what_fails_leaves_what_serves_and_is_said() -> None:
    said: list[str] = []
    engine = SwitchableEngine(constants("old", 0.0), blended_windows=0, say=said.append)
    one, two = engine.load(source("one")), engine.load(source("two"))
    engine.replace(engine=constants("bad", 9.0, fails="two"))
    engine.settle()
    engine.boundary()
    assert (value(one), value(two)) == (0.0, 0.0)
    assert said == ["the old networks go on: no such luck"]
    engine.replace(engine=constants("good", 1.0))  # and the next one has its chance
    engine.settle()
    engine.boundary()
    assert (value(one), value(two)) == (1.0, 1.0)
    assert said[-1] == "good takes over"


def test_replacements_take_over_one_after_the_other() -> None:
    engine = SwitchableEngine(constants("old", 0.0), blended_windows=1)
    network = engine.load(source("one"))
    engine.replace(engine=constants("second", 2.0))
    engine.replace(engine=constants("third", 4.0))
    engine.settle()
    seen = []
    for _ in range(5):
        engine.boundary()
        seen.append(value(network))
    assert seen == [1.0, 2.0, 3.0, 4.0, 4.0]


def test_a_successor_is_prepared_from_the_first_boundary_on() -> None:
    new = constants("new", 1.0)
    engine = SwitchableEngine(constants("old", 0.0), successor=new, blended_windows=0)
    network = engine.load(source("one"))
    assert not new.made
    engine.boundary()
    engine.settle()
    engine.boundary()
    assert value(network) == 1.0
    engine.close()


def test_what_is_to_take_over_is_held_against_what_serves_on_what_that_was_given() -> None:
    heard: list[tuple[str, float, float, float]] = []

    def judge(source: NetworkSource, serving: Network, coming: Network, given: Mapping[str, Tensor]) -> None:
        outcomes = (float(network(given)["x"][0]) for network in (serving, coming))
        heard.append((source.name, float(given["x"][0]), *outcomes))

    new = constants("new", 1.0)
    engine = SwitchableEngine(constants("old", 0.0), successor=new, judge=judge, blended_windows=0)
    one, two = engine.load(source("one")), engine.load(source("two"))
    engine.boundary()
    for network, number in ((one, 5.0), (one, 6.0), (two, 7.0)):
        network({"x": torch.full((2,), number)})
    engine.settle()
    assert value(one) == 0.0
    assert [name for name, *_ in heard] == ["one", "two"]
    assert heard[1] == ("two", 7.0, 0.0, 1.0)
    assert heard[0][1] in (5.0, 6.0)
    engine.boundary()
    assert (value(one), value(two)) == (1.0, 1.0)
    assert one.given is None  # nobody holds on to it any more
    engine.replace(sources={"one": source("one")})  # of the engine that serves now: no judge is asked
    engine.settle()
    assert len(heard) == 2


def test_what_the_judge_refuses_does_not_take_over_and_is_said_once() -> None:
    def judge(source: NetworkSource, *_: object) -> None:
        if source.name == "two":
            raise EngineError("two is off")

    said: list[str] = []
    new = constants("new", 1.0)
    engine = SwitchableEngine(constants("old", 0.0), successor=new, judge=judge, say=said.append)
    one, two = engine.load(source("one")), engine.load(source("two"))
    assert (value(one), value(two)) == (0.0, 0.0)
    engine.boundary()
    engine.settle()
    for _ in range(6):
        engine.boundary()
        assert (value(one), value(two)) == (0.0, 0.0)
    assert said == ["the old networks go on: two is off"]
    assert one.given is two.given is None
    assert engine.name == "old"


def test_whoever_closes_it_does_not_wait_for_networks_that_nobody_calls() -> None:
    said: list[str] = []
    engine = SwitchableEngine(
        constants("old", 0.0), successor=constants("new", 1.0), judge=lambda *_: None, say=said.append
    )
    network = engine.load(source("one"))
    engine.boundary()
    engine.close()
    assert value(network) == 0.0
    assert not said  # it has ended: nothing of it is news


def test_a_stream_that_ends_takes_what_is_under_way_along() -> None:
    """Also where nobody closes the engine: a thread in a library's code must not outlive the interpreter."""
    code = """
import threading
import torch
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.engine import NetworkSource

class Slow:
    name, per_shape = "slow", False
    def __init__(self, stops):
        self.stop = threading.Event()
        self.stops = stops
    def load(self, source):
        if self.stops:
            begun.set()
            self.stop.wait()
            print("given up", flush=True)
        return lambda tensors: tensors
    def close(self):
        self.stop.set()

begun = threading.Event()
engine = SwitchableEngine(Slow(False), successor=Slow(True))
network = engine.load(NetworkSource(name="one", onnx=None, build=torch.nn.Identity))
engine.boundary()
begun.wait()
"""
    command = [sys.executable, "-c", code]
    made = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (made.stdout, made.stderr, made.returncode) == ("given up\n", "", 0)


def test_a_second_form_of_a_network_runs_beside_and_another_engine_takes_over_from_both() -> None:
    engine = SwitchableEngine(constants("old", 0.0), blended_windows=1)
    network, form = engine.load(source("one")), engine.load(source("one"))
    engine.replace(sources={"one": source("one")})  # of the first
    engine.settle()
    engine.boundary()
    engine.boundary()
    new = Constants(name="new", value=4.0)
    engine.replace(engine=new)
    late = engine.load(source("one"))  # while the new one is being prepared, on the old one
    new.allowed.set()
    engine.settle()
    for _ in range(2):
        engine.boundary()
    assert [value(each) for each in (network, form, late)] == [4.0] * 3
    assert value(engine.load(source("one"))) == 4.0
    forgotten = weakref.ref(form)
    del form
    gc.collect()
    assert forgotten() is None
    engine.replace(engine=constants("newest", 8.0))
    engine.settle()
    for _ in range(2):
        engine.boundary()
    assert [value(each) for each in (network, late)] == [8.0] * 2


def test_a_network_that_is_not_running_cannot_be_replaced() -> None:
    engine = SwitchableEngine(constants("old", 0.0))
    engine.load(source("one"))
    with pytest.raises(EngineError, match="no network two is running"):
        engine.replace(sources={"two": source("two")})


def test_openvino_takes_over_from_onnx_runtime_and_styles_change_while_it_runs() -> None:
    model = open_model(shipped_model())
    decoder = model.sources["vae_decoder"]
    weights = read_weights(decoder)
    latents = {"latents": torch.randn((1, 32, 8, 8), generator=torch.Generator().manual_seed(0))}
    engine = SwitchableEngine(OnnxRuntimeEngine(), blended_windows=1)
    network = engine.load(decoder)

    def after_boundaries(count: int) -> Tensor:
        engine.settle()
        for _ in range(count):
            engine.boundary()
        return network(latents)["image"]

    first = network(latents)["image"]
    precise = OpenVinoEngine(precision="float32")
    engine.replace(engine=precise)
    blended = after_boundaries(1)
    taken = after_boundaries(1)
    assert torch.equal(taken, precise.load(decoder)(latents)["image"])
    torch.testing.assert_close(taken, first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(blended, (first + taken) / 2)

    style = replace_weights(decoder, {name: value * 0.9 for name, value in weights.items()})
    engine.replace(sources={"vae_decoder": style})
    other = after_boundaries(2)
    assert (other - taken).abs().max() > 0.01
    engine.replace(sources={"vae_decoder": decoder})
    assert torch.equal(after_boundaries(2), taken)  # A → B → A, bit for bit
    engine.close()


def test_it_says_what_new_shapes_cost_any_engine_that_may_serve() -> None:
    quick, slow = constants("quick", 0.0), constants("slow", 1.0)
    slow.per_shape = True
    assert not SwitchableEngine(quick).per_shape
    assert SwitchableEngine(quick, successor=slow).per_shape
    engine = SwitchableEngine(quick)
    engine.load(source("one"))
    engine.replace(engine=slow)
    assert engine.per_shape
    engine.settle()
