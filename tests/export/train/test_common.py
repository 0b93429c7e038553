"""What training judges pictures by."""

import pytest
import torch

from toonstream.export.train.common import flat_loss

_LEVEL = 1.0 / 127.5


def test_flat_loss_counts_steps_that_the_target_does_not_have() -> None:
    target = torch.rand(1, 3, 32, 32) * 2 - 1
    assert flat_loss(target, target) == 0.0
    assert flat_loss(target + 0.1, target) < 1e-6
    assert flat_loss(target.flip(-1), target) > 0.0


def test_a_step_in_the_sky_counts_more_than_one_among_leaves() -> None:
    step = torch.zeros(1, 3, 32, 32)
    step[..., 16:] = _LEVEL
    sky, leaves = torch.zeros(1, 3, 32, 32), torch.rand(1, 3, 32, 32) * 2 - 1
    assert flat_loss(sky + step, sky) > 100 * flat_loss(leaves + step, leaves)


def test_a_rim_beside_an_edge_counts_nearly_as_in_the_open() -> None:
    edge, rim, open_ = (torch.zeros(1, 3, 32, 32) for _ in range(3))
    edge[..., :8] = -1.0
    rim[..., 12] = open_[..., 24] = _LEVEL
    beside, alone = flat_loss(edge + rim, edge), flat_loss(edge + open_, edge)
    assert beside > 0.8 * alone


def test_a_step_that_is_spread_counts_less_than_one_that_is_moved() -> None:
    sky = torch.zeros(1, 3, 32, 32)
    border, moved, spread = (torch.zeros(1, 3, 32, 32) for _ in range(3))
    border[..., 16:], moved[..., 12:] = _LEVEL, _LEVEL
    spread[...] = torch.linspace(0, 1, 32) * _LEVEL
    assert flat_loss(moved, sky) == pytest.approx(float(flat_loss(border, sky)))
    assert flat_loss(spread, sky) < 0.2 * flat_loss(border, sky)
