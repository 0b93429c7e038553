"""The screened Poisson solve gives back what differences and values say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from toonstream.stream.temporal.poisson import ScreenedPoisson

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


def picture(size: tuple[int, int], seed: int, channels: int = 3) -> Tensor:
    return torch.randn((channels, *size), generator=torch.Generator().manual_seed(seed))


def solver(size: tuple[int, int], screening: float) -> ScreenedPoisson:
    return ScreenedPoisson(size, screening=screening, device=torch.device("cpu"))


@given(size=SIZES, screening=st.floats(0.01, 100), level=st.floats(-9, 9))
@settings(deadline=None)
def test_a_constant_stays(size: tuple[int, int], screening: float, level: float) -> None:
    flat = torch.full((2, *size), level)
    solved = solver(size, screening)(flat, flat.diff(dim=-1), flat.diff(dim=-2))
    torch.testing.assert_close(solved, flat, rtol=1e-4, atol=1e-4)


@given(size=SIZES, screening=st.floats(0.01, 100), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_picture_comes_back_from_its_own_differences(
    size: tuple[int, int], screening: float, seed: int
) -> None:
    own = picture(size, seed)
    solved = solver(size, screening)(own, own.diff(dim=-1), own.diff(dim=-2))
    torch.testing.assert_close(solved, own, rtol=1e-3, atol=1e-3)
    mean = own.mean((-2, -1), keepdim=True)
    from_the_mean = solver(size, screening=1e-4)(
        mean.expand_as(own).clone(), own.diff(dim=-1), own.diff(dim=-2)
    )
    torch.testing.assert_close(from_the_mean, own, rtol=0.05, atol=0.05)


@given(size=SIZES, screening=st.floats(0.01, 10), seed=st.integers(0, 99))
@settings(deadline=None)
def test_nothing_fits_better(size: tuple[int, int], screening: float, seed: int) -> None:
    """At the solution the gradient of what is minimised is zero."""
    values, other = picture(size, seed).double(), picture(size, seed + 100).double()
    across, down = other.diff(dim=-1), other.diff(dim=-2)
    solved = solver(size, screening)(values.float(), across.float(), down.float()).double().requires_grad_()
    cost = (
        (solved.diff(dim=-1) - across).square().sum()
        + (solved.diff(dim=-2) - down).square().sum()
        + screening * (solved - values).square().sum()
    )
    (gradient,) = torch.autograd.grad(cost, solved)
    assert gradient.abs().max() < 1e-3


@pytest.mark.parametrize("screening", [0.1, 1.0])
def test_a_step_in_the_values_that_the_differences_do_not_know_is_smoothed(screening: float) -> None:
    values = torch.zeros(1, 16, 32)
    values[..., 16:] = 1.0
    solved = solver((16, 32), screening)(values, torch.zeros(1, 16, 31), torch.zeros(1, 15, 32))
    assert solved.diff(dim=-1).max() < 0.5
    assert solved[0, 8, 0] < 0.1
    assert solved[0, 8, -1] > 0.9
    torch.testing.assert_close(solved.mean(), values.mean())
