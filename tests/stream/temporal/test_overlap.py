"""Overlapped blending in the stream against LVCD's, written plainly for a whole clip."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toonstream.engines.engine import Network
from toonstream.stream.denoise import Committed, Denoiser, DenoiseSettings
from toonstream.stream.noise import frame_noise
from toonstream.stream.schedulers import Scheduler, make_scheduler

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timestep_spacing": "trailing"}
CONFIG["prediction_type"] = "v_prediction"
SCALES = {"outline": 0.8, "colour": 1.3}
CHANNELS = 2
KINDS = st.sampled_from(["ddim", "lcm", "euler"])


def beside(name: str) -> ModuleType:
    """A module of the folder above: tests are no package and have no import path of their own."""
    spec = spec_from_file_location(f"toonstream_tests_{name}", Path(__file__).parents[1] / f"{name}.py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


stand_in_networks = beside("offline").stand_in_networks


def random(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


TEXT, NEGATIVE = random(1, 77, 4, seed=1), random(1, 77, 4, seed=2)
HINTS = [{name: random(3, 32, 16, seed=3 * i + len(name)) for name in SCALES} for i in range(64)]


def blended(
    networks: Mapping[str, Network],
    hints: Sequence[Mapping[str, Tensor]],
    texts: Sequence[Tensor],
    scheduler: Scheduler,
    options: DenoiseSettings,
    *,
    textbook: bool = False,
) -> tuple[list[Tensor], list[list[tuple[int, Tensor]]]]:
    """Denoise a clip segment by segment, as LVCD's sampler does.

    With `textbook` all networks see all frames of every segment. Without, what the ControlNets said of a
    frame is not asked again.

    Returns:
        The latents of all frames, and, for each segment but the first, (index, latents) of the frames that it
        began with as they came out of it.
    """
    sides = len(texts[0])
    overlap = options.window - options.stride
    embeddings = [
        {name: networks[f"hint_{name}"]({"hint": frame[name][None]})["embedding"][0] for name in SCALES}
        for frame in hints
    ]
    size = embeddings[0]["colour"].shape[-2:]
    said: list[dict[int, Tensor]] = [{} for _ in hints]  # of each frame and step, what the sampler is told
    heard: list[dict[int, dict[str, Tensor]]] = [{} for _ in hints]
    final: list[Tensor] = []
    again: list[list[tuple[int, Tensor]]] = []

    def control(frames: Sequence[int], sample: Mapping[int, Tensor], step: int) -> None:
        inputs = {
            "sample": torch.stack([sample[i] for i in frames] * sides),
            "timestep": scheduler.timesteps[step].repeat(sides * len(frames)),
            "text": torch.stack([texts[i] for i in frames], 1).flatten(0, 1),
        }
        total: dict[str, Tensor] = {}
        for name, scale in SCALES.items():
            embedding = torch.stack([embeddings[i][name] for i in frames] * sides)
            for key, output in networks[f"controlnet_{name}"]({**inputs, "embedding": embedding}).items():
                part = scale * output.reshape(sides, len(frames), *output.shape[1:])
                total[key] = total[key] + part if key in total else part
        for place, i in enumerate(frames):
            heard[i][step] = {key: value[:, place] for key, value in total.items()}

    while len(final) < len(hints):
        start = max(0, len(final) - overlap)
        frames = range(start, min(start + options.window, len(hints)))
        latents = {
            i: frame_noise((CHANNELS, *size), seed=options.seed, frame=i) * scheduler.initial_sigma
            for i in frames
        }
        for step in range(options.steps):
            sample = {i: scheduler.scale(latents[i][None], step)[0] for i in frames}
            control([i for i in frames if textbook or i >= len(final)], sample, step)
            mean = torch.stack([texts[i] for i in frames]).mean(0)
            output = networks["unet"](
                {
                    "sample": torch.stack([torch.stack([sample[i] for i in frames])] * sides),
                    "timestep": scheduler.timesteps[step].repeat(sides),
                    "text": texts[start] if all(texts[i] is texts[start] for i in frames) else mean,
                    **{k: torch.stack([heard[i][step][k] for i in frames], 1) for k in heard[start][step]},
                }
            )["output"]
            if sides == 2:
                output = output[:1] + options.guidance * (output[1:] - output[:1])
            for place, i in enumerate(frames):
                if i >= len(final):
                    said[i][step] = output[0, place]
                # Overlapped: the denoised frame is replaced by the one recorded at this step.
                noise = frame_noise((CHANNELS, *size), seed=options.seed, frame=i, step=step)[None]
                noise = noise if scheduler.needs_noise else None
                latents[i] = scheduler.step(latents[i][None], said[i][step][None], step, noise)[0]
        if final:
            again.append([(i, latents[i]) for i in frames if i < len(final)])
        final += [latents[i] for i in frames if i >= len(final)]
    return final, again


def make(options: DenoiseSettings, kind: str = "ddim", **more) -> Denoiser:
    return Denoiser(
        more.pop("networks", None) or stand_in_networks(),
        scheduler=make_scheduler(CONFIG, kind=kind, steps=options.steps),
        text=TEXT,
        negative_text=NEGATIVE,
        settings=options,
        latent_channels=CHANNELS,
        **more,
    )


def latents(committed: list[Committed]) -> Tensor:
    assert [frame.index for frame in committed] == list(range(len(committed)))
    return torch.stack([frame.latents for frame in committed])


def streamed(denoiser: Denoiser, frames: int) -> list[Committed]:
    return [frame for hints in HINTS[:frames] for frame in denoiser.push(hints)] + denoiser.finish()


@st.composite
def clips(draw: st.DrawFn) -> tuple[DenoiseSettings, int]:
    window = draw(st.integers(1, 12))
    options = DenoiseSettings(
        window=window,
        stride=draw(st.integers(1, window)),
        steps=draw(st.integers(1, 5)),
        guidance=draw(st.sampled_from([1.0, 3.5])),
        seed=draw(st.integers(0, 2**70)),
        mode="anchored",
        controlnet_scales=SCALES,
    )
    return options, draw(st.integers(1, 3 * window + 1))


def texts(options: DenoiseSettings, frames: int) -> list[Tensor]:
    text = TEXT if options.guidance == 1.0 else torch.cat([NEGATIVE, TEXT])
    return [text] * frames


@given(clip=clips(), kind=KINDS)
@settings(max_examples=40, deadline=None)
def test_the_stream_gives_what_overlapped_blending_gives_and_reproduces_what_it_sent(clip, kind):
    options, frames = clip
    scheduler = make_scheduler(CONFIG, kind=kind, steps=options.steps)
    final, again = blended(stand_in_networks(), HINTS[:frames], texts(options, frames), scheduler, options)
    assert torch.equal(latents(streamed(make(options, kind), frames)), torch.stack(final))
    for segment in again:
        assert len(segment) == min(options.window - options.stride, frames)
        assert all(torch.equal(given, final[index]) for index, given in segment)


@given(clip=clips(), kind=KINDS)
@settings(max_examples=20, deadline=None)
def test_not_asking_the_controlnets_again_changes_nothing(clip, kind):
    options, frames = clip
    scheduler = make_scheduler(CONFIG, kind=kind, steps=options.steps)
    final, _ = blended(
        stand_in_networks(), HINTS[:frames], texts(options, frames), scheduler, options, textbook=True
    )
    actual = latents(streamed(make(options, kind), frames))
    torch.testing.assert_close(actual, torch.stack(final), rtol=1e-3, atol=1e-4)


@given(clip=clips())
@settings(max_examples=30, deadline=None)
def test_frames_are_committed_in_order_once_and_when_their_segment_is_full(clip):
    options, frames = clip
    denoiser = make(options)
    committed: list[Committed] = []
    kept: list[Tensor] = []
    for arrived, hints in enumerate(HINTS[:frames], start=1):
        fresh = denoiser.push(hints)
        committed += fresh
        kept += [frame.latents.clone() for frame in fresh]
        # The first segment waits for d frames, every other for d - o, whatever the number of steps.
        bound = options.stride - 1 if arrived >= options.window else options.window - 1
        assert denoiser.lookahead == arrived - len(committed) == len(denoiser._frames) <= bound
    rest = denoiser.finish()
    assert [frame.index for frame in committed + rest] == list(range(frames))
    assert denoiser.lookahead == len(denoiser._frames) == len(denoiser._overlap._records) == 0
    # A committed frame never changes.
    assert all(torch.equal(frame.latents, copy) for frame, copy in zip(committed, kept, strict=True))
    sides = 1 if options.guidance == 1.0 else 2
    counted = denoiser.evaluations
    assert counted.controlnet_frames == frames * options.steps * sides * len(SCALES)
    assert counted.hints == frames * len(SCALES)


@given(clip=clips())
@settings(max_examples=12, deadline=None)
def test_what_is_sent_does_not_depend_on_what_comes_after_it(clip):
    options, frames = clip
    whole = streamed(make(options), 40)
    denoiser = make(options)
    early = [frame for hints in HINTS[:frames] for frame in denoiser.push(hints)]
    assert all(torch.equal(frame.latents, whole[frame.index].latents) for frame in early)


def storages(denoiser: Denoiser) -> dict[int, int]:
    frames = [*denoiser._frames.values(), *(kept.frame for kept in denoiser._overlap._records.values())]
    waiting = [(frame.latents, *frame.embeddings.values(), *frame.waiting.values()) for frame in frames]
    tensors = [parked.take() for each in waiting for parked in each]
    tensors += [tensor for frame in frames for tensor in (frame.total, *frame.residuals.values())]
    for kept in denoiser._overlap._records.values():
        tensors += [residual.take() for residual in kept.residuals.values()]
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}


@pytest.mark.parametrize(("window", "stride", "steps"), [(8, 6, 3), (7, 3, 4), (5, 5, 2), (6, 1, 2)])
def test_memory_does_not_grow_with_the_stream(window, stride, steps):
    options = DenoiseSettings(
        window=window, stride=stride, steps=steps, guidance=2.0, mode="anchored", controlnet_scales=SCALES
    )
    denoiser = make(options)
    held = []
    for place in range(240):
        denoiser.push(HINTS[place % 64])
        records = denoiser._overlap._records
        assert len(records) <= steps * (window - stride)
        held.append(sum(storages(denoiser).values()))
    assert max(held[60:150]) == max(held[150:]) <= max(held[:60])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["ddim", "lcm", "euler"])
def test_words_keys_and_seeds_of_frames_are_their_own(guidance, kind):
    options = DenoiseSettings(
        window=5, stride=3, steps=3, guidance=guidance, seed=4, mode="anchored", controlnet_scales=SCALES
    )
    said = []
    for place in range(16):
        prompt = torch.lerp(TEXT, NEGATIVE, min(1.0, place / 10))
        said.append(prompt if guidance == 1.0 else torch.cat([NEGATIVE, prompt]))
    scheduler = make_scheduler(CONFIG, kind=kind, steps=3)
    final, _ = blended(stand_in_networks(), HINTS[:16], said, scheduler, options)
    denoiser = make(replace(options, seed=0), kind)
    committed = []
    for place in range(16):
        committed += denoiser.push(HINTS[place], text=said[place], seed=4, key=place)
    assert torch.equal(latents(committed + denoiser.finish()), torch.stack(final))
    other = make(options, kind)
    committed = [each for place in range(16) for each in other.push(HINTS[place], key=place + 1)]
    assert not torch.allclose(latents(committed + other.finish()), torch.stack(final), atol=1e-2)


def test_what_is_new_grows_out_of_what_was_sent():
    options = DenoiseSettings(window=6, stride=4, steps=4, mode="anchored", controlnet_scales=SCALES)
    beside_one_another = replace(options, window=4, stride=4)
    anchored = latents(streamed(make(options), 10))
    apart = latents(streamed(make(beside_one_another), 10))
    # The first segment is longer; from there on the new frames are the same ones, with and without a past.
    assert not torch.allclose(anchored[6:], apart[6:], atol=1e-2)
    denoiser = make(options)
    committed = [frame for hints in [*HINTS[20:26], *HINTS[6:10]] for frame in denoiser.push(hints)]
    assert not torch.allclose(latents(committed)[6:], anchored[6:], atol=1e-4)


def test_networks_may_be_replaced_between_any_two_runs():
    boundaries = []
    options = DenoiseSettings(window=4, stride=3, steps=3, mode="anchored", controlnet_scales=SCALES)
    denoiser = make(options, at_boundary=lambda: boundaries.append(denoiser.evaluations.unet_calls))
    streamed(denoiser, 8)
    assert boundaries == list(range(9))
