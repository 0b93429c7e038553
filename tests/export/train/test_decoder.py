"""What the decoder is judged by beyond the picture: steps across the borders of patches."""

import torch

from toonstream.export.train.decoder import border_loss


def test_only_steps_across_borders_count_and_only_those_that_are_wrong() -> None:
    target = torch.rand(1, 3, 32, 32)
    assert border_loss(target, target, 8) == 0.0
    patches = torch.randn(1, 3, 4, 4).repeat_interleave(8, -1).repeat_interleave(8, -2)
    assert border_loss(target + patches, target, 8) > 0.5
    assert border_loss(target + 0.5, target, 8) < 1e-6
    inside = target.clone()
    inside[..., 2:6, 2:6] += 1.0
    assert border_loss(inside, target, 8) < 1e-6
    brim = target.clone()
    brim[..., 7] += 1.0
    assert abs(border_loss(brim, target, 8) - 1.0 / 3.0) < 1e-6
