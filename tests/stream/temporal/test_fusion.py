"""Fused frames agree where they show the same, and are left alone where nothing is known."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from toonstream.config import Settings
from toonstream.engines.torch import TorchEngine
from toonstream.errors import SettingError
from toonstream.export.checkpoints import Defaults, open_model, shipped_model
from toonstream.stream.clock import Stopwatch
from toonstream.stream.conditions import Conditions
from toonstream.stream.denoise import Denoiser, DenoiseSettings
from toonstream.stream.frame import Frame
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.stylizer import load_stylizer
from toonstream.stream.temporal.correspondence import Correspondences
from toonstream.stream.temporal.fusion import SynchronizedFusion, make_fusion
from toonstream.stream.temporal.measure import Meter, Survey

Image = NDArray[np.uint8]
SHAPE = (4, 12, 16)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int, width: int = 128) -> Image:
    noise = np.random.default_rng(seed).uniform(0, 255, (24, width // 4, 3))
    return np.asarray(cv2.resize(noise, (width, 96), interpolation=cv2.INTER_CUBIC).clip(0, 255), np.uint8)


def panning(count: int, step: int) -> list[Image]:
    wide = picture(1, 128 + 16 * count)
    return [np.ascontiguousarray(wide[:, index * step :][:, :128]) for index in range(count)]


def fusion(strength: float = 1.0, *, steps: int = 1, seed: int = 0) -> SynchronizedFusion:
    return SynchronizedFusion(Correspondences(multiple=8), strength=strength, steps=steps, seed=seed)


def stream(
    fusing: SynchronizedFusion, images: Sequence[Image], x0: Tensor, *, steps: int = 1, group: int = 3
) -> Tensor:
    """All frames through all steps, a group at a time; every step is given the same x0."""
    out = []
    for begin in range(0, len(images), group):
        indices = range(begin, min(begin + group, len(images)))
        for index in indices:
            fusing.arrive(index, images[index])
        for step in range(steps):
            fused = fusing.fuse(indices, step, x0[indices.start : indices.stop])
        out.append(fused)
    return torch.cat(out)


@given(steps=st.integers(1, 4), group=st.integers(1, 5))
@settings(deadline=None, max_examples=10)
def test_without_strength_nothing_is_touched_or_looked_at(steps: int, group: int) -> None:
    plain = fusion(0.0, steps=steps)
    x0 = random(group, *SHAPE, seed=1)
    for index in range(group):
        plain.arrive(index, np.zeros((0, 0, 3), np.uint8))
    for step in range(steps):
        assert plain.fuse(range(group), step, x0) is x0


@given(steps=st.integers(1, 4), group=st.integers(1, 4), strength=st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=6)
def test_frames_that_are_the_same_stay(steps: int, group: int, strength: float) -> None:
    x0 = random(1, *SHAPE, seed=2).expand(7, -1, -1, -1)
    fused = stream(fusion(strength, steps=steps), [picture(3)] * 7, x0, steps=steps, group=group)
    torch.testing.assert_close(fused, x0, rtol=1e-3, atol=1e-3)


def test_a_consensus_is_passed_on_from_frame_to_frame() -> None:
    x0 = random(3, *SHAPE, seed=3)
    fused = stream(fusion(), [picture(3)] * 3, x0, group=2)
    assert torch.equal(fused[0], x0[0])
    torch.testing.assert_close(fused[1], (fused[0] + x0[1]) / 2, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fused[2], (fused[1] + x0[2]) / 2, rtol=1e-3, atol=1e-3)


@given(group=st.integers(1, 7), strength=st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=8)
def test_a_consensus_does_not_depend_on_where_windows_begin(group: int, strength: float) -> None:
    """Else flat areas would pulse, once a window."""
    x0, images = random(7, *SHAPE, seed=10), panning(7, 3)
    one_by_one = stream(fusion(strength), images, x0, group=1)
    torch.testing.assert_close(stream(fusion(strength), images, x0, group=group), one_by_one)


def test_motion_that_is_hardly_there_changes_nothing_of_still_frames() -> None:
    """Where there is nothing to see, flow finds a little motion now and then; latents do not follow it."""
    x0 = random(1, *SHAPE, seed=11).expand(6, -1, -1, -1)
    noise = np.random.default_rng(1)

    def restless(source: Image, target: Image) -> NDArray[np.float32]:
        return noise.uniform(-1.5, 1.5, (*source.shape, 2)).astype(np.float32)  # a fifth of a latent pixel

    fusing = SynchronizedFusion(Correspondences(multiple=8, search=restless), strength=1.0, steps=1)
    fused = stream(fusing, [picture(3)] * 6, x0)
    torch.testing.assert_close(fused, x0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("group", [1, 3, 6])
def test_frames_of_a_pan_agree_more_the_stronger(group: int) -> None:
    """One drawing under a camera that moves by a latent pixel a frame, with an error of each frame's own."""
    wide = random(4, 12, 40, seed=4)
    true = torch.stack([wide[:, :, index : index + 16] for index in range(12)])
    x0 = true + 0.5 * random(12, *SHAPE, seed=5)
    disagreement = []
    for strength in (0.0, 0.5, 1.0):
        fused = stream(fusion(strength), panning(12, 8), x0, group=group)
        ahead, behind = fused[1:, :, 2:-2, 2:-3], fused[:-1, :, 2:-2, 3:-2]
        disagreement.append(float((ahead - behind).square().mean()))
        if strength == 1.0:  # the errors shrink, the drawing stays
            inside = (..., slice(2, -2), slice(3, -3))
            assert (fused - true)[inside].square().mean() < 0.6 * (x0 - true)[inside].square().mean()
    assert disagreement[0] > 1.5 * disagreement[1] > 1.5 * disagreement[2]


def test_the_first_half_of_the_steps_agrees_and_the_second_puts_the_details_of_one_over_the_others() -> None:
    x0 = random(3, *SHAPE, seed=6)
    fusing = fusion(steps=3)
    for index in range(3):
        fusing.arrive(index, picture(3))
    agreed = [fusing.fuse(range(3), step, x0) for step in (0, 1)]
    assert torch.equal(*agreed)
    torch.testing.assert_close(agreed[0][1], (x0[0] + x0[1]) / 2, rtol=1e-3, atol=1e-3)
    fused = fusing.fuse(range(3), 2, x0)
    (donor,) = [index for index in range(3) if torch.equal(fused[index], x0[index])]

    def details(latents: Tensor) -> Tensor:
        return latents - torch.nn.functional.avg_pool2d(latents, 5, 1, 2, count_include_pad=False)

    for index in {0, 1, 2} - {donor}:
        to_donor, to_own = (
            torch.nn.functional.cosine_similarity(
                details(fused[index]).flatten(), details(x0[other]).flatten(), dim=0
            )
            for other in (donor, index)
        )
        assert to_donor > 0.8
        assert to_donor > to_own
        torch.testing.assert_close(fused[index].mean((-2, -1)), x0[index].mean((-2, -1)))


def donors(seed: int, count: int = 300, group: int = 4) -> list[int]:
    """Places of the donors of many windows of a still scene, each by itself."""
    from toonstream.stream.temporal.fusion import _draw

    return [_draw(range(group), seed=seed, step=1, window=window) for window in range(count)]


@given(seed=st.integers(0, 2**70))
@settings(max_examples=10, deadline=None)
def test_every_frame_is_the_donor_as_often_and_a_replay_draws_alike(seed: int) -> None:
    drawn = donors(seed)
    assert drawn == donors(seed)
    assert drawn != donors(seed + 1)
    counts = Counter(drawn)
    assert set(counts) == {0, 1, 2, 3}
    assert all(35 < count < 120 for count in counts.values())  # 75, give or take five deviations


def test_a_replay_gives_the_same_bits() -> None:
    images, x0 = panning(9, 4), random(9, *SHAPE, seed=7)
    one, other = (stream(fusion(steps=4, seed=3), images, x0, steps=4) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("steps", [1, 2])
def test_nothing_crosses_a_cut(steps: int) -> None:
    images, x0 = panning(3, 4), random(6, *SHAPE, seed=8)
    both = fusion(steps=steps)
    stream(both, images, x0[:3], steps=steps)
    both.cut()
    alone = fusion(steps=steps)
    for fusing in (both, alone):
        for index in (3, 4, 5):
            fusing.arrive(index, images[index - 3])
    for step in range(steps):
        assert torch.equal(both.fuse([3, 4, 5], step, x0[3:]), alone.fuse([3, 4, 5], step, x0[3:]))


def test_what_is_kept_is_bounded() -> None:
    fusing = fusion(steps=3)
    images, x0 = panning(24, 2), random(24, *SHAPE, seed=9)
    for begin in range(0, 24, 3):
        for index in range(begin, begin + 3):
            fusing.arrive(index, images[index])
        for step in range(3):
            fusing.fuse(range(begin, begin + 3), step, x0[begin : begin + 3])
        assert len(fusing._correspondences) == 0
        assert {index for index, _ in fusing._last.values()} == {begin + 2}
        assert all(
            latents.untyped_storage().nbytes() == latents.nbytes for _, latents in fusing._last.values()
        )


def test_settings_make_a_fusion_or_none() -> None:
    assert make_fusion(0.0, steps=1, multiple=8) is None
    made = make_fusion(0.5, steps=3, seed=4, multiple=8)
    assert made is not None
    assert (made._strength, made._steps, made._seed) == (0.5, 3, 4)
    assert Settings().resolve(Defaults(name="m", prompt="p")).fusion == 0
    likes = Defaults(name="m", prompt="p", fusion=0.25)
    assert Settings().resolve(likes).fusion == 0.25
    assert Settings(fusion=0.0).resolve(likes).fusion == 0
    with pytest.raises(SettingError, match="take 0"):
        Settings(fusion=1.5)


class Echo:
    """A network's place: what it gives follows from what it is given, and from nothing else."""

    inputs = outputs = ()

    def __init__(self, function) -> None:
        self._function = function

    def __call__(self, tensors):
        return self._function(**tensors)


def denoiser(mode: str, steps: int, fusing: SynchronizedFusion | None) -> Denoiser:
    networks = {
        "unet": Echo(
            lambda sample, timestep, text, residual: {
                "output": torch.sin(sample + residual.reshape_as(sample))
            }
        ),
        "hint_outline": Echo(lambda hint: {"embedding": torch.nn.functional.avg_pool2d(hint, 8)}),
        "controlnet_outline": Echo(
            lambda sample, timestep, text, embedding: {"residual": sample + embedding[:, :1]}
        ),
    }
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "timestep_spacing": "trailing",
    }
    return Denoiser(
        networks,
        scheduler=make_scheduler({**config, "prediction_type": "v_prediction"}, kind="ddim", steps=steps),
        text=torch.zeros(1, 77, 4),
        negative_text=None,
        settings=DenoiseSettings(
            window=4, stride=3, steps=steps, mode=mode, controlnet_scales={"outline": 1.0}
        ),
        latent_channels=4,
        fusion=fusing,
    )


def drawn(mode: str, steps: int, strength: float | None, cut_at: int | None = None) -> Tensor:
    fusing = None if strength is None else fusion(strength, steps=steps)
    stream = denoiser(mode, steps, fusing)
    committed = []
    for index, image in enumerate(panning(14, 8)):
        if index == cut_at:
            committed += stream.cut()
        hint = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        committed += stream.push({"outline": hint}, image=image)
    committed += stream.finish()
    assert [frame.index for frame in committed] == list(range(14))
    return torch.stack([frame.latents for frame in committed])


@pytest.mark.parametrize("mode", ["wavefront", "skewed", "anchored"])
@pytest.mark.parametrize("steps", [1, 3])
def test_in_every_mode_strength_zero_is_the_plain_stream_and_strength_is_not(mode: str, steps: int) -> None:
    plain = drawn(mode, steps, None)
    assert torch.equal(drawn(mode, steps, 0.0), plain)
    fused = drawn(mode, steps, 1.0)
    assert torch.isfinite(fused).all()
    assert not torch.allclose(fused, plain, atol=1e-2)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_skewed_wavefront_fuses_as_the_wavefront_does(steps: int) -> None:
    torch.testing.assert_close(drawn("skewed", steps, 1.0), drawn("wavefront", steps, 1.0))


@pytest.mark.parametrize("mode", ["wavefront", "anchored"])
def test_the_first_scene_is_the_same_whatever_follows(mode: str) -> None:
    torch.testing.assert_close(drawn(mode, 2, 1.0, cut_at=6)[:3], drawn(mode, 2, 1.0, cut_at=7)[:3])


def test_on_a_filmed_pan_the_flow_warped_error_falls_and_lines_stay() -> None:
    random_ = np.random.default_rng(2)
    soft = cv2.resize(random_.uniform(0, 255, (8, 20, 3)), (320, 128), interpolation=cv2.INTER_CUBIC)
    wide = np.asarray(soft.clip(0, 255), np.uint8)
    for x, y in random_.integers((10, 10), (310, 118), (30, 2)):
        cv2.circle(
            wide, (int(x), int(y)), int(random_.integers(5, 16)), random_.uniform(0, 255, 3).tolist(), -1
        )
    noise = random_.normal(0, 3, (9, 128, 128, 3))
    views = [np.asarray((wide[:, 8 * i :][:, :128] + noise[i]).clip(0, 255), np.uint8) for i in range(9)]
    model = open_model(shipped_model())
    figures = []
    for strength in (0.0, 1.0):
        chosen = Settings(window=4, stride=2, steps=1, fusion=strength).resolve(model.defaults)
        engine = TorchEngine(device=torch.device("cpu"))
        stylizer = load_stylizer(model, chosen, engine=engine, stopwatch=Stopwatch())
        prepare = Conditions(model.defaults.controlnets, size=(128, 128), multiple=model.size_multiple)
        survey, meter = Survey(), Meter()
        toons = []
        for index, view in enumerate(views):
            frame = Frame(index=index, pts=index, time_base=Fraction(1, 25), image=view)
            toons += stylizer.push(prepare(frame))
        for toon in [*toons, *stylizer.finish()]:
            meter.push(survey.push(toon.source.image), toon.toon.image)
        figures.append(meter.figures)
    plain, fused = figures
    assert fused.ratio < 0.985 * plain.ratio  # the steadier the model, the less there is to gain
    assert fused.sharpness > 0.9 * plain.sharpness
