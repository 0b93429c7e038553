"""LoRAs that come and go while a stream runs: faded in, without a gap, and gone without a trace."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from toonstream.config import LoraChoice, Size
from toonstream.engines.background import SwitchableEngine
from toonstream.engines.engine import Engine
from toonstream.engines.onnxruntime import OnnxRuntimeEngine
from toonstream.engines.openvino import OpenVinoEngine
from toonstream.engines.torch import TorchEngine
from toonstream.errors import InputError, SettingError
from toonstream.export.checkpoints import open_model, shipped_model
from toonstream.export.reference import with_reference
from toonstream.stream.frame import Frame
from toonstream.stream.live.core import LiveCore, LiveToon
from toonstream.stream.live.fading import Fade
from toonstream.stream.live.inbox import Captured
from toonstream.stream.live.networks import SharedNetworks
from toonstream.stream.live.settings import LiveSettings
from toonstream.stream.live.statistics import Event
from toonstream.stream.temporal.attending import Attending

SIZE = (64, 32)
PLAIN = LiveSettings(size=Size(exact=SIZE), window=2, stride=1, steps=1, blend=2, deflicker="off")
ENGINES = {
    "openvino": lambda: OpenVinoEngine(precision="float32"),
    "onnxruntime": OnnxRuntimeEngine,
    "torch": lambda: TorchEngine(device=torch.device("cpu")),
    "switchable": lambda: SwitchableEngine(OnnxRuntimeEngine()),
}


def with_lora(weight: float, name: str = "ink") -> LiveSettings:
    return replace(PLAIN, loras=(LoraChoice(file=name, weight=weight),))


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for the UNet and the text encoder, and one that turns out damaged."""
    model, folder = open_model(shipped_model()), tmp_path_factory.mktemp("loras")
    torch.manual_seed(0)
    state = {}
    for network, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        for name, value in load_file(model.path / network / f"{file}.safetensors").items():
            layer = name.removeprefix("text_model.").removesuffix(".weight")
            if layer.endswith((".to_v", ".to_out.0", ".v_proj")) and value.ndim == 2:
                inside = "text_model." if network == "text_encoder" else ""
                state[f"{network}.{inside}{layer}.lora_A.weight"] = torch.randn(2, value.shape[1]) / 3
                state[f"{network}.{inside}{layer}.lora_B.weight"] = torch.randn(value.shape[0], 2) / 3
    save_file(state, folder / "ink.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"damaged")
    return {name: folder / f"{name}.safetensors" for name in ("ink", "damaged")}


class Stream:
    """A live core, and the test as its worker."""

    def __init__(self, shared: SharedNetworks, settings: LiveSettings = PLAIN) -> None:
        self.shared = shared
        self.toons: list[LiveToon] = []
        self.events: list[Event] = []
        self.now = 0.0
        self.core = LiveCore(
            shared, settings, deliver=self.toons.append, clock=lambda: self.now, notify=self.events.append
        )

    def play(self, frames: int) -> None:
        for _ in range(frames):
            index = round(self.now * 30)
            level = np.linspace(40, 160, SIZE[0], dtype=np.uint8) + 8 * (index % 12)
            image = np.broadcast_to(level[None, :, None], (SIZE[1], SIZE[0], 3)).astype(np.uint8)
            frame = Frame(index=0, pts=index, time_base=Fraction(1, 30), image=image)
            self.core.take(Captured(frame=frame, at=self.now))
            self.now += 1 / 30

    def settle(self) -> None:
        """Wait for what is made ready on the other thread."""
        self.shared._preparer.submit(int).result()

    @property
    def pictures(self) -> list[NDArray[np.uint8]]:
        return [toon.toon.image for toon in self.toons]


def share(engine: Engine, loras: dict[str, Path]) -> SharedNetworks:
    return SharedNetworks.load(open_model(shipped_model()), engine, loras=loras)


@pytest.fixture(scope="module")
def shared(loras: dict[str, Path]) -> Iterator[SharedNetworks]:
    """On ONNX Runtime."""
    networks = share(OnnxRuntimeEngine(), loras)
    yield networks
    networks.close()


@pytest.mark.filterwarnings("ignore::UserWarning")  # diffusers on its own configuration
@pytest.mark.parametrize("name", ENGINES)
def test_there_and_back_again_is_the_same_bit_for_bit_and_nothing_is_missing(
    name: str, loras: dict[str, Path]
) -> None:
    shared = share(ENGINES[name](), loras)
    plain, changed = Stream(shared), Stream(shared)
    plain.play(16)
    changed.play(3)
    changed.core.change(with_lora(0.8))
    changed.play(1)  # what is drawn goes on while it is made ready
    changed.settle()
    changed.play(4)
    changed.core.change(PLAIN)
    changed.play(8)
    shared.close()
    assert [toon.toon.index for toon in changed.toons] == [toon.toon.index for toon in plain.toons]
    same = [np.array_equal(*pair) for pair in zip(plain.pictures, changed.pictures, strict=True)]
    assert all(same[:3])
    assert not any(same[6:8])
    assert all(same[-3:])
    assert [event.message for event in changed.events if event.kind == "loras"] == [
        "goes over to ink at 0.8 within 2 windows",
        "goes over to no LoRA within 2 windows",
    ]


@pytest.mark.filterwarnings("ignore::UserWarning")  # diffusers on its own configuration
def test_a_unet_that_attends_to_the_past_takes_them_too(loras: dict[str, Path]) -> None:
    model = with_reference(open_model(shipped_model()), engine="torch")
    engine = TorchEngine(device=torch.device("cpu"))
    shared = SharedNetworks.load(model, engine, loras=loras, attending=Attending(remember=1))
    assert any(each.name.startswith("remembered") for each in shared.plain.unet.inputs)
    stream = Stream(shared)
    stream.play(4)
    stream.core.change(with_lora(0.8))
    stream.play(1)
    stream.settle()
    stream.play(4)
    variant = shared.variant(with_lora(0.8).loras)
    shared.close()
    assert variant is not None
    assert [each.name for each in variant.unet.inputs] == [each.name for each in shared.plain.unet.inputs]
    assert [event.kind for event in stream.events if event.kind in ("loras", "refused")] == ["loras"]
    plain = Stream(shared)
    plain.play(9)
    assert not np.array_equal(stream.pictures[-1], plain.pictures[-1])


def test_one_viewers_loras_are_not_anothers(shared: SharedNetworks) -> None:
    alone, mine, theirs = Stream(shared), Stream(shared), Stream(shared)
    alone.play(10)
    theirs.core.change(with_lora(1.0))
    for _ in range(5):
        mine.play(2)
        theirs.play(2)
        theirs.settle()
    assert all(np.array_equal(*pair) for pair in zip(mine.pictures, alone.pictures, strict=True))
    assert not np.array_equal(theirs.pictures[-1], alone.pictures[-1])


def test_it_fades_in_between_the_old_and_the_new(shared: SharedNetworks) -> None:
    old, new, fading = Stream(shared), Stream(shared), Stream(shared)
    assert shared.variant(with_lora(0.9).resolve(shared.model.defaults).loras) is None
    new.settle()
    old.play(12)
    new.core.change(with_lora(0.9))
    new.play(12)
    fading.play(5)
    fading.core.change(with_lora(0.9))
    fading.play(7)

    def distance(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
        return float(np.abs(one.astype(float) - other.astype(float)).mean())

    shares = [
        distance(picture, before) / max(distance(before, after), 1e-9)
        for before, after, picture in zip(old.pictures, new.pictures, fading.pictures, strict=True)
    ][3:]
    assert shares[0] == 0.0
    assert np.array_equal(fading.pictures[-1], new.pictures[-1])
    assert any(0.1 < share < 0.9 for share in shares)


def test_a_damaged_one_leaves_the_stream_as_it_was_and_is_said_once(shared: SharedNetworks) -> None:
    plain, stream = Stream(shared), Stream(shared)
    plain.play(12)
    stream.core.change(with_lora(1.0, "damaged"))
    for _ in range(6):
        stream.play(2)
        stream.settle()
    assert all(np.array_equal(*pair) for pair in zip(stream.pictures, plain.pictures, strict=True))
    (said,) = (event.message for event in stream.events if event.kind == "refused")
    assert said.startswith("the LoRAs stay as they were: ")
    assert "damaged.safetensors is not readable" in said


def test_what_is_not_offered_is_refused(shared: SharedNetworks, loras: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="there is no LoRA 'inc' here; did you mean ink"):
        shared.check(with_lora(1.0, "inc"))
    for name in ("../ink", str(loras["ink"]), ""):
        with pytest.raises(InputError, match="there is no LoRA"):
            shared.check(with_lora(1.0, name))
    with pytest.raises(SettingError, match="name each one once"):
        LiveSettings(loras=(LoraChoice(file="ink"), LoraChoice(file="ink", weight=0.5)))
    with pytest.raises(SettingError, match="take -10 to 10"):
        with_lora(float("nan"))


def test_of_many_that_were_tried_a_few_are_kept(
    shared: SharedNetworks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_load", lambda source: shared._networks[source.name])
    tried = [(LoraChoice(file="ink", weight=percent / 100),) for percent in range(1, 8)]
    for loras in tried:
        assert shared.variant(loras) is None
        shared._preparer.submit(int).result()
    assert len(shared._variants) == 4
    kept = shared.variant(tried[-1])
    assert kept is not None
    assert kept.loras == tried[-1]
    assert shared.variant(tried[0]) is None  # and is made again
    shared._preparer.submit(int).result()


@given(st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=40))
def test_a_fade_is_even_and_ends(orders: list[int | None]) -> None:
    fade: Fade[int] = Fade(0)
    number, before = 0, 0.0
    for windows in orders:
        if windows is not None and fade.settled:
            number += 1
            fade.begin(number, windows=windows)
            before = 0.0
        else:
            fade.step()
        if fade.settled:
            assert fade.now == fade.target == number
        else:
            assert (fade.now, fade.target) == (number - 1, number)
            assert before < fade.share < 1.0
            before = fade.share
    for _ in range(5):
        fade.step()
    assert fade.settled
