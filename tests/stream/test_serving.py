"""The engine of a stream, and another that takes over while it runs."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from toonstream.cli import main
from toonstream.config import Settings, Size
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.build import BuildJob, Built
from toonstream.engines.engine import Engine, Network, NetworkAround, NetworkSource, TensorSpec
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.select import engine_name
from toonstream.engines.store import EngineStore
from toonstream.engines.tensorrt.candidate import Candidate
from toonstream.engines.tensorrt.engine import TensorRtEngine
from toonstream.engines.tensorrt.flavour import Flavour
from toonstream.engines.weights import read_weights, replace_weights
from toonstream.errors import EngineError, SettingError
from toonstream.export.checkpoints import Model, open_model, shipped_model
from toonstream.export.tokenizer import PromptTokenizer
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditions
from toonstream.stream.frame import Frame
from toonstream.stream.live.controller import ladder
from toonstream.stream.live.core import LiveCore, LiveToon, wished
from toonstream.stream.live.inbox import Captured
from toonstream.stream.live.networks import SharedNetworks
from toonstream.stream.live.settings import LiveSettings, Plan
from toonstream.stream.opening import open_for
from toonstream.stream.serving import live_envelope, open_live_networks, open_stream_engine
from toonstream.stream.sizes import padded_size
from toonstream.stream.stylizer import load_stylizer

SIZE = (64, 48)
FRAMES = 12


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(shipped_model())


class Tinted(NetworkAround):
    """A network that says 1 % more than it should, so that who drew a frame can be told."""

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: 1.01 * made for name, made in self._network(tensors).items()}


class TintedEngine:
    """OpenVINO in float32, whose decoder tints."""

    def __init__(self) -> None:
        self._engine = OpenVinoEngine(precision="float32")
        self.name = self._engine.name
        self.per_shape = self._engine.per_shape

    def load(self, source: NetworkSource) -> Network:
        network = self._engine.load(source)
        return Tinted(network) if source.name == "vae_decoder" else network


def toons(
    model: Model, engine: Engine, *, settle_at: int | None = None, frames: int = FRAMES
) -> list[NDArray[np.uint8]]:
    """Stream a few frames; wait at one of them until what takes over is ready."""
    choices = Settings(window=2, stride=1).resolve(model.defaults)
    stylizer = load_stylizer(model, choices, engine=engine, stopwatch=Stopwatch())
    conditions = Conditions(model.defaults.controlnets, size=SIZE, multiple=model.size_multiple)
    made = []
    for index in range(frames):
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
    before, after = toons(model, OnnxRuntimeEngine()), toons(model, TintedEngine())
    said: list[str] = []
    engine = SwitchableEngine(
        OnnxRuntimeEngine(), successor=TintedEngine(), blended_windows=2, say=said.append
    )
    made = toons(model, engine, settle_at=4)
    assert len(made) == FRAMES
    assert said == ["openvino takes over"]
    # To rounding: what takes over compiles for shapes, so that batches are of one size from the start.
    assert all(difference(picture, old) < 0.01 for picture, old in zip(made[:2], before[:2], strict=True))
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU, as far as building is concerned; builds write a word, into the store that is given."""
    monkeypatch.setenv("TOONSTREAM_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))

    def build(job: BuildJob, output: Path, **options: object) -> Built:
        output.write_bytes(b"engine")
        return Built(seconds=0.0, peak_bytes=None)

    monkeypatch.setattr("toonstream.engines.tensorrt.engine.run_build", build)
    return tmp_path


def test_what_is_built_ahead_is_what_a_stream_of_the_same_settings_looks_for(model: Model, gpu: Path) -> None:
    def serves(words: str, prompt: str | None = None) -> str:
        pairs = words.replace("--", "").split()
        told = dict(zip(pairs[::2], pairs[1::2], strict=True))
        width, height = map(int, told.pop("size").split("x"))
        numbers = {name: int(value) for name, value in told.items()}
        choices = Settings(prompt=prompt, **numbers).resolve(model.defaults)  # type: ignore[arg-type]
        return open_stream_engine("tensorrt-rtx", model, choices, size=(width, height)).name

    for words in ("--size 250x140", "--size 256x144 --window 8 --stride 2 --steps 2"):
        assert serves(words) == "torch"
        assert main(["engines", "build", "toonlet", *words.split()]) == 0
        assert serves(words) == "tensorrt-rtx"
        assert serves(words, "a prompt of one's own") == "tensorrt-rtx"
        assert serves(words, "word " * 100) == "torch"  # of more chunks than it was built for
    assert serves("--size 250x140 --window 5") == "torch"


def test_what_is_built_ahead_for_live_streams_is_what_they_look_for(
    model: Model, gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Engine] = []

    def load(model: Model, engine: Engine, **options: object) -> None:
        opened.append(engine)
        raise EngineError("far enough")

    monkeypatch.setattr(SharedNetworks, "load", load)
    exact = LiveSettings(size=Size(exact=(320, 240)))
    for size, asked in (("", LiveSettings()), ("--size 320x240", exact)):
        for latency in (None, 0.4):
            with pytest.raises(EngineError, match="far enough"):
                open_live_networks("tensorrt-rtx", model, replace(asked, latency=latency))
        assert [engine.name for engine in opened] == ["torch"] * 2
        assert main(["engines", "build", "toonlet", "--live", *size.split()]) == 0
        opened.clear()
        with pytest.raises(EngineError, match="far enough"):
            open_live_networks("tensorrt-rtx", model, replace(asked, prompt="ink style, rain"))
        assert opened.pop().name == "tensorrt-rtx"


def test_engines_that_were_built_without_a_gpu_do_on_one_of_their_kind(
    model: Model, gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = Settings().resolve(model.defaults)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.cuda, "is_available", lambda: False)
        words = ["engines", "build", "toonlet", "--size", "64x64", "--compute-capability"]
        assert main([*words, "8.6"]) == 0
    assert open_stream_engine("tensorrt-rtx", model, choices, size=(64, 64)).name == "torch"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(torch.cuda, "is_available", lambda: False)
        assert main([*words, "8.9"]) == 0
    assert open_stream_engine("tensorrt-rtx", model, choices, size=(64, 64)).name == "tensorrt-rtx"


def test_a_lora_begins_on_engines_that_were_built_without_it(model: Model, gpu: Path) -> None:
    """Its weights go in by refit, as `engines build` makes engines for the GPU that is there."""
    assert main(["engines", "build", "toonlet", "--size", "64x64"]) == 0
    unet = model.sources["unet"]
    name, weight = next(iter(read_weights(unet).items()))
    changed = replace(model, sources={**model.sources, "unet": replace_weights(unet, {name: weight + 1})})
    engine = open_stream_engine("tensorrt-rtx", changed, Settings().resolve(model.defaults), size=(64, 64))
    assert engine.name == "tensorrt-rtx"


def test_while_one_network_is_not_built_torch_serves(model: Model, gpu: Path) -> None:
    assert main(["engines", "build", "toonlet", "--size", "64x64", "--networks", "unet"]) == 0
    engine = open_stream_engine("tensorrt-rtx", model, Settings().resolve(model.defaults), size=(64, 64))
    assert isinstance(engine, SwitchableEngine)


class OtherNetwork(NetworkAround):
    """A network that gives something else, as far as `change` goes."""

    def __init__(self, network: Network, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(network)
        self._change = change

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self._change(made) for name, made in self._network(tensors).items()}


@dataclass
class Card:
    """A GPU, as far as this goes: ONNX Runtime stands in for torch, and for TensorRT.

    Attributes:
        change: what TensorRT's decoder makes of its output.
        refuses: a network that TensorRT does not load.
        free: bytes of its memory.
        loaded: networks that TensorRT has loaded, in order.
        built: likewise for builds.
        said: what the user was told.
    """

    change: Callable[[Tensor], Tensor] = lambda made: 1.01 * made  # so that who drew a frame can be told
    refuses: str = ""
    free: int = 80 << 30
    loaded: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def open(self, model: Model) -> Engine:
        """As for `auto`."""
        self.loaded.clear()
        self.built.clear()
        self.said.clear()
        choices = Settings(window=2, stride=1).resolve(model.defaults)
        name = engine_name("auto")
        assert name == "torch+tensorrt-rtx"
        return open_stream_engine(name, model, choices, size=SIZE, say=self.said.append)

    def _load(self, runtime: object, source: NetworkSource, find: object) -> Network:
        assert callable(find)
        find(source)
        if source.name == self.refuses:
            raise EngineError(f"{source.name} does not load")
        self.loaded.append(source.name)
        network = OnnxRuntimeEngine().load(source)
        return OtherNetwork(network, self.change) if source.name == "vae_decoder" else network

    def _build(self, job: BuildJob, output: Path, **options: object) -> Built:
        self.built.append(job.label)
        output.write_bytes(b"engine")
        return Built(seconds=0.0, peak_bytes=None)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, gpu: Path) -> Card:
    made = Card()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (made.free, 80 << 30))
    monkeypatch.setattr("toonstream.engines.tensorrt.engine.run_build", made._build)
    monkeypatch.setattr(Flavour, "load", lambda flavour: None)
    monkeypatch.setattr(TensorRtEngine, "_load", made._load)

    def open_engine(name: str) -> Engine:
        assert name == "torch"
        return OnnxRuntimeEngine()

    monkeypatch.setattr("toonstream.stream.serving.open_engine", open_engine)
    return made


NETWORKS = 7  # that a stream of the shipped model runs
BUILDS = "tensorrt-rtx is built for this card in the background, once; torch draws meanwhile"


def test_what_was_not_asked_for_is_built_and_proved_behind_torch_and_loaded_at_once_from_then_on(
    model: Model, card: Card
) -> None:
    before = toons(model, OnnxRuntimeEngine())
    engine = card.open(model)
    assert engine.name == "onnxruntime"
    made = toons(model, engine, settle_at=4)
    assert card.said[0] == BUILDS
    assert card.said[1:-1] == [
        f"toonlet {name}: built in 0 s ({number + 1} of {NETWORKS})"
        for number, name in enumerate(card.loaded)
    ]
    assert card.said[-1] == "tensorrt-rtx takes over"
    assert len(card.built) == len(card.loaded) == NETWORKS
    assert engine.name == "tensorrt-rtx"
    assert difference(made[0], before[0]) < 0.01
    assert difference(made[-1], before[-1]) > 0.2
    again = card.open(model)
    assert (again.name, len(card.loaded), card.built, card.said) == ("tensorrt-rtx", NETWORKS, [], [])
    after = toons(model, again)
    assert len(card.loaded) == NETWORKS  # each once
    assert difference(after[0], before[0]) > 0.2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda made: 1.2 * made, r"its image is 2\.0e-01 off, and 0\.03 would do"),
        (lambda made: made / 0.0, "its image is not finite"),
    ],
)
def test_what_disagrees_does_not_take_over_and_is_not_asked_again(
    model: Model, card: Card, change: Callable[[Tensor], Tensor], reason: str
) -> None:
    card.change = change
    engine = card.open(model)
    made = toons(model, engine, settle_at=3, frames=5)
    reason = f"toonlet vae_decoder in tensorrt-rtx does not compute on this card what torch does: {reason}"
    (said,) = (line for line in card.said if "does not compute" in line)
    assert re.match(f"the old networks go on: {reason}; `toonstream engines prune --all` forgets", said)
    assert engine.name == "onnxruntime"
    for picture, old in zip(made, toons(model, OnnxRuntimeEngine(), frames=5), strict=True):
        assert difference(picture, old) < 0.01
    card.change = lambda made: made
    again = card.open(model)
    assert isinstance(again, OnnxRuntimeEngine)  # nothing is behind it
    (said,) = card.said
    assert re.match(f"torch draws: {reason}", said)
    assert not card.loaded
    assert main(["engines", "prune", "--all"]) == 0
    toons(model, card.open(model), settle_at=3, frames=5)
    assert card.said[-1] == "tensorrt-rtx takes over"


def test_another_card_is_asked_anew(model: Model, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    toons(model, card.open(model), settle_at=3, frames=5)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "another card of the same kind")
    engine = card.open(model)
    assert engine.name == "onnxruntime"
    toons(model, engine, settle_at=3, frames=5)
    assert card.said == ["tensorrt-rtx takes over"]  # nothing had to be built
    assert card.open(model).name == "tensorrt-rtx"


def test_what_does_not_load_leaves_torch_and_that_is_one_line(model: Model, card: Card) -> None:
    card.refuses = "vae_decoder"
    engine = card.open(model)
    toons(model, engine, settle_at=3, frames=5)
    assert card.said[-1] == "the old networks go on: vae_decoder does not load"
    assert engine.name == "onnxruntime"
    card.refuses = ""
    toons(model, card.open(model), settle_at=3, frames=5)
    assert card.said[-1] == "tensorrt-rtx takes over"
    card.refuses = "unet"  # after all that: a driver that is older, say
    engine = card.open(model)
    assert (engine.name, card.said) == ("onnxruntime", [])
    toons(model, engine, settle_at=3, frames=5)
    assert card.said == ["the old networks go on: unet does not load"]


def test_a_damaged_engine_is_built_again_behind_torch(model: Model, card: Card) -> None:
    toons(model, card.open(model), settle_at=3, frames=5)
    damaged = next(engine for engine in EngineStore().engines() if engine.label == "toonlet unet")
    damaged.path.write_bytes(b"ENGINE")
    engine = card.open(model)
    assert engine.name == "onnxruntime"
    toons(model, engine, settle_at=3, frames=5)
    assert card.built == ["toonlet unet"]
    assert "damaged; building it again" in card.said[0]
    assert card.said[-1] == "tensorrt-rtx takes over"


def test_where_memory_does_not_suffice_for_both_torch_goes_on(model: Model, card: Card) -> None:
    card.free = 1 << 30
    engine = card.open(model)
    toons(model, engine, settle_at=3, frames=5)
    assert re.match(
        "the old networks go on: .* not enough GPU memory for tensorrt-rtx beside torch; lower", card.said[-1]
    )
    assert not card.loaded


def test_live_streams_have_it_behind_torch_too(
    model: Model, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Engine] = []

    def load(model: Model, engine: Engine, **options: object) -> None:
        opened.append(engine)
        limits.append(options["limits"])
        raise EngineError("far enough")

    limits: list[object] = []
    monkeypatch.setattr(SharedNetworks, "load", load)
    for objection in (None, "it is off"):
        monkeypatch.setattr(Candidate, "objection", lambda candidate, said=objection: said)
        with pytest.raises(EngineError, match="far enough"):
            open_live_networks(engine_name("auto"), model, LiveSettings())
    assert isinstance(opened[0], SwitchableEngine)
    assert isinstance(opened[1], OnnxRuntimeEngine)
    assert limits[0] is not None
    assert limits[1] is None  # torch alone takes any shape


def test_modes_that_are_compared_stay_on_the_engine_that_they_begin_on(card: Card) -> None:
    both = [Settings(), Settings(deflicker="balanced")]
    assert open_for(both).engine == "torch"
    assert open_for(both[:1]).engine == "torch+tensorrt-rtx"


def test_a_model_without_onnx_files_of_ones_own_is_drawn_by_torch(model: Model, card: Card) -> None:
    """Nothing is exported into a folder that is not ours."""
    bare = replace(
        model, sources={name: replace(source, onnx=None) for name, source in model.sources.items()}
    )
    engine = card.open(bare)
    assert isinstance(engine, SwitchableEngine)
    with pytest.raises(EngineError, match="has no ONNX file; write it with `toonstream export MODEL`"):
        engine._successor.load(bare.sources["unet"])  # type: ignore[union-attr]


class Uncalled:
    """In a network's place."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()

    def __call__(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        raise NotImplementedError


@given(
    source=st.one_of(
        st.sampled_from([(640, 480), (1280, 720), (480, 640), (720, 1280), (200, 130), (320, 240)]),
        st.tuples(st.integers(64, 2000), st.integers(64, 2000)),
    ),
    window=st.integers(1, 32),
    steps=st.integers(1, 3),
    short=st.sampled_from([128, 256, 384, 512]),
    seen=st.sampled_from(["unet", "vae_decoder", "controlnet_outline", "hint_colour"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_controller_of_a_live_stream_chooses_lies_within_what_was_planned(
    model: Model, source: tuple[int, int], window: int, steps: int, short: int, seen: str
) -> None:
    asked = LiveSettings(size=Size(short=short, cap=True), window=window, steps=steps)
    envelope = live_envelope(model, asked)
    networks = {"unet": Uncalled(), "text_encoder": Uncalled()}
    shared = SharedNetworks(model, networks, PromptTokenizer(model.tokenizer_path), limits=envelope)
    wanted = asked.size.of(*source)
    wish = wished(asked.resolve(model.defaults), shared.fitted(wanted))
    assert wish.size[0] <= wanted[0]
    assert wish.size[1] <= wanted[1]
    least = min(wish.size)  # a pixel more or less of it is no other shape
    assert abs(wish.size[0] * wanted[1] / (wish.size[1] * wanted[0]) - 1) <= 1.5 / least
    sides = {axis: envelope.axes(seen)[axis] for axis in ("w", "h", "frames", "batch")}
    for plan in ladder(wish, multiple=model.size_multiple):
        size = padded_size(plan.size, model.size_multiple)
        assert envelope.covers(size=size, window=plan.window)
        for axis, length in (("w", size[0] // 8), ("h", size[1] // 8), ("frames", plan.window)):
            assert sides[axis].min[0] <= length <= sides[axis].max[0]
        if seen == "controlnet_outline":
            assert max(plan.window, plan.stride) <= sides["batch"].max[0]
    for tile in (48, 60):  # of a large frame
        height = envelope.axes("vae_decoder")["h"]
        assert height.min[0] <= min(tile, size[1] // 8)


def test_a_window_that_the_motion_modules_do_not_know_is_refused(model: Model) -> None:
    shorter = replace(model, longest_window=24)
    choices = Settings(window=25).resolve(model.defaults)
    with pytest.raises(
        SettingError, match="window 25: the motion modules of toonlet know 24 frames"
    ) as error:
        open_stream_engine("onnxruntime", shorter, choices, size=SIZE)
    assert "\n" not in str(error.value)
    with pytest.raises(SettingError, match="know 24 frames"):
        open_live_networks("onnxruntime", shorter, LiveSettings(window=32))
    assert model.longest_window == 32
    replace(model, longest_window=None).require_window(32)


def test_live_streams_may_begin_with_a_prompt_of_any_length(model: Model) -> None:
    asked = LiveSettings(prompt="rain on a street at night, " * 20, size=Size(exact=SIZE))
    assert live_envelope(model, asked).chunks == 3
    shared = open_live_networks("onnxruntime", model, asked)
    plan = Plan(size=SIZE, steps=1, window=4, stride=3)
    shared.prepare(plan)
    words = shared.words(shared.check(asked))
    assert words.text.shape[1] == 3 * 77
    assert words.text.shape == shared.words(shared.check(LiveSettings(prompt="rain"))).text.shape


def test_live_streams_go_over_to_an_engine_that_was_built_meanwhile(model: Model) -> None:
    """Torch is stood in for by ONNX Runtime, and TensorRT by OpenVINO."""
    said: list[str] = []
    engine = SwitchableEngine(
        OnnxRuntimeEngine(), successor=TintedEngine(), blended_windows=1, say=said.append
    )
    shared = SharedNetworks.load(model, engine)
    asked = LiveSettings(size=Size(exact=(64, 32)), window=2, stride=1, steps=1)

    def drawn(shared: SharedNetworks, settle_at: int | None = None) -> list[NDArray[np.uint8]]:
        made: list[LiveToon] = []
        core = LiveCore(shared, asked, deliver=made.append, clock=lambda: 0.0)
        for index in range(10):
            if index == settle_at:
                engine.settle()
            image = np.full((32, 64, 3), 60 + 10 * index, np.uint8)
            frame = Frame(index=0, pts=index, time_base=Fraction(1, 24), image=image)
            core.take(Captured(frame=frame, at=0.0))
        core.finish()
        return [toon.toon.image for toon in made]

    before = drawn(SharedNetworks.load(model, OnnxRuntimeEngine()))
    after = drawn(SharedNetworks.load(model, TintedEngine()))
    made = drawn(shared, settle_at=4)
    assert said == ["openvino takes over"]
    assert len(made) == len(before)
    assert np.array_equal(made[0], before[0])
    assert difference(made[-1], after[-1]) < difference(made[-1], before[-1])
    assert engine.name == "openvino"
    shared.close()
