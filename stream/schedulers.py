"""DDIM (η = 0), LCM and Euler as pure step functions of (x, ε, t), equal to diffusers' schedulers.

One step of each is linear in the latents x, the network's output o, the predicted clean latents x0 and fresh
noise:

    x0 = a·x + b·o          x' = p·x0 + q·x + r·o + n·noise

so a scheduler is a table with one row of coefficients per step, and holds nothing else. Frames at different
steps can share a batch: every frame picks its own row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from toonstream.errors import ModelError, SettingError

__all__ = ["SCHEDULER_KINDS", "Scheduler", "make_scheduler"]

_SIGMA_DATA = 0.5  # LCM's boundary condition

# What would change the numbers in ways that are not built here, with the value that leaves them alone.
_NEUTRAL: Mapping[str, object] = {
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
}
_NEUTRAL_EULER: Mapping[str, object] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
}


class _Row(NamedTuple):
    """Coefficients of one step: of the table (T,) each, or as picked for a batch (N, 1, 1, 1)."""

    input_scale: Tensor
    x0_from_sample: Tensor
    x0_from_output: Tensor
    next_from_x0: Tensor
    next_from_sample: Tensor
    next_from_output: Tensor
    next_from_noise: Tensor
    sample_from_x0: Tensor
    sample_from_noise: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Scheduler:
    """A few-step sampler, stateless.

    Everywhere `step` is the index of a step, 0 the noisiest: one for the whole batch, or an int64 tensor (N,)
    with one for each of the N frames of a batch (N, C, h, w).

    Attributes:
        timesteps: (T,) float32, what the networks are told at each step; falling.
        initial_sigma: standard deviation of the noise that frames start from.
        needs_noise: whether `step` wants fresh noise after each step but the last.
        table: (T, 9) float32, the coefficients of each step.
        clip: x0 is held within ± this, or None.
    """

    timesteps: Tensor
    initial_sigma: float
    needs_noise: bool
    table: Tensor
    clip: float | None

    @property
    def steps(self) -> int:
        """Denoising steps (T)."""
        return len(self.timesteps)

    def scale(self, sample: Tensor, step: int | Tensor) -> Tensor:
        """Latents as the networks want to see them at `step`."""
        return sample * self._row(sample, step).input_scale

    def noised(self, x0: Tensor, noise: Tensor, step: int | Tensor) -> Tensor:
        """Clean latents as they would be at `step`, given standard normal noise."""
        row = self._row(x0, step)
        return row.sample_from_x0 * x0 + row.sample_from_noise * noise

    def predict_x0(self, sample: Tensor, output: Tensor, step: int | Tensor) -> Tensor:
        """The clean latents that the network's output implies."""
        row = self._row(sample, step)
        x0 = row.x0_from_sample * sample + row.x0_from_output * output
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def step(self, sample: Tensor, output: Tensor, step: int | Tensor, noise: Tensor | None = None) -> Tensor:
        """The latents one step further on.

        Args:
            sample: latents at `step`, (N, C, h, w) float32, not scaled.
            output: the network's output for them, same shape.
            step: index, or (N,) indices.
            noise: standard normal, same shape; wanted where `needs_noise`, and ignored after the last step.

        Raises:
            ValueError: noise is wanted and not given.
        """
        return self.step_from_x0(sample, output, self.predict_x0(sample, output, step), step, noise)

    def step_from_x0(
        self, sample: Tensor, output: Tensor, x0: Tensor, step: int | Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """The latents one step further on, towards other clean latents than the network has in mind.

        What it says of the noise stays. With `predict_x0`'s own x0 this is `step`, and so are the other
        arguments and what is raised.
        """
        row = self._row(sample, step)
        following = row.next_from_x0 * x0 + row.next_from_sample * sample + row.next_from_output * output
        if noise is not None:
            return following + row.next_from_noise * noise
        if self.needs_noise and bool(row.next_from_noise.any()):
            raise ValueError("This scheduler adds noise after every step but the last: pass `noise`.")
        return following

    def _row(self, sample: Tensor, step: int | Tensor) -> _Row:
        rows = self.table[step].to(sample.device, non_blocking=True)
        return _Row(*(column.reshape(-1, *[1] * (sample.dim() - 1)) for column in rows.unbind(-1)))


def make_scheduler(config: Mapping[str, object], *, kind: str, steps: int) -> Scheduler:
    """Make a scheduler for a model.

    Follows diffusers' conventions but in three points. Spacing `linspace` runs down from the last timestep,
    so that a single step starts at 999 and not at 0; DDIM then steps to the next timestep of the table, as
    Diffutoon does (diffusers steps to t - 1000/T, off the table). And predictions are clipped only where the
    config says so.

    Args:
        config: diffusers' scheduler_config.json, of whatever scheduler class: betas, `prediction_type`
            (epsilon, v_prediction, sample), `timestep_spacing` (trailing, leading, linspace), and the like.
        kind: `ddim`, `lcm` or `euler`.
        steps: denoising steps, at least 1.

    Raises:
        SettingError: there is no such scheduler, or it cannot make so many steps.
        ModelError: the config lacks something or asks for something that is not supported.
    """
    if kind not in _MAKERS:
        raise SettingError(f"There is no scheduler '{kind}': use {', '.join(SCHEDULER_KINDS)}.")
    neutral = {**_NEUTRAL, **(_NEUTRAL_EULER if kind == "euler" else {})}
    if strange := [name for name, value in neutral.items() if config.get(name, value) != value]:
        raise ModelError(f"The scheduler config sets {strange[0]}, which {kind} does not support: remove it.")
    alphas = _cumulative_alphas(config)
    most = _whole(config, "original_inference_steps", 50) if kind == "lcm" else len(alphas)
    if not 1 <= steps <= most:
        raise SettingError(f"{kind} cannot make {steps} steps with this model: use 1 to {most}.")
    return _MAKERS[kind](config, alphas, steps)


def _ddim(config: Mapping[str, object], alphas: Tensor, steps: int) -> Scheduler:
    timesteps = _spaced(config, len(alphas), steps, default="leading").round()
    if config.get("timestep_spacing") == "linspace":
        following = torch.cat([timesteps[1:], torch.tensor([-1.0], dtype=torch.float64)])
    else:
        following = timesteps - len(alphas) // steps
    final = alphas.new_ones(()) if config.get("set_alpha_to_one", True) else alphas[0]
    now = alphas[timesteps.long()]
    then = torch.where(following < 0, final, alphas[following.long().clamp(min=0)])
    x0_from_sample, x0_from_output = _x0(config, now)
    # ε = (x - √ᾱ·x0) / √(1-ᾱ), of the x0 before it is clipped
    noise_from_sample = (1 - now.sqrt() * x0_from_sample) / (1 - now).sqrt()
    noise_from_output = -now.sqrt() * x0_from_output / (1 - now).sqrt()
    return _scheduler(
        timesteps,
        clip=_clip(config),
        x0_from_sample=x0_from_sample,
        x0_from_output=x0_from_output,
        next_from_x0=then.sqrt(),
        next_from_sample=(1 - then).sqrt() * noise_from_sample,
        next_from_output=(1 - then).sqrt() * noise_from_output,
        sample_from_x0=now.sqrt(),
        sample_from_noise=(1 - now).sqrt(),
    )


def _lcm(config: Mapping[str, object], alphas: Tensor, steps: int) -> Scheduler:
    # Every (steps)th of the timesteps the model was distilled at, from the noisiest.
    distilled = _whole(config, "original_inference_steps", 50)
    trained = torch.arange(distilled, 0, -1) * (len(alphas) // distilled) - 1
    timesteps = trained[torch.arange(steps) * distilled // steps].double()
    now = alphas[timesteps.long()]
    x0_from_sample, x0_from_output = _x0(config, now)
    # After the last step the prediction itself is the result: no noise, no shrinking.
    then = torch.cat([now[1:], now.new_ones(1)])
    scaled = timesteps * _number(config, "timestep_scaling", 10.0)
    boundary = scaled**2 + _SIGMA_DATA**2
    return _scheduler(
        timesteps,
        clip=_clip(config),
        x0_from_sample=x0_from_sample,
        x0_from_output=x0_from_output,
        next_from_x0=then.sqrt() * scaled / boundary.sqrt(),
        next_from_sample=then.sqrt() * _SIGMA_DATA**2 / boundary,
        next_from_noise=(1 - then).sqrt(),
        sample_from_x0=now.sqrt(),
        sample_from_noise=(1 - now).sqrt(),
    )


def _euler(config: Mapping[str, object], alphas: Tensor, steps: int) -> Scheduler:
    timesteps = _spaced(config, len(alphas), steps, default="linspace")
    trained = ((1 - alphas) / alphas).sqrt()
    below = timesteps.long()
    now = torch.lerp(trained[below], trained[(below + 1).clamp(max=len(alphas) - 1)], timesteps - below)
    then = torch.cat([now[1:], now.new_zeros(1)])
    largest = float(now[0])
    # x is kept as x0 + σ·ε; the table of x0 is for latents scaled to unit variance.
    unit = 1 / (now**2 + 1).sqrt()
    x0_from_scaled, x0_from_output = _x0(config, unit**2)
    return _scheduler(
        timesteps,
        initial_sigma=(largest**2 + 1) ** 0.5 if config.get("timestep_spacing") == "leading" else largest,
        input_scale=unit,
        x0_from_sample=x0_from_scaled * unit,
        x0_from_output=x0_from_output,
        next_from_x0=1 - then / now,
        next_from_sample=then / now,
        sample_from_x0=torch.ones_like(now),
        sample_from_noise=now,
    )


_MAKERS: Mapping[str, Callable[[Mapping[str, object], Tensor, int], Scheduler]] = {
    "ddim": _ddim,
    "lcm": _lcm,
    "euler": _euler,
}
SCHEDULER_KINDS = tuple(_MAKERS)


def _scheduler(
    timesteps: Tensor, *, initial_sigma: float = 1.0, clip: float | None = None, **columns: Tensor
) -> Scheduler:
    """Lay the columns out as a table: those not given are 1 for the input's scale and 0 otherwise."""
    filled = {"input_scale": torch.ones_like(timesteps), **columns}
    table = [filled.get(name, torch.zeros_like(timesteps)) for name in _Row._fields]
    return Scheduler(
        timesteps=timesteps.float(),
        initial_sigma=initial_sigma,
        needs_noise="next_from_noise" in columns,
        table=torch.stack(table, dim=-1).float(),
        clip=clip,
    )


def _x0(config: Mapping[str, object], alphas: Tensor) -> tuple[Tensor, Tensor]:
    """What x0 takes from the latents and from the output, at ᾱ (T,)."""
    match config.get("prediction_type", "epsilon"):
        case "epsilon":
            return 1 / alphas.sqrt(), -((1 - alphas) / alphas).sqrt()
        case "v_prediction":
            return alphas.sqrt(), -(1 - alphas).sqrt()
        case "sample":
            return torch.zeros_like(alphas), torch.ones_like(alphas)
        case other:
            raise ModelError(
                f"The scheduler config's prediction_type '{other}' is unknown: "
                "use epsilon, v_prediction or sample."
            )


def _cumulative_alphas(config: Mapping[str, object]) -> Tensor:
    """ᾱ of every training timestep, float64; computed in float32 as diffusers does, to the same rounding."""
    start, end = _number(config, "beta_start"), _number(config, "beta_end")
    count = _whole(config, "num_train_timesteps", 1000)
    match config.get("beta_schedule"):
        case "linear":
            betas = torch.linspace(start, end, count)
        case "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, count) ** 2
        case other:
            raise ModelError(
                f"The scheduler config's beta_schedule '{other}' is unknown: use linear or scaled_linear."
            )
    return torch.cumprod(1 - betas, dim=0).double()


def _spaced(config: Mapping[str, object], count: int, steps: int, *, default: str) -> Tensor:
    """The timesteps, falling, (T,) float64; `default` is diffusers' spacing where none is named."""
    places = torch.arange(steps, dtype=torch.float64)
    match config.get("timestep_spacing", default):
        case "trailing":
            return (count - places * (count / steps)).round() - 1
        case "leading":
            return places.flip(0) * (count // steps) + _whole(config, "steps_offset", 0)
        case "linspace":
            # Counted up from 0 and turned round, to round as numpy's linspace does.
            return places.flip(0) * ((count - 1) / (steps - 1)) if steps > 1 else places + (count - 1)
        case other:
            raise ModelError(
                f"The scheduler config's timestep_spacing '{other}' is unknown: "
                "use trailing, leading or linspace."
            )


def _clip(config: Mapping[str, object]) -> float | None:
    return _number(config, "clip_sample_range", 1.0) if config.get("clip_sample", False) else None


def _number(config: Mapping[str, object], name: str, default: float | None = None) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float):
        raise ModelError(f"The scheduler config needs a number for {name}: add it.")
    return float(value)


def _whole(config: Mapping[str, object], name: str, default: int) -> int:
    return int(_number(config, name, default))
