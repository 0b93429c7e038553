"""Tiles: how large, where, and how close to the whole."""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import pytest
import torch
from diffusers import AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from toonstream.engines.engine import Network, NetworkSource
from toonstream.engines.torch import TorchEngine
from toonstream.export.networks.base import TensorModule, spec
from toonstream.export.networks.vae import VaeDecoder, VaeEncoder
from toonstream.stream.tiling import Cost, Tiled, _weights, available_memory, choose_tile, tile_starts

TINY = {"decoder_block_out_channels": [64] * 4, "encoder_block_out_channels": [64] * 4}
FULL = {"block_out_channels": [128, 256, 512, 512]}
SIDES = st.integers(1, 512)


def test_what_memory_an_autoencoder_takes() -> None:
    """As was measured on a CPU in float32: 1.1 kB and 4.4 to 5.7 kB a pixel, attention apart."""
    assert Cost.of(TINY) == Cost(pixel=1280)
    assert Cost.of(FULL) == Cost(pixel=5120, pair=8)
    assert Cost.of(FULL, itemsize=2).pixel == 2560
    assert Cost.of({**FULL, "mid_block_add_attention": False}).pair == 0
    assert Cost.of({**TINY, "in_channels": 192, "out_channels": 192}) == Cost(pixel=60, factor=64)
    assert Cost(pixel=10, pair=3).bytes(2, 4) == 8 * 64 * 10 + 64 * 3


@given(SIDES, SIDES, st.integers(10, 10**12))
def test_a_tile_is_the_whole_or_fits_or_is_as_small_as_can_be(height: int, width: int, memory: int) -> None:
    cost = Cost.of(FULL)
    tile = choose_tile(height, width, cost=cost, available=memory)
    assert all(0 < part <= side for part, side in zip(tile, (height, width), strict=True))
    if cost.bytes(height, width) <= memory:
        assert tile == (height, width)
    else:
        assert cost.bytes(*tile) <= memory or max(tile) <= 48


@given(SIDES, SIDES, st.integers(10, 10**12), st.integers(0, 10**12))
def test_more_memory_never_means_smaller_tiles(height: int, width: int, memory: int, more: int) -> None:
    def area(available: int) -> int:
        tile = choose_tile(height, width, cost=Cost.of(TINY), available=available)
        return tile[0] * tile[1]

    assert area(memory) <= area(memory + more)


def test_paper_size_with_the_full_autoencoder_in_4_gigabytes() -> None:
    assert choose_tile(64, 64, cost=Cost.of(FULL), available=4 << 30) == (64, 64)
    assert choose_tile(192, 192, cost=Cost.of(FULL), available=4 << 30) == (75, 104)


@given(st.integers(1, 600), st.integers(48, 600))
def test_tiles_cover_everything_and_overlap(length: int, tile: int) -> None:
    starts = tile_starts(length, tile)
    assert starts[0] == 0
    if tile >= length:
        assert starts == [0]
        return
    assert starts[-1] + tile == length
    for one, next_one in pairwise(starts):
        assert 0 < next_one - one <= tile - 16


@given(st.integers(1, 600), st.integers(48, 600))
def test_every_pixel_counts_once(length: int, tile: int) -> None:
    starts, tile = tile_starts(length, tile), min(tile, length)
    total = torch.zeros(length)
    for start, weight in zip(starts, _weights(starts, tile, 1), strict=True):
        total[start : start + tile] += weight
    torch.testing.assert_close(total, torch.ones(length))


class Blocks(TensorModule):
    """Gives each latent pixel as a block of 8 × 8 pixels, or back: tiles must then not show at all."""

    def __init__(self, *, decodes: bool) -> None:
        super().__init__()
        latents, image = spec("latents", "batch", 3, "h", "w"), spec("image", "batch", 3, "8h", "8w")
        self.inputs, self.outputs = ((latents,), (image,)) if decodes else ((image,), (latents,))
        self.decodes = decodes
        self.shapes: set[tuple[int, ...]] = set()

    def forward(self, tensor: Tensor) -> tuple[Tensor]:
        self.shapes.add(tuple(tensor.shape))
        if self.decodes:
            return (functional.interpolate(tensor, scale_factor=8.0),)
        return (functional.avg_pool2d(tensor, 8),)


def network(module: nn.Module) -> Network:
    source = NetworkSource(name="vae", onnx=None, build=lambda: module)
    return TorchEngine(device=torch.device("cpu")).load(source)


def tiled(within: Network, *, side: int) -> Tiled:
    """So little memory that tiles get `side` latent pixels wide and high, or a little less."""
    cost = Cost.of(TINY)
    return Tiled(within, cost=cost, memory=2 * cost.bytes(side, side))


@pytest.mark.parametrize("decodes", [True, False])
@pytest.mark.parametrize(("height", "width"), [(120, 80), (49, 48), (40, 200), (97, 131)])
def test_weights_sum_to_one_and_tiles_have_one_shape(decodes: bool, height: int, width: int) -> None:
    module = Blocks(decodes=decodes)
    unit = 1 if decodes else 8
    name = "latents" if decodes else "image"
    given = {name: torch.randn(1, 3, height * unit, width * unit)}
    whole = network(module)(given)
    module.shapes.clear()
    apart = tiled(network(module), side=44)(given)
    (shape,) = module.shapes
    assert shape[2] * shape[3] < height * width * unit**2
    assert apart.keys() == whole.keys()
    for key, tensor in whole.items():
        torch.testing.assert_close(apart[key], tensor, rtol=0, atol=1e-5)


def test_small_frames_and_much_memory_pass_through() -> None:
    class Whole:
        inputs, outputs = (spec("latents", "batch", 4, "h", "w"),), (spec("image", "batch", 3, "8h", "8w"),)

        def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            self.seen = tensors["latents"]
            return {"image": self.seen}

    within, latents = Whole(), torch.zeros(1, 4, 64, 64)
    decoder = Tiled(within, cost=Cost.of(TINY), memory=1 << 40)
    assert decoder({"latents": latents})["image"] is latents
    assert decoder.inputs == within.inputs
    assert decoder.outputs == within.outputs


def test_a_batch_takes_its_multiple() -> None:
    module = Blocks(decodes=True)
    decoder = tiled(network(module), side=64)
    decoder({"latents": torch.zeros(1, 3, 64, 64)})
    assert module.shapes == {(1, 3, 64, 64)}
    decoder({"latents": torch.zeros(2, 3, 64, 64)})
    assert (2, 3, 64, 64) not in module.shapes


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderTiny:
    """Of TAESD's depth, so that a pixel depends on latents as far away as there, with random weights."""
    torch.manual_seed(0)
    return cast(
        AutoencoderTiny,
        AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).eval(),
    )


@pytest.mark.parametrize("half", [VaeDecoder, VaeEncoder])
def test_no_seam_shows(autoencoder: AutoencoderTiny, half: type[TensorModule]) -> None:
    with torch.no_grad():
        within = network(half(copy.deepcopy(autoencoder)))
        generator = torch.Generator().manual_seed(1)
        if half is VaeDecoder:
            given = {"latents": torch.randn(1, 4, 48, 80, generator=generator)}
        else:
            given = {"image": torch.rand(1, 3, 384, 640, generator=generator) * 2 - 1}
        (whole,), (apart,) = within(given).values(), tiled(within, side=50)(given).values()
    spread = float(whole.std())
    assert spread > 1e-3
    assert not torch.equal(whole, apart)
    assert float((whole - apart).abs().max()) < 0.005 * spread


def test_a_machine_says_how_much_memory_it_has() -> None:
    assert 1 << 20 < available_memory(torch.device("cpu")) < 1 << 50
