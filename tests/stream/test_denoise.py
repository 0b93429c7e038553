"""The stream against the plain offline definition, on a small network that mixes the frames of a window."""

import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toonstream.config import Mode
from toonstream.engines.engine import TensorSpec
from toonstream.errors import EngineError, SettingError
from toonstream.stream.denoise import Committed, Denoiser, DenoiseSettings
from toonstream.stream.noise import frame_noise, mixed_noise
from toonstream.stream.schedulers import make_scheduler
from toonstream.stream.window import Windows


def beside(name: str) -> ModuleType:
    """A module of this folder: tests are no package and have no import path of their own."""
    spec = spec_from_file_location(f"toonstream_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = beside("offline")

CHANNELS = 2
CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timestep_spacing": "trailing"}
CONFIG["prediction_type"] = "v_prediction"
SCALES = {"outline": 0.8, "colour": 1.3}
WAVES = st.sampled_from(["wavefront", "skewed"])


def random(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


TEXT, NEGATIVE = random(1, 77, 4, seed=1), random(1, 77, 4, seed=2)
HINTS = [{name: random(3, 32, 16, seed=3 * i + len(name)) for name in SCALES} for i in range(64)]


def make(options: DenoiseSettings, kind: str = "ddim", networks=None) -> tuple[dict, dict]:
    """The networks, and the rest of what both the Denoiser and the offline reference take."""
    scheduler = make_scheduler(CONFIG, kind=kind, steps=options.steps)
    common = {"scheduler": scheduler, "text": TEXT, "negative_text": NEGATIVE, "settings": options}
    return networks or reference.stand_in_networks(), {**common, "latent_channels": CHANNELS}


def streamed(denoiser: Denoiser, frames: int) -> list[Committed]:
    committed = [frame for hints in HINTS[:frames] for frame in denoiser.push(hints)]
    return committed + denoiser.finish()


def latents(committed: list[Committed]) -> Tensor:
    assert [frame.index for frame in committed] == list(range(len(committed)))
    return torch.stack([frame.latents for frame in committed])


@st.composite
def clips(draw: st.DrawFn) -> tuple[DenoiseSettings, int]:
    window = draw(st.integers(1, 16))
    options = DenoiseSettings(
        window=window,
        stride=draw(st.integers(1, window)),
        steps=draw(st.integers(1, 6)),
        guidance=draw(st.sampled_from([1.0, 3.5])),
        seed=draw(st.integers(0, 2**70)),
        controlnet_scales=SCALES,
    )
    return options, draw(st.integers(1, 3 * window + 1))


@given(clip=clips(), kind=st.sampled_from(["ddim", "lcm", "euler"]))
@settings(max_examples=60, deadline=None)
def test_both_wavefronts_give_what_the_offline_definition_gives(clip, kind):
    options, frames = clip
    networks, common = make(options, kind)
    expected = torch.stack(reference.offline(networks, HINTS[:frames], **common))
    assert torch.equal(latents(streamed(Denoiser(networks, **common), frames)), expected)
    skewed = Denoiser(networks, **{**common, "settings": replace(options, mode="skewed")})
    torch.testing.assert_close(latents(streamed(skewed, frames)), expected, rtol=1e-3, atol=1e-4)


@given(clip=clips())
@settings(max_examples=20, deadline=None)
def test_guiding_in_the_window_and_sharing_residuals_is_what_the_paper_says(clip):
    options, frames = clip
    networks, common = make(options)
    expected = torch.stack(reference.offline(networks, HINTS[:frames], **common, textbook=True))
    actual = latents(streamed(Denoiser(networks, **common), frames))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@given(clip=clips(), mode=WAVES)
@settings(max_examples=30, deadline=None)
def test_evaluations_latents_alive_and_look_ahead_are_bounded(clip, mode):
    options, frames = clip
    options = replace(options, mode=mode)
    networks, common = make(options)
    denoiser = Denoiser(networks, **common)
    windows = Windows(length=options.window, stride=options.stride)
    bound = windows.lookahead(steps=options.steps, skewed=mode == "skewed")
    committed = 0
    for arrived, hints in enumerate(HINTS[:frames], start=1):
        committed += len(denoiser.push(hints))
        assert denoiser.lookahead == arrived - committed <= bound
        assert len(denoiser._frames) == denoiser.lookahead
    committed += len(denoiser.finish())
    assert committed == frames
    assert denoiser.lookahead == len(denoiser._frames) == 0
    sides = 1 if options.guidance == 1 else 2
    cost = windows.cost(frames, steps=options.steps, sides=sides, controlnets=len(SCALES))
    counted = denoiser.evaluations
    assert counted.unet_frames == cost.unet
    assert counted.controlnet_frames == cost.controlnet == frames * options.steps * sides * len(SCALES)
    assert counted.hints == frames * len(SCALES)
    assert counted.unet_calls == networks["unet"].calls
    assert counted.controlnet_calls == sum(networks[f"controlnet_{name}"].calls for name in SCALES)


@pytest.mark.parametrize("mode", ["wavefront", "skewed"])
@pytest.mark.parametrize(("window", "stride", "steps"), [(8, 4, 3), (7, 3, 4), (5, 5, 2), (6, 1, 2)])
def test_memory_does_not_grow_with_the_stream(window, stride, steps, mode):
    options = DenoiseSettings(
        window=window, stride=stride, steps=steps, guidance=2.0, mode=mode, controlnet_scales=SCALES
    )
    networks, common = make(options)
    denoiser = Denoiser(networks, **common)
    held = []
    for place in range(240):
        denoiser.push(HINTS[place % 64])
        tensors = [tensor for frame in denoiser._frames.values() for tensor in tensors_of(frame)]
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
        }
        held.append(sum(storages.values()))
    # The first window's frames share their storage, so the beginning may hold a little more.
    assert max(held[60:150]) == max(held[150:]) <= max(held[:60])
    # Residuals are kept only where a window has run and others are still to come: at most d-1 frames a level.
    with_residuals = sum(not frame.is_new for frame in denoiser._frames.values())
    assert with_residuals <= steps * (window - 1)


def tensors_of(frame: object) -> list[Tensor]:
    parked = (frame.latents, *frame.embeddings.values(), *frame.waiting.values())
    return [*(each.take() for each in parked), frame.total, *frame.residuals.values()]


class Away:
    """A tensor that waits elsewhere, and says what is done with it."""

    def __init__(self, tensor: Tensor, log: list[str]) -> None:
        self.tensor = tensor.clone()
        self.log = log
        self.brought = False

    def bring(self) -> None:
        self.brought = True

    def take(self) -> Tensor:
        self.log.append("brought" if self.brought else "late")
        self.brought = False
        return self.tensor.clone()


@pytest.mark.parametrize("mode", ["wavefront", "skewed", "anchored"])
def test_between_two_windows_all_that_is_large_waits_elsewhere(mode, monkeypatch):
    """So that a GPU holds what one window needs, whatever the number of levels; and copies go ahead."""
    options = DenoiseSettings(window=6, stride=2, steps=3, guidance=2.0, mode=mode, controlnet_scales=SCALES)
    networks, common = make(options)
    expected = streamed(Denoiser(networks, **common), 20)

    log: list[str] = []
    elsewhere = SimpleNamespace(park=lambda tensor: log.append("parked") or Away(tensor, log))
    monkeypatch.setattr("toonstream.stream.denoise.HostMemory", lambda device: elsewhere)
    networks, common = make(options)
    denoiser = Denoiser(networks, **common)
    committed = []
    for hints in HINTS[:20]:
        committed += denoiser.push(hints)
        assert not any(frame.residuals for frame in denoiser._frames.values())
    committed += denoiser.finish()
    assert torch.equal(latents(committed), latents(expected))
    a_level = 1 + 2  # latents, and what the ControlNets say
    assert log.count("parked") <= 20 * (len(SCALES) + 3 * a_level)  # each once
    # What windows need was on its way before; frames that climb are taken where they stand.
    if mode != "anchored":  # where the first step of a segment waits for the last frames of the one before
        assert log.count("late") <= 20 * 3


class Half:
    """A network that computes with inputs in half precision, whatever it is given."""

    outputs = ()

    def __init__(self, network, *names, declared: bool):
        self.network, self.names = network, names
        self.given: set[torch.dtype] = set()
        self.inputs = (
            tuple(TensorSpec(name=name, dtype=torch.float16, shape=()) for name in names) if declared else ()
        )

    def __call__(self, tensors):
        self.given |= {tensors[name].dtype for name in self.names}
        rounded = {name: tensors[name].half().float() for name in self.names}
        return self.network({**tensors, **rounded})


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("mode", ["wavefront", "skewed", "anchored"])
def test_what_networks_take_in_half_precision_waits_in_it_and_nothing_changes(mode, early):
    options = DenoiseSettings(window=6, stride=2, steps=3, guidance=2.0, mode=mode, controlnet_scales=SCALES)
    made = []
    for declared in (False, True):
        networks, common = make(options)
        networks["unet"] = Half(networks["unet"], "residual_0", "residual_mid", declared=declared)
        for name in SCALES:
            controlnet = networks[f"controlnet_{name}"]
            networks[f"controlnet_{name}"] = Half(controlnet, "embedding", declared=declared)
        denoiser = Denoiser(networks, **common, early=early)
        committed, waited = [], set()
        for hints in HINTS[:20]:
            committed += denoiser.push(hints)
            for frame in denoiser._frames.values():
                waiting = (*frame.waiting.values(), *frame.embeddings.values())
                waited |= {parked.take().dtype for parked in waiting}
                assert frame.latents.take().dtype == torch.float32
        made.append(latents(committed + denoiser.finish()))
        assert waited == networks["unet"].given == {torch.float16 if declared else torch.float32}
    assert torch.equal(*made)


def test_a_network_may_come_that_takes_others():
    """What waits for the one before is mixed with what is new."""
    options = DenoiseSettings(window=6, stride=2, steps=3, controlnet_scales=SCALES)
    networks, common = make(options)
    expected = latents(streamed(Denoiser(networks, **common), 20))
    networks["unet"] = Half(networks["unet"], "residual_0", "residual_mid", declared=True)
    denoiser = Denoiser(networks, **common)
    committed = [frame for hints in HINTS[:9] for frame in denoiser.push(hints)]
    networks["unet"].inputs = ()
    committed += [frame for hints in HINTS[9:20] for frame in denoiser.push(hints)]
    assert networks["unet"].given == {torch.float16, torch.float32}
    torch.testing.assert_close(latents(committed + denoiser.finish()), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("what", ["prepare", "enter", "finish"])
def test_memory_that_runs_out_beside_the_networks_says_what_to_lower(what, monkeypatch):
    options = DenoiseSettings(window=4, stride=2, steps=2, controlnet_scales=SCALES)
    networks, common = make(options)
    denoiser = Denoiser(networks, **common)
    committed = [denoiser.push(hints) for hints in HINTS[:3]]
    assert committed == [[], [], []]
    frame = denoiser.prepare(HINTS[3], key=3, scene=0)

    def exhausted(*tensors, **named):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has less")

    monkeypatch.setattr(torch, "stack", exhausted)
    monkeypatch.setattr(denoiser._host, "park", exhausted)
    run = {
        "prepare": lambda: denoiser.prepare(HINTS[4], key=4, scene=0),
        "enter": lambda: denoiser.enter(frame),
        "finish": denoiser.finish,
    }
    with pytest.raises(EngineError, match=r"frames in flight: not enough GPU .*2\.50 GiB\); lower.*--size"):
        run[what]()


def test_a_skewed_arrival_is_one_batch_of_mixed_timesteps():
    options = DenoiseSettings(
        window=4, stride=2, steps=3, guidance=2.0, mode="skewed", controlnet_scales=SCALES
    )
    networks, common = make(options)
    seen = []
    run = networks["unet"]

    def unet(**tensors):
        seen.append(tensors["timestep"].tolist())
        return run(tensors)

    denoiser = Denoiser({**networks, "unet": reference.StandIn(unet)}, **common)
    for hints in HINTS[:32]:
        denoiser.push(hints)
    assert seen[-1] == common["scheduler"].timesteps.tolist() * 2
    # One run of the UNet and of each ControlNet an arrival of a stride, the first filling the first window.
    assert len(seen) == denoiser.evaluations.unet_calls == (32 - 4) // 2 + 1
    assert denoiser.evaluations.controlnet_calls == 2 * len(seen)


@given(clip=clips(), mode=st.sampled_from(get_args(Mode)), ahead=st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_frames_may_be_prepared_before_they_enter(clip, mode, ahead):
    options, frames = clip
    networks, common = make(replace(options, mode=mode))
    expected = streamed(plain := Denoiser(networks, **common), frames)
    early = Denoiser(networks, **common, early=True)
    given, waiting = [], []
    for index, hints in enumerate(HINTS[:frames]):
        waiting.append(early.prepare(hints, key=index, scene=0))
        if len(waiting) > ahead:
            given += early.enter(waiting.pop(0))
    given += [frame for prepared in waiting for frame in early.enter(prepared)] + early.finish()
    torch.testing.assert_close(latents(given), latents(expected), rtol=1e-3, atol=1e-4)
    assert early.evaluations.controlnet_frames == plain.evaluations.controlnet_frames
    if options.steps == 1:
        assert early.evaluations.controlnet_calls == frames * len(SCALES)


def test_frames_do_not_depend_on_what_comes_after_their_look_ahead():
    options = DenoiseSettings(window=6, stride=2, steps=2, controlnet_scales=SCALES)
    networks, common = make(options)
    last = Windows(length=6, stride=2).last_needed(4, steps=2)
    whole = streamed(Denoiser(networks, **common), 40)
    denoiser = Denoiser(networks, **common)
    early = [frame for hints in HINTS[: last + 1] for frame in denoiser.push(hints)]
    assert [frame.index for frame in early] == [0, 1, 2, 3, 4, 5]
    assert all(torch.equal(frame.latents, whole[frame.index].latents) for frame in early)


def test_an_empty_stream_commits_nothing_and_a_finished_one_takes_no_more():
    networks, common = make(DenoiseSettings(window=4, stride=2, steps=2, controlnet_scales=SCALES))
    denoiser = Denoiser(networks, **common)
    assert denoiser.finish() == []
    with pytest.raises(RuntimeError, match="ended"):
        denoiser.push(HINTS[0])


def test_the_scales_of_the_controlnets_matter():
    options = DenoiseSettings(window=4, stride=2, steps=2, controlnet_scales=SCALES)
    first = latents(streamed(Denoiser(make(options)[0], **make(options)[1]), 6))
    other = replace(options, controlnet_scales={"outline": 0.8, "colour": 0.4})
    second = latents(streamed(Denoiser(make(other)[0], **make(other)[1]), 6))
    assert not torch.allclose(first, second, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 5}, "stride of 5"),
        ({"window": 0}, "window of 0"),
        ({"steps": 0}, "0 denoising steps"),
        ({"steps": 3}, "makes 2 steps"),
        ({"controlnet_scales": {}}, "No ControlNet"),
        ({"controlnet_scales": {"depth": 1.0}}, "'depth'"),
        ({"guidance": 2.0}, "negative prompt"),
    ],
)
def test_refuses_settings_that_do_not_fit(changes, message):
    options = DenoiseSettings(window=4, stride=2, steps=2, controlnet_scales=SCALES)
    networks, common = make(options)
    with pytest.raises(SettingError, match=message):
        Denoiser(networks, **{**common, "negative_text": None, "settings": replace(options, **changes)})


def test_noise_belongs_to_its_key():
    shape = (4, 8, 8)
    keys = [(seed, frame, step) for seed in (0, 1, 2**64) for frame in (0, 1, 2**40) for step in (None, 0, 1)]
    made = [frame_noise(shape, seed=seed, frame=frame, step=step) for seed, frame, step in keys]
    again = [frame_noise(shape, seed=seed, frame=frame, step=step) for seed, frame, step in reversed(keys)]
    assert all(torch.equal(first, second) for first, second in zip(made, reversed(again), strict=True))
    flat = torch.stack(made).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(keys))
    assert correlation.abs().max() < 0.3  # 256 draws: 4.8 standard deviations
    assert abs(flat.mean()) < 0.05
    assert flat.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("shared", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("step", [None, 0])
def test_frames_have_as_much_noise_in_common_as_is_asked_for(shared, step):
    made = [
        mixed_noise((4, 64, 64), seed=seed, frame=frame, step=step, shared=shared)
        for seed, frame in ((0, 0), (0, 1), (0, 2**40), (1, 0))
    ]
    assert all(noise.std().item() == pytest.approx(1.0, abs=0.05) for noise in made)
    correlation = torch.corrcoef(torch.stack(made).flatten(1))
    expected = torch.eye(4)
    expected[:3, :3] = shared + (1.0 - shared) * torch.eye(3)
    assert (correlation - expected).abs().max() < 0.05
    if shared == 0.0:
        assert torch.equal(made[1], frame_noise((4, 64, 64), seed=0, frame=1, step=step))
    if shared == 1.0:
        assert torch.equal(made[0], made[2])
    other = mixed_noise((4, 64, 64), seed=0, frame=2, step=step, shared=shared, scene=1)
    assert torch.corrcoef(torch.stack([made[0], other]).flatten(1))[0, 1].abs() < 0.05


def test_noise_that_frames_share_ends_with_their_scene():
    options = DenoiseSettings(window=1, stride=1, steps=1, shared_noise=1.0, controlnet_scales=SCALES)
    networks, common = make(options)
    denoiser, again = Denoiser(networks, **common), Denoiser(networks, **common)

    def drawn(denoiser):
        first = [*denoiser.push(HINTS[0]), *denoiser.push(HINTS[0]), *denoiser.cut()]
        return latents([*first, *denoiser.push(HINTS[0]), *denoiser.finish()])

    one, other, after = drawn(denoiser)
    assert torch.equal(one, other)
    assert not torch.equal(one, after)
    assert torch.equal(drawn(again), torch.stack([one, other, after]))


@pytest.mark.parametrize("kind", ["ddim", "lcm"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_noise_that_all_frames_share_belongs_to_none(kind, mode):
    options = DenoiseSettings(
        window=4, stride=3, steps=2, mode=mode, shared_noise=1.0, controlnet_scales=SCALES
    )
    networks, common = make(options, kind)
    whole = latents(streamed(Denoiser(networks, **common), 9))
    other = Denoiser(networks, **common)
    committed = [frame for place in range(9) for frame in other.push(HINTS[place], key=100 - place)]
    assert torch.equal(latents(committed + other.finish()), whole)


def test_noise_is_the_same_in_every_process_and_release():
    noise = frame_noise((3,), seed=3, frame=1)
    assert noise.tolist() == pytest.approx([2.708454, 1.1923051, -1.4192278], rel=1e-6)


def test_frames_that_name_the_streams_own_words_give_what_they_give_without():
    options = DenoiseSettings(window=5, stride=2, steps=3, guidance=2.0, seed=7, controlnet_scales=SCALES)
    networks, common = make(options)
    text = torch.cat([NEGATIVE, TEXT])
    for mode in get_args(Mode):
        plain = Denoiser(networks, **{**common, "settings": replace(options, mode=mode)})
        said = Denoiser(networks, **{**common, "settings": replace(options, seed=1, mode=mode)})
        committed = [
            each for place in range(17) for each in said.push(HINTS[place], text=text, seed=7, key=place)
        ]
        assert torch.equal(latents(committed + said.finish()), latents(streamed(plain, 17)))


def test_a_window_takes_the_mean_of_its_frames_words_and_controlnets_take_each_frames_own():
    options = DenoiseSettings(window=4, stride=2, steps=1, controlnet_scales=SCALES)
    networks, common = make(options)
    seen = {"unet": [], "controlnet_outline": []}

    def listening(name):
        def run(**tensors):
            seen[name].append(tensors["text"].clone())
            return networks[name](tensors)

        return reference.StandIn(run)

    denoiser = Denoiser({**networks, **{name: listening(name) for name in seen}}, **common)
    texts = [torch.full((1, 77, 4), float(place)) for place in range(6)]
    for hints, text in zip(HINTS, texts, strict=False):
        denoiser.push(hints, text=text)
    assert [text[:, 0, 0].tolist() for text in seen["unet"]] == [[1.5], [3.5]]
    assert [text[:, 0, 0].tolist() for text in seen["controlnet_outline"]] == [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_words_that_change_on_the_way_are_the_same_skewed_and_not(guidance):
    options = DenoiseSettings(window=4, stride=2, steps=3, guidance=guidance, controlnet_scales=SCALES)
    networks, common = make(options)
    results = []
    for mode in ("wavefront", "skewed"):
        denoiser = Denoiser(networks, **{**common, "settings": replace(options, mode=mode)})
        committed = []
        for place in range(20):
            prompt = torch.lerp(TEXT, NEGATIVE, min(1.0, place / 10))
            text = prompt if guidance == 1.0 else torch.cat([NEGATIVE, prompt])
            committed += denoiser.push(HINTS[place], text=text)
        results.append(latents(committed + denoiser.finish()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(results[0], latents(streamed(Denoiser(networks, **common), 20)), atol=1e-2)


@pytest.mark.parametrize("kind", ["ddim", "lcm"])
def test_noise_belongs_to_a_frames_own_key_and_seed(kind):
    options = DenoiseSettings(window=4, stride=2, steps=2, controlnet_scales=SCALES)
    networks, common = make(options, kind)
    whole = latents(streamed(Denoiser(networks, **common), 12))
    late = Denoiser(networks, **common)
    committed = [each for place in range(6, 12) for each in late.push(HINTS[place], key=place)]
    resumed = latents(committed + late.finish())
    # Its last frames see what they saw in the whole stream, and have the noise that they had there.
    assert torch.equal(resumed[-2:], whole[-2:])
    other = Denoiser(networks, **common)
    committed = [each for place in range(12) for each in other.push(HINTS[place], seed=place % 2)]
    assert not torch.allclose(latents(committed + other.finish()), whole, atol=1e-2)


@given(clip=clips(), mode=st.sampled_from(get_args(Mode)), data=st.data())
@settings(max_examples=25, deadline=None)
def test_nothing_crosses_a_cut(clip, mode, data):
    options, frames = clip
    options = replace(options, mode=mode)
    at = data.draw(st.integers(0, frames))
    networks, common = make(options)
    denoiser = Denoiser(networks, **common)
    before = [each for hints in HINTS[:at] for each in denoiser.push(hints)] + denoiser.cut()
    after = [each for hints in HINTS[at:frames] for each in denoiser.push(hints)] + denoiser.finish()
    assert len(before) == at
    scenes = []
    for start, stop in ((0, at), (at, frames)):
        alone = Denoiser(networks, **common)
        scenes += [each for place in range(start, stop) for each in alone.push(HINTS[place], key=place)]
        scenes += alone.finish()
    assert torch.equal(latents(before + after), torch.stack([frame.latents for frame in scenes]))
