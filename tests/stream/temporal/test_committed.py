"""What has been given out is final: nothing that comes later changes it, in any mode, with any part."""

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from toonstream.config import RenderSettings
from toonstream.export.networks.base import spec
from toonstream.export.networks.reference import BIAS
from toonstream.stream.conditions import Conditioned
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.frame import Frame
from toonstream.stream.pipeline import Stylizing
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.stylizer import Stylizer, Toon
from toonstream.stream.temporal.fusion import make_fusion
from toonstream.stream.temporal.reference import FrameMemory, Remembering
from toonstream.stream.temporal.stages import in_stages

SIZE = (48, 64)  # height, width
PARTS = [
    {},
    {"shared_noise": 1.0, "fusion": 0.5},
    {"deflicker": "causal"},
    {"deflicker": "balanced", "deflicker_window": 2},
    {"deflicker": "accurate", "deflicker_window": 1, "skip": 2.0},
    {"keyframes": 3, "fusion": 1.0},
    {"remember": 2, "shared_noise": 1.0},
]


class Echo:
    """A network's place: what it gives follows from what it is given."""

    inputs = outputs = ()

    def __init__(self, function: Callable[..., Mapping[str, Tensor]]) -> None:
        self._function = function

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(self._function(**tensors))


class Attending:
    """A UNet's place: it mixes the frames of a window with one another, and with those it is told of."""

    inputs = (
        spec("sample", "sides", "frames", 4, "h", "w"),
        spec(BIAS, "sides", "remembered"),
        spec("remembered_0_at_1", "sides", "remembered", "h", "w", 4),
    )
    outputs = ()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sample = tensors["sample"]
        mixed = sample + sample.mean(1, keepdim=True) + tensors["residual"].reshape_as(sample)
        if BIAS in tensors:
            weight = torch.exp(tensors[BIAS])[..., None, None, None]
            told = (weight * tensors["remembered_0_at_1"]).sum(1, keepdim=True)
            mixed = mixed + told.permute(0, 1, 4, 2, 3)
        return {"output": torch.sin(mixed), "features_0_at_1": sample.permute(0, 1, 3, 4, 2)}


def stream(mode: str, steps: int, parts: Mapping[str, Any]) -> Stylizing:
    networks: dict[str, Any] = {
        "unet": Attending(),
        "hint_outline": Echo(lambda hint: {"embedding": F.avg_pool2d(hint, 8)}),
        "controlnet_outline": Echo(
            lambda sample, timestep, text, embedding: {"residual": sample + 3 * embedding[:, :1]}
        ),
    }
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
    window, stride = (4, 3) if mode == "anchored" else (4, 2)
    settings = RenderSettings(
        prompt="",
        negative_prompt="",
        steps=steps,
        window=window,
        stride=stride,
        guidance=1.0,
        seed=0,
        mode=mode,  # type: ignore[arg-type]
        **parts,
    )
    memory = None
    if settings.remember:
        remembering = Remembering(sink=1, recent=settings.remember)
        memory = FrameMemory(
            networks["unet"], remembering=remembering, steps=steps, sides=1, device=torch.device("cpu")
        )
    denoiser = Denoiser(
        networks,
        scheduler=make_scheduler(
            {**config, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
            kind="ddim",
            steps=steps,
        ),
        text=torch.zeros(1, 77, 4),
        negative_text=None,
        settings=DenoiseSettings(
            window=window,
            stride=stride,
            steps=steps,
            mode=settings.mode,
            shared_noise=settings.shared_noise,
            controlnet_scales={"outline": 1.0},
        ),
        latent_channels=4,
        reference=memory,
        fusion=make_fusion(settings.fusion, steps=steps, multiple=8),
    )
    decoder = Echo(lambda latents: {"image": F.interpolate(torch.tanh(latents[:, :3]), scale_factor=8)})
    return in_stages(Stylizer(denoiser, decoder), settings)  # type: ignore[arg-type]


def film(pictures: Iterable[NDArray[np.uint8]], scenes: Iterable[int]) -> list[Conditioned]:
    return [
        Conditioned(
            frame=Frame(index=index, pts=index, time_base=Fraction(1, 24), image=image),
            hints={"outline": torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255},
            scene=scene,
        )
        for index, (image, scene) in enumerate(zip(pictures, scenes, strict=True))
    ]


@pytest.mark.parametrize("parts", PARTS, ids=str)
@given(
    mode=st.sampled_from(["wavefront", "skewed", "anchored"]),
    steps=st.integers(1, 3),
    before=st.integers(1, 14),
    cut=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=8, deadline=None)
def test_a_committed_frame_never_changes(
    parts: Mapping[str, Any], mode: str, steps: int, before: int, cut: bool, seed: int
) -> None:
    nothing_changes(mode, steps, parts, before=before, after=12, cut=cut, seed=seed)


@pytest.mark.parametrize(
    "parts", [{"deflicker": "balanced", "deflicker_window": 1}, {"keyframes": 2}], ids=str
)
def test_nor_does_one_that_patchmatch_had_a_hand_in(parts: Mapping[str, Any]) -> None:
    nothing_changes("wavefront", 1, {**parts, "matcher": "patchmatch"}, before=7, after=4, cut=False, seed=0)


def nothing_changes(
    mode: str, steps: int, parts: Mapping[str, Any], *, before: int, after: int, cut: bool, seed: int
) -> None:
    random = np.random.default_rng(seed)
    pictures = [random.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(before + after)]
    others = pictures[:before] + [random.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(after // 2)]
    given_out: list[list[Toon]] = []
    early = []
    for shown, cut_at in ((pictures, before if cut else 99), (others, 99)):
        drawing, toons, then = stream(mode, steps, parts), [], []
        frames = film(shown, [int(index >= cut_at) for index in range(len(shown))])
        for frame in frames:
            if frame.frame.index == before:
                early.append(len(toons))
            toons_now = list(drawing.push(frame))
            toons += toons_now
            then += [toon.toon.image.copy() for toon in toons_now]
        rest = list(drawing.finish())
        assert [toon.toon.index for toon in toons + rest] == list(range(len(shown)))
        assert all(np.array_equal(toon.toon.image, image) for toon, image in zip(toons, then, strict=True))
        given_out.append(toons)
    assert early[0] == early[1]
    for one, other in zip(given_out[0][: early[0]], given_out[1][: early[0]], strict=True):
        assert np.array_equal(one.toon.image, other.toon.image)
