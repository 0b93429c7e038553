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


def fusion(strength: float = 1.0, *, window: int = 4, steps: int = 1, seed: int = 0) -> SynchronizedFusion:
    return SynchronizedFusion(
        Correspondences(multiple=8), strength=strength, window=window, steps=steps, seed=seed
    )


def stream(
    fusing: SynchronizedFusion,
    images: Sequence[Image],
    x0: Tensor,
    *,
    steps: int = 1,
    group: int = 3,
    of: int | None = None,
) -> Tensor:
    """All frames through all steps, a group at a time, each step given the same x0: what step `of` made."""
    of, out = steps - 1 if of is None else of, []
    for begin in range(0, len(images), group):
        indices = range(begin, min(begin + group, len(images)))
        for index in indices:
            fusing.arrive(index, images[index])
        fused = [fusing.fuse(indices, step, x0[indices.start : indices.stop]) for step in range(steps)]
        out.append(fused[of])
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


@given(window=st.integers(1, 6), data=st.data(), strength=st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=12)
def test_in_the_first_half_a_frame_becomes_the_mean_of_its_window(
    window: int, data: st.DataObject, strength: float
) -> None:
    """Of those that climb with it and of those before them in a window, as they were left."""
    stride = data.draw(st.integers(1, window))
    x0 = random(9, *SHAPE, seed=3)
    fusing = fusion(strength, window=window, steps=2)
    fused = stream(fusing, [picture(3)] * 9, x0, steps=2, group=stride, of=0)
    known = list(x0)
    for begin in range(0, 9, stride):
        end = min(begin + stride, 9)
        pool = torch.stack(known[max(0, begin + stride - window) : end])
        for index in range(begin, end):
            others = pool.sum(0) - x0[index]
            known[index] = (x0[index] + strength * others) / (1 + strength * (len(pool) - 1))
    torch.testing.assert_close(fused, torch.stack(known), rtol=1e-3, atol=1e-3)


def test_motion_that_is_hardly_there_changes_nothing_of_still_frames() -> None:
    """Where there is nothing to see, flow finds a little motion now and then; latents do not follow it."""
    x0 = random(1, *SHAPE, seed=11).expand(6, -1, -1, -1)
    noise = np.random.default_rng(1)

    def restless(source: Image, target: Image) -> NDArray[np.float32]:
        return noise.uniform(-1.5, 1.5, (*source.shape, 2)).astype(np.float32)  # a fifth of a latent pixel

    correspondences = Correspondences(multiple=8, search=restless)
    fusing = SynchronizedFusion(correspondences, strength=1.0, window=4, steps=1)
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
        fused = stream(fusion(strength, window=6, steps=2), panning(12, 8), x0, steps=2, group=group, of=0)
        ahead, behind = fused[1:, :, 2:-2, 2:-3], fused[:-1, :, 2:-2, 3:-2]
        disagreement.append(float((ahead - behind).square().mean()))
        if strength == 1.0:  # the errors shrink, the drawing stays
            inside = (..., slice(2, -2), slice(3, -3))
            assert (fused - true)[inside].square().mean() < 0.6 * (x0 - true)[inside].square().mean()
    assert disagreement[0] > 1.5 * disagreement[1] > 1.5 * disagreement[2]


def details(latents: Tensor) -> Tensor:
    return latents - torch.nn.functional.avg_pool2d(latents, 5, 1, 2, count_include_pad=False)


def likeness(one: Tensor, other: Tensor) -> float:
    similar = torch.nn.functional.cosine_similarity
    return float(similar(details(one).flatten(), details(other).flatten(), dim=0))


def test_in_the_second_half_the_details_of_one_overwrite_the_others_and_nothing_is_averaged() -> None:
    x0 = random(3, *SHAPE, seed=6)
    fused = stream(fusion(steps=2), [picture(3)] * 3, x0, steps=2)
    (donor,) = [index for index in range(3) if torch.equal(fused[index], x0[index])]
    for index in {0, 1, 2} - {donor}:
        assert likeness(fused[index], x0[donor]) > 0.8
        assert likeness(fused[index], x0[donor]) > likeness(fused[index], x0[index])
        torch.testing.assert_close(fused[index].mean((-2, -1)), x0[index].mean((-2, -1)))


@pytest.mark.parametrize(("steps", "middle"), [(1, 0), (3, 1)])
def test_a_step_in_both_halves_has_the_consensus_with_the_details_of_one(steps: int, middle: int) -> None:
    x0 = random(3, *SHAPE, seed=6)
    fused = stream(fusion(steps=steps), [picture(3)] * 3, x0, steps=steps, of=middle)
    nearest = [max(range(3), key=lambda donor: likeness(latents, x0[donor])) for latents in fused]
    assert len(set(nearest)) == 1
    for latents in fused:
        assert likeness(latents, x0[nearest[0]]) > 0.8
        torch.testing.assert_close(latents.mean((-2, -1)), x0.mean((0, -2, -1)), rtol=1e-3, atol=1e-3)


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
    fusing = fusion(steps=3, window=5)
    images, x0 = panning(24, 2), random(24, *SHAPE, seed=9)
    for begin in range(0, 24, 3):
        for index in range(begin, begin + 3):
            fusing.arrive(index, images[index])
        for step in range(3):
            fusing.fuse(range(begin, begin + 3), step, x0[begin : begin + 3])
        assert len(fusing._correspondences) == 1
        for kept in fusing._before.values():
            assert set(kept) == {begin + 1, begin + 2}
            assert all(latents.untyped_storage().nbytes() == latents.nbytes for latents in kept.values())


def test_settings_make_a_fusion_or_none() -> None:
    assert make_fusion(0.0, window=4, steps=1, multiple=8) is None
    made = make_fusion(0.5, window=6, steps=3, seed=4, multiple=8)
    assert made is not None
    assert (made._strength, made._window, made._steps, made._seed) == (0.5, 6, 3, 4)
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
