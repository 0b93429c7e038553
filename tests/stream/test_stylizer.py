from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from toonstream.stream.conditions import Conditioned
from toonstream.stream.denoise import Committed
from toonstream.stream.frame import Frame
from toonstream.stream.stylizer import Stylizer


class OneLate:
    """Commits every frame when the next one comes."""

    def __init__(self) -> None:
        self.held: list[Committed] = []

    def prepare(self, hints: Mapping[str, Tensor], **words: object) -> Tensor:
        return hints["colour"].mean() * torch.ones(4, 8, 8)

    def enter(self, latents: Tensor, *, image: np.ndarray) -> list[Committed]:
        ready, self.held = self.held, [Committed(index=0, latents=latents)]
        return ready

    def finish(self) -> list[Committed]:
        return self.held

    def cut(self) -> list[Committed]:
        ready, self.held = self.held, []
        return ready


class Decoder:
    inputs = ()
    outputs = ()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert tensors.keys() == {"latents"}
        assert tensors["latents"].shape == (1, 4, 8, 8)
        return {"image": tensors["latents"][:, :3]}


def conditioned(index: int, level: float, scene: int = 0) -> Conditioned:
    image = np.full((6, 7, 3), index, np.uint8)
    frame = Frame(index=index, pts=10 * index, time_base=Fraction(1, 24), image=image)
    return Conditioned(frame=frame, hints={"colour": torch.full((3, 8, 8), level)}, scene=scene)


def test_every_toon_comes_with_its_own_source_frame() -> None:
    stylizer = Stylizer(OneLate(), Decoder(), scale=2.0, shift=-0.5)
    levels = [0.0, 1.0, 2.0]
    toons = [toon for index, level in enumerate(levels) for toon in stylizer.push(conditioned(index, level))]
    assert [toon.toon.index for toon in toons] == [0, 1]
    toons += stylizer.finish()
    for index, (toon, level) in enumerate(zip(toons, levels, strict=True)):
        assert (toon.toon.index, toon.toon.pts, toon.source.index) == (index, 10 * index, index)
        assert toon.source.image[0, 0, 0] == index
        assert toon.toon.image.shape == (6, 7, 3)
        assert (toon.toon.image == round((level / 2.0 - 0.5 + 1.0) * 127.5)).all()


class Inverse:
    inputs = ()
    outputs = ()

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert tensors["image"].shape == (1, 3, 8, 8)
        return {"hint": 1 - tensors["image"]}


def test_hints_that_a_network_draws_are_drawn_before_they_are_used() -> None:
    stylizer = Stylizer(OneLate(), Decoder(), annotators={"colour": Inverse()})
    assert not list(stylizer.push(conditioned(0, 0.25)))
    (toon,) = stylizer.finish()
    assert (toon.toon.image == round((0.75 + 1.0) * 127.5)).all()


def test_a_scene_is_out_before_the_next_one_begins() -> None:
    stylizer = Stylizer(OneLate(), Decoder())
    given = [
        [(toon.toon.index, toon.scene) for toon in stylizer.push(conditioned(index, 0.0, scene=index // 2))]
        for index in range(5)
    ]
    assert given == [[], [(0, 0)], [(1, 0)], [(2, 1)], [(3, 1)]]
    assert [(toon.toon.index, toon.scene) for toon in stylizer.finish()] == [(4, 2)]
