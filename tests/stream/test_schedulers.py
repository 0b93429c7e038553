"""The schedulers against diffusers', step by step."""

from collections.abc import Iterator

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler
from torch import Tensor

from toonstream.errors import ModelError, SettingError
from toonstream.stream.schedulers import Scheduler, make_scheduler

# diffusers' Euler hands torch tensors to numpy in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BASE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SHAPE = (5, 4, 3, 6)


def normal(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def network(sample: Tensor, timestep: float) -> Tensor:
    return torch.tanh(sample + timestep / 1000)


def both(ours: Scheduler, theirs: object) -> Iterator[tuple[Tensor, Tensor]]:
    """The latents of both after each step, each following its own path."""
    theirs.set_timesteps(ours.steps)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps.float(), rtol=0, atol=0)
    assert ours.initial_sigma == pytest.approx(float(theirs.init_noise_sigma), rel=1e-5)
    sample = expected = normal(0) * ours.initial_sigma
    for index, timestep in enumerate(theirs.timesteps):
        scaled = theirs.scale_model_input(expected, timestep)
        torch.testing.assert_close(ours.scale(sample, index), scaled, rtol=1e-4, atol=1e-4)
        output = network(scaled, float(timestep))
        # LCM draws its noise from a generator; the same noise is handed to ours.
        generator = torch.Generator().manual_seed(index)
        expected = theirs.step(output, timestep, expected, generator=generator, return_dict=False)[0]
        output = network(ours.scale(sample, index), float(ours.timesteps[index]))
        sample = ours.step(sample, output, index, noise=normal(index) if ours.needs_noise else None)
        yield sample, expected


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 10, 25])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("kind", "reference", "options"),
    [
        ("ddim", DDIMScheduler, {}),
        (
            "ddim",
            DDIMScheduler,
            {"beta_schedule": "scaled_linear", "clip_sample": True, "clip_sample_range": 0.7},
        ),
        (
            "ddim",
            DDIMScheduler,
            {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
        ),
        ("lcm", LCMScheduler, {}),
        (
            "lcm",
            LCMScheduler,
            {"beta_schedule": "scaled_linear", "clip_sample": True, "timestep_scaling": 3.0},
        ),
        ("euler", EulerDiscreteScheduler, {}),
        ("euler", EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
        ("euler", EulerDiscreteScheduler, {"timestep_spacing": "linspace", "beta_schedule": "scaled_linear"}),
    ],
)
def test_equals_diffusers_step_by_step(kind, reference, options, prediction, steps):
    if steps == 1 and options.get("timestep_spacing") == "linspace":
        pytest.skip("diffusers starts a single linspace step at timestep 0")
    config = {**BASE, "prediction_type": prediction, **options}
    accepted = {name: value for name, value in config.items() if name in reference().config}
    ours = make_scheduler(config, kind=kind, steps=steps)
    taken = list(both(ours, reference(**accepted)))
    assert len(taken) == steps
    for sample, expected in taken:
        torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", range(2, 51))
def test_linspace_is_the_table_of_diffutoon_and_of_diffusers(steps):
    ours = make_scheduler({**BASE, "timestep_spacing": "linspace"}, kind="ddim", steps=steps)
    theirs = DDIMScheduler(timestep_spacing="linspace")
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    # 499.5 in the middle of an odd number of steps goes either way.
    torch.testing.assert_close(ours.timesteps, torch.linspace(999, 0, steps).round(), rtol=0, atol=1)


@pytest.mark.parametrize("kind", ["ddim", "euler"])
def test_a_single_linspace_step_starts_at_the_noisiest_timestep(kind):
    ours = make_scheduler({**BASE, "timestep_spacing": "linspace"}, kind=kind, steps=1)
    assert ours.timesteps.tolist() == [999.0]
    sample, output = normal(0) * ours.initial_sigma, normal(1)
    torch.testing.assert_close(ours.step(sample, output, 0), ours.predict_x0(sample, output, 0))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [2, 4, 10, 28])
def test_ddim_on_linspace_steps_from_timestep_to_timestep(prediction, steps):
    """DDIM is Euler's method on latents x0 + σ·ε, and diffusers' Euler has the same table here."""
    config = {**BASE, "timestep_spacing": "linspace", "prediction_type": prediction}
    ours = make_scheduler(config, kind="ddim", steps=steps)
    theirs = EulerDiscreteScheduler(
        **{name: value for name, value in config.items() if name != "clip_sample"}
    )
    theirs.set_timesteps(steps)
    assert ours.timesteps.tolist() == pytest.approx(theirs.timesteps.tolist(), abs=1e-3)
    sample = normal(0)
    expected = sample * (theirs.sigmas[0] ** 2 + 1) ** 0.5
    for index, timestep in enumerate(theirs.timesteps):
        scaled = theirs.scale_model_input(expected, timestep)
        torch.testing.assert_close(sample, scaled, rtol=1e-4, atol=1e-4)
        expected = theirs.step(network(scaled, 0.0), timestep, expected, return_dict=False)[0]
        sample = ours.step(sample, network(sample, 0.0), index)
    torch.testing.assert_close(sample, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["ddim", "lcm", "euler"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_frames_of_a_batch_may_stand_at_different_steps(kind, prediction):
    ours = make_scheduler({**BASE, "prediction_type": prediction}, kind=kind, steps=4)
    sample, output, noise = normal(0), normal(1), normal(2)
    steps = torch.tensor([0, 3, 1, 2, 0])
    together = (
        ours.scale(sample, steps),
        ours.predict_x0(sample, output, steps),
        ours.step(sample, output, steps, noise),
    )
    for frame, step in enumerate(steps.tolist()):
        one = slice(frame, frame + 1)
        alone = (
            ours.scale(sample[one], step),
            ours.predict_x0(sample[one], output[one], step),
            ours.step(sample[one], output[one], step, noise[one]),
        )
        assert all(torch.equal(batch[one], single) for batch, single in zip(together, alone, strict=True))


def test_a_step_changes_nothing_it_is_given():
    ours = make_scheduler(BASE, kind="lcm", steps=2)
    given = normal(0), normal(1), normal(2)
    kept = [tensor.clone() for tensor in given]
    first, second = (ours.step(given[0], given[1], 0, given[2]) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, kept, strict=True))


def test_only_lcm_wants_noise_and_not_after_the_last_step():
    ours = {kind: make_scheduler(BASE, kind=kind, steps=2) for kind in ("ddim", "lcm", "euler")}
    assert [kind for kind, scheduler in ours.items() if scheduler.needs_noise] == ["lcm"]
    with pytest.raises(ValueError, match="pass `noise`"):
        ours["lcm"].step(normal(0), normal(1), 0)
    assert torch.equal(
        ours["lcm"].step(normal(0), normal(1), 1), ours["lcm"].step(normal(0), normal(1), 1, normal(2))
    )


def test_euler_extends_to_timesteps_between_the_trained_ones():
    ours = make_scheduler({**BASE, "timestep_spacing": "linspace"}, kind="euler", steps=6)
    assert ours.timesteps[1].item() == pytest.approx(799.2)


@pytest.mark.parametrize(("kind", "steps"), [("ddim", 0), ("ddim", 1001), ("lcm", 51), ("heun", 4)])
def test_refuses_impossible_settings(kind, steps):
    with pytest.raises(SettingError, match="use "):
        make_scheduler(BASE, kind=kind, steps=steps)


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_start": None},
        {"prediction_type": "flow"},
        {"timestep_spacing": "karras"},
        {"use_karras_sigmas": True},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_refuses_configs_it_would_get_wrong(change):
    with pytest.raises(ModelError, match="scheduler config"):
        make_scheduler({**BASE, **change}, kind="euler", steps=4)


@pytest.mark.parametrize("kind", ["ddim", "lcm", "euler"])
def test_noise_is_added_as_diffusers_adds_it(kind):
    reference = {"ddim": DDIMScheduler, "lcm": LCMScheduler, "euler": EulerDiscreteScheduler}[kind]
    reference = reference.from_config(BASE)
    ours = make_scheduler(BASE, kind=kind, steps=4)
    reference.set_timesteps(4)
    clean, noise = normal(0), normal(1)
    for step, timestep in enumerate(reference.timesteps):
        expected = reference.add_noise(clean, noise, timestep.reshape(1))
        torch.testing.assert_close(ours.noised(clean, noise, step), expected, rtol=1e-4, atol=1e-4)
    steps = torch.tensor([3, 0, 1, 2, 2])
    mixed = ours.noised(clean, noise, steps)
    for place, step in enumerate(steps):
        assert torch.equal(mixed[place], ours.noised(clean, noise, int(step))[place])
