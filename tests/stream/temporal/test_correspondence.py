"""Latents lie where the source's motion puts them, and are of use where that can be told."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from toonstream.stream.temporal.correspondence import Correspondence, Correspondences
from toonstream.stream.temporal.flow import Flow

Image = NDArray[np.uint8]


def shifted(x: float, y: float, shape: tuple[int, int] = (12, 16)) -> Correspondence:
    flow = np.broadcast_to(np.array([x, y], np.float32), (*shape, 2)).copy()
    return Correspondence(flow=flow, seen=np.ones(shape, np.float32))


def panning(count: int, step: int, height: int = 128, width: int = 160) -> list[Image]:
    """Views of one wide picture; what a frame shows at x, the next one shows at x - step."""
    random = np.random.default_rng(7)
    whole = (height, width + count * step)
    noise = sum(
        scale * cv2.resize(random.standard_normal((whole[0] // scale, whole[1] // scale, 3)), whole[::-1])
        for scale in (4, 8, 16)
    )
    wide = np.asarray((128 + 12 * noise).clip(0, 255), np.uint8)
    return [np.ascontiguousarray(wide[:, index * step :][:, :width]) for index in range(count)]


def arrived(*images: Image, **options: object) -> Correspondences:
    correspondences = Correspondences(**{"multiple": 8, **options})
    for index, image in enumerate(images):
        correspondences.arrive(index, image)
    return correspondences


@given(x=st.integers(-4, 4), y=st.integers(-4, 4))
@settings(deadline=None)
def test_whole_pixels_are_brought_as_they_are(x: int, y: int) -> None:
    latents = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(0))
    brought = shifted(x, y).bring(latents)
    row = (torch.arange(12) + y).clamp(0, 11)
    column = (torch.arange(16) + x).clamp(0, 15)
    torch.testing.assert_close(brought, latents[:, row][:, :, column], rtol=1e-4, atol=1e-4)


def test_what_is_of_use() -> None:
    cpu = torch.device("cpu")
    assert shifted(0, 0).use(cpu).min() == 1  # nothing moves: the border, too
    whole = shifted(3, 0).use(cpu)
    assert (whole[2:-2, 2:11] == 1).all()
    assert whole.sum() == 8 * 9  # nothing near the border, on either side
    assert shifted(3.5, 0).use(cpu).sum() == 0
    torch.testing.assert_close(shifted(3.25, 0).use(cpu)[6, 6], torch.tensor(0.5))
    hidden = Correspondence(flow=shifted(0, 0).flow, seen=np.zeros((12, 16), np.float32))
    assert hidden.use(cpu).sum() == 0


@pytest.mark.parametrize(("size", "multiple"), [((128, 160), 8), ((100, 150), 32), ((400, 640), 8)])
def test_a_pan_is_found_in_latent_pixels(size: tuple[int, int], multiple: int) -> None:
    height, width = size
    correspondences = arrived(*panning(3, 8, *size), multiple=multiple)
    latent = -(-height // multiple) * multiple // 8, -(-width // multiple) * multiple // 8
    for one, other, expected in ((1, 0, 1.0), (0, 1, -1.0), (2, 0, 2.0), (0, 2, -2.0)):
        found = correspondences.between(one, other)
        assert found.seen.shape == latent
        middle = found.flow[3 : height // 8 - 3, 3 : width // 8 - 3]
        assert np.abs(middle - (expected, 0)).mean() < 0.1
        assert found.seen[3 : height // 8 - 3, 3 : width // 8 - 3].mean() > 0.9


def test_the_flow_of_a_latent_pixel_is_that_of_its_trusted_pixels() -> None:
    image = np.zeros((16, 16, 3), np.uint8)

    def search(source: Image, target: Image) -> Flow:
        """Half of each latent pixel moves by 8 pixels of the small picture; the other half is lost."""
        flow = np.zeros((*source.shape, 2), np.float32)
        flow[::2, :, 1] = 1000.0
        return flow

    found = arrived(image, image, search=search).between(1, 0)
    np.testing.assert_allclose(found.seen, 0.5)
    np.testing.assert_allclose(found.flow, 0, atol=1e-2)


def test_nothing_is_known_across_a_cut_and_of_frames_that_are_done_with() -> None:
    images = panning(4, 4)
    correspondences = arrived(*images)
    assert len(correspondences) == 3
    correspondences.forget(through=1)
    assert len(correspondences) == 2
    correspondences.cut()
    assert len(correspondences) == 0
    correspondences.arrive(4, images[0])
    assert len(correspondences) == 0
    correspondences.arrive(5, images[1])
    assert len(correspondences) == 1
