"""What an engine is told it will be called with, against what the stream does call it with."""

from collections import defaultdict
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toonstream.config import Mode
from toonstream.engines.engine import TensorSpec
from toonstream.errors import ModelError, SettingError
from toonstream.export.checkpoints import shipped_model
from toonstream.export.networks.base import spec
from toonstream.export.shapes import Envelope, Triple, declared_inputs
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.schedulers import make_scheduler

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timestep_spacing": "trailing"}
INPUTS = {
    "unet": (spec("sample", "batch", "frames", 4, "h", "w"), spec("text", "batch", "tokens", 8)),
    "controlnet_x": (spec("sample", "batch", 4, "h", "w"), spec("embedding", "batch", 1, "h", "w")),
    "hint_x": (spec("hint", "batch", 3, "8h", "8w"),),
}


class Recorder:
    """A network that remembers the shapes it was called with."""

    outputs: tuple[TensorSpec, ...] = ()

    def __init__(self, name: str, seen: dict[tuple[str, str], list[tuple[int, ...]]]) -> None:
        self.name, self.inputs, self.seen = name, INPUTS[name], seen

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for tensor in self.inputs:
            self.seen[self.name, tensor.name].append(tuple(tensors[tensor.name].shape))
        if self.name == "unet":
            return {"output": tensors["sample"].clone()}
        first = tensors[self.inputs[0].name]
        size = first.shape[-2] // 8, first.shape[-1] // 8
        made = {"embedding": first.new_zeros(len(first), 1, *size)}
        return made if self.name == "hint_x" else {"residual_mid": tensors["embedding"].clone()}


@given(
    window=st.integers(1, 7),
    data=st.data(),
    steps=st.integers(1, 4),
    guidance=st.sampled_from([1.0, 2.0]),
    mode=st.sampled_from(get_args(Mode)),
    frames=st.integers(1, 25),
)
@settings(max_examples=40, deadline=None)
def test_the_stream_stays_within_the_envelope(
    window: int, data: st.DataObject, steps: int, guidance: float, mode: Mode, frames: int
) -> None:
    stride = data.draw(st.integers(1, window))
    sides = 1 if guidance == 1.0 else 2
    seen: dict[tuple[str, str], list[tuple[int, ...]]] = defaultdict(list)
    options = DenoiseSettings(
        window=window,
        stride=stride,
        steps=steps,
        guidance=guidance,
        mode=mode,
        controlnet_scales={"x": 1.0},
    )
    denoiser = Denoiser(
        {name: Recorder(name, seen) for name in INPUTS},
        scheduler=make_scheduler(CONFIG, kind="ddim", steps=steps),
        text=torch.zeros(1, 77, 8),
        negative_text=torch.zeros(1, 77, 8),
        settings=options,
        latent_channels=4,
    )
    for _ in range(frames):
        denoiser.push({"x": torch.zeros(3, 16, 24)})
    denoiser.finish()
    envelope = Envelope(
        size=(24, 16), window=window, stride=stride, sides=sides, steps=steps, skewed=mode == "skewed"
    )
    for name, inputs in INPUTS.items():
        for tensor, triple in envelope.triples(name, inputs).items():
            for shape in seen[name, tensor]:
                bounds = zip(triple.min, shape, triple.max, strict=True)
                assert all(low <= length <= high for low, length, high in bounds), (
                    name,
                    tensor,
                    shape,
                    triple,
                )
            if frames > 3 * steps * window:  # long enough to have settled
                assert triple.opt in seen[name, tensor]


def test_triples_of_the_shipped_model() -> None:
    envelope = Envelope(
        size=(512, 384),
        smallest=(256, 256),
        largest=(768, 768),
        window=4,
        stride=2,
        sides=2,
        chunks=3,
        batch=2,
    )
    folder = shipped_model()
    unet = envelope.triples("unet", declared_inputs(folder / "unet" / "model.onnx"))
    channels = unet["sample"].opt[2]
    assert unet["sample"] == Triple(
        (2, 1, channels, 32, 32), (2, 4, channels, 48, 64), (2, 4, channels, 96, 96)
    )
    assert unet["timestep"] == Triple((2,), (2,), (2,))
    assert unet["residual_3"].opt[-2:] == (24, 32)
    controlnet = envelope.triples(
        "controlnet_outline", declared_inputs(folder / "controlnet_outline" / "model.onnx")
    )
    assert [shape[0] for shape in controlnet["sample"]] == [2, 4, 8]
    hint = envelope.triples("hint_outline", declared_inputs(folder / "controlnet_outline" / "hint.onnx"))
    assert hint["hint"] == Triple((1, 3, 256, 256), (1, 3, 384, 512), (2, 3, 768, 768))
    text = envelope.triples("text_encoder", declared_inputs(folder / "text_encoder" / "model.onnx"))
    assert text["input_ids"] == Triple((1, 77), (1, 77), (6, 77))
    assert envelope.axes("unet")["tokens"] == Triple((77,), (77,), (231,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (500, 512)},
        {"smallest": (768, 256)},
        {"largest": (256, 1024)},
        {"stride": 9},
        {"sides": 3},
        {"steps": 0},
    ],
)
def test_envelopes_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    good: dict[str, object] = {"size": (512, 512), "window": 8, "stride": 4}
    with pytest.raises(SettingError):
        Envelope(**{**good, **wrong})  # type: ignore[arg-type]


def test_what_cannot_be_read_or_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="export the model again"):
        declared_inputs(tmp_path / "nowhere.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="export the model again"):
        declared_inputs(tmp_path / "bad.onnx")
    envelope = Envelope(size=(64, 64), window=2, stride=1)
    with pytest.raises(ModelError, match="export it again"):
        envelope.triples("unet", [spec("sample", "strange", 4)])
