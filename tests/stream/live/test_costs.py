import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.stream.live.costs import Costs, Shape

SMALL, LARGE = Shape(256, 256), Shape(512, 512)


def taught(costs: Costs, shape: Shape, seconds: float, times: int = 10) -> Costs:
    for _ in range(times):
        costs.observe("unet", shape, seconds)
    return costs


def test_what_was_never_run_costs_nothing_or_in_proportion_to_the_nearest():
    costs = Costs()
    assert costs.seconds("unet", SMALL) == 0.0
    taught(costs, Shape(256, 256, 4), 0.04)
    assert costs.stages == ("unet",)
    assert costs.seconds("unet", Shape(256, 256, 2)) == pytest.approx(0.02)
    assert costs.seconds("unet", Shape(512, 512, 4)) == pytest.approx(0.16)
    taught(costs, Shape(512, 512, 4), 0.3)
    assert costs.seconds("unet", Shape(512, 512, 8)) == pytest.approx(0.6)
    assert costs.seconds("unet", Shape(256, 256, 1)) == pytest.approx(0.01)


def test_one_hiccup_is_nothing():
    costs = taught(Costs(), SMALL, 0.01)
    costs.observe("unet", SMALL, 5.0)
    assert costs.seconds("unet", SMALL) == pytest.approx(0.01)


def test_a_slower_machine_is_slower_in_every_shape_and_ratios_stay():
    costs = taught(Costs(), LARGE, 0.06)
    taught(costs, SMALL, 0.01)
    taught(costs, SMALL, 0.02, times=100)
    assert costs.seconds("unet", SMALL) == pytest.approx(0.02, rel=1e-3)
    assert costs.seconds("unet", LARGE) == pytest.approx(0.12, rel=1e-3)
    taught(costs, SMALL, 0.005, times=100)
    assert costs.seconds("unet", LARGE) == pytest.approx(0.03, rel=1e-3)
    costs.observe("unet", LARGE, 0.03)  # what was seen of it under load counts no more
    assert costs.seconds("unet", LARGE) == pytest.approx(0.03, rel=1e-3)


def test_what_a_new_shape_turns_out_to_cost_says_nothing_of_the_others():
    costs = taught(Costs(), LARGE, 0.04)
    for _ in range(6):
        costs.observe("unet", SMALL, 0.03)
    assert costs.seconds("unet", LARGE) == pytest.approx(0.04)
    assert costs.seconds("unet", SMALL) == pytest.approx(0.03)


def test_what_was_measured_in_a_bad_moment_and_never_again_is_not_believed_for_ever():
    costs = taught(Costs(), LARGE, 0.04)
    taught(costs, SMALL, 0.01)
    for _ in range(6):
        costs.observe("unet", LARGE, 4.0)  # of which the smaller shape knows too little
    taught(costs, SMALL, 0.3, times=2)
    taught(costs, SMALL, 0.01, times=100)
    assert costs.seconds("unet", LARGE) <= 8 * 0.01 * 1.01
    taught(costs, LARGE, 0.01, times=100)
    assert costs.seconds("unet", SMALL) <= 0.01 * 1.01  # a smaller one costs no more


@given(st.lists(st.floats(1e-4, 10.0), min_size=1, max_size=40))
def test_a_cost_is_within_what_was_observed(values):
    costs = Costs()
    for value in values:
        costs.observe("unet", SMALL, value)
    assert min(values) * 0.999 <= costs.seconds("unet", SMALL) <= max(values) * 1.001
