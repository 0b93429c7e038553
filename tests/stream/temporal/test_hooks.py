"""What parts that take hold of the denoiser are told, and when."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from toonstream.config import Mode
from toonstream.stream.denoise import Committed, Denoiser, DenoiseSettings
from toonstream.stream.schedulers import make_scheduler

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "timestep_spacing": "trailing"}
SCALES = {"outline": 0.8, "colour": 1.3}
IMAGE = np.zeros((30, 15, 3), np.uint8)


def beside(name: str) -> ModuleType:
    """A module of the folder above: tests are no package and have no import path of their own."""
    spec = spec_from_file_location(f"toonstream_tests_{name}", Path(__file__).parents[1] / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


offline = beside("offline")


def random(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


HINTS = [{name: random(3, 32, 16, seed=3 * i + len(name)) for name in SCALES} for i in range(20)]


def denoiser(networks=None, *, kind: str = "ddim", mode: Mode = "wavefront", guidance: float = 1.0, **parts):
    options = DenoiseSettings(
        window=4, stride=2, steps=3, guidance=guidance, mode=mode, controlnet_scales=SCALES
    )
    return Denoiser(
        networks or offline.stand_in_networks(),
        scheduler=make_scheduler(CONFIG, kind=kind, steps=3),
        text=random(1, 77, 4, seed=1),
        negative_text=random(1, 77, 4, seed=2),
        settings=options,
        latent_channels=2,
        **parts,
    )


def streamed(made: Denoiser, frames: int = 13, *, cut: int | None = None) -> list[Committed]:
    committed = []
    for place, hints in enumerate(HINTS[:frames]):
        if place == cut:
            committed += made.cut()
        committed += made.push(hints, image=IMAGE + place)
    return committed + made.finish()


def stacked(committed: list[Committed]) -> Tensor:
    assert [frame.index for frame in committed] == list(range(len(committed)))
    return torch.stack([frame.latents for frame in committed])


class Fusing:
    """Moves every frame towards the mean of its group, and writes down what it is told."""

    def __init__(self, strength: float = 0.0) -> None:
        self.strength = strength
        self.told: list[tuple[object, ...]] = []

    def arrive(self, index, image):
        self.told.append(("arrive", index, int(image[0, 0, 0])))

    def fuse(self, indices, step, x0):
        self.told.append(("fuse", tuple(indices), step, tuple(x0.shape)))
        return x0.lerp(x0.mean(dim=0), self.strength) if self.strength else x0

    def cut(self):
        self.told.append(("cut",))

    def groups(self, step: int) -> list[tuple[int, ...]]:
        return [entry[1] for entry in self.told if entry[0] == "fuse" and entry[2] == step]


@pytest.mark.parametrize("kind", ["ddim", "lcm", "euler"])
@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_fusion_that_changes_nothing_leaves_every_bit(kind, mode):
    plain = stacked(streamed(denoiser(kind=kind, mode=mode)))
    fusing = Fusing()
    assert torch.equal(stacked(streamed(denoiser(kind=kind, mode=mode, fusion=fusing))), plain)
    for step in range(3):
        groups = fusing.groups(step)
        assert [index for group in groups for index in group] == list(range(13))
        assert groups == fusing.groups(0)


def test_a_fusion_changes_what_comes_out_and_the_same_way_skewed_and_not():
    plain = stacked(streamed(denoiser()))
    ways = [Fusing(0.5), Fusing(0.5)]
    modes: list[Mode] = ["wavefront", "skewed"]
    fused = [
        stacked(streamed(denoiser(mode=mode, fusion=way))) for mode, way in zip(modes, ways, strict=True)
    ]
    assert not torch.allclose(fused[0], plain, atol=1e-2)
    torch.testing.assert_close(fused[0], fused[1], rtol=1e-3, atol=1e-4)
    assert ways[0].groups(1) == ways[1].groups(1)


def test_a_fusion_hears_of_frames_as_they_come_and_of_cuts():
    fusing = Fusing()
    streamed(denoiser(fusion=fusing), 7, cut=5)
    assert [entry[1:] for entry in fusing.told if entry[0] == "arrive"] == [(n, n) for n in range(7)]
    cut = fusing.told.index(("cut",))
    assert {entry[1][0] for entry in fusing.told[:cut] if entry[0] == "fuse"} <= set(range(5))
    assert ("arrive", 5, 5) in fusing.told[cut:]
    assert fusing.groups(2)[-1][-1] == 6
    with pytest.raises(ValueError, match="image"):
        denoiser(fusion=Fusing()).push(HINTS[0])


class Remembering:
    """Hands the UNet what it gave of the latest frame that climbed."""

    def __init__(self, sides: int) -> None:
        self.sides = sides
        self.kept: dict[int, dict[int, Tensor]] = {}
        self.latest = torch.zeros(sides, 1)
        self.done: list[list[int]] = [[], [], []]
        self.asked: list[tuple[int, range]] = []
        self.cuts = 0

    def inputs(self, step, frames, latent_size):
        assert latent_size == (4, 2)
        self.asked.append((step, frames))
        return {"memory": self.latest + step}

    def keep(self, step, frames, outputs):
        assert outputs.keys() == {"cache"}
        assert outputs["cache"].shape == (self.sides, len(frames))
        assert step not in self.kept
        self.kept[step] = {index: outputs["cache"][:, place] for place, index in enumerate(frames)}

    def climbed(self, step, indices):
        self.done[step] += indices
        kept = self.kept.pop(step, None)
        if kept is not None:
            assert kept.keys() >= set(indices)
            self.latest = kept[indices[-1]][:, None]

    def cut(self):
        self.cuts += 1
        self.latest = torch.zeros(self.sides, 1)


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_memory_is_asked_before_a_window_and_given_what_comes_of_it(mode):
    networks = offline.stand_in_networks()
    plain, seen = networks["unet"], []

    def unet(memory, **given):
        seen.append(memory)
        return plain(given) | {"cache": given["sample"].mean((2, 3, 4)) + memory}

    memory = Remembering(sides=2)
    made = denoiser({**networks, "unet": offline.StandIn(unet)}, guidance=2.0, mode=mode, reference=memory)
    streamed(made, 19, cut=6)
    assert memory.done == [list(range(19))] * 3
    assert memory.cuts == 1
    assert not memory.kept
    # Rows are side after side, and window after window within a side; each window has its own step.
    asked = iter(memory.asked)
    for tensor in seen:
        windows = [next(asked) for _ in range(len(tensor) // 2)]
        assert tensor.shape == (2 * len(windows), 1)
        assert len({frames.start for _, frames in windows}) == len(windows)
    assert next(asked, None) is None
    spans = {(frames.start, frames.stop) for _, frames in memory.asked}
    assert spans == {(0, 4), (2, 6), (6, 10), (8, 12), (10, 14), (12, 16), (14, 18), (16, 19)}
    assert len(seen) < len(memory.asked) if mode == "skewed" else len(seen) == len(memory.asked)
