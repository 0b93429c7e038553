from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toonstream.errors import ModelError
from toonstream.stream.conditions import Conditions, as_image
from toonstream.stream.frame import Frame
from toonstream.stream.sizes import padded_size


def frame(width: int, height: int) -> Frame:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Frame(index=5, pts=77, time_base=Fraction(1, 90), image=image, duration=3)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([8, 32, 64]))
def test_padding_is_the_least_that_fits(width: int, height: int, multiple: int) -> None:
    padded = padded_size((width, height), multiple)
    for side, got in zip((width, height), padded, strict=True):
        assert got % multiple == 0
        assert 0 <= got - side < multiple


def test_hints_are_padded_with_the_edge_and_in_range() -> None:
    source = frame(50, 38)
    conditioned = Conditions(["outline", "colour"], size=(50, 38), multiple=32)(source)
    assert conditioned.frame.image is source.image
    assert set(conditioned.hints) == {"outline", "colour"}
    for hint in conditioned.hints.values():
        assert hint.shape == (3, 64, 64)
        assert hint.dtype == torch.float32
        assert hint.is_contiguous()
        assert hint.min() >= 0
        assert hint.max() <= 1
    colour = conditioned.hints["colour"]
    expected = torch.from_numpy(source.image).permute(2, 0, 1) / 255
    assert torch.equal(colour[:, :38, :50], expected)
    assert torch.equal(colour[:, :38, 63], expected[:, :, 49])
    assert torch.equal(colour[:, 63, :50], expected[:, 37])
    outline = conditioned.hints["outline"]
    assert torch.equal(outline[0], outline[2])


def test_frames_are_resized_and_keep_their_place_in_time() -> None:
    conditioned = Conditions(["colour"], size=(32, 24), multiple=8)(frame(64, 48))
    assert conditioned.frame.image.shape == (24, 32, 3)
    assert (conditioned.frame.index, conditioned.frame.pts, conditioned.frame.duration) == (5, 77, 3)
    assert set(conditioned.hints) == {"colour"}


def test_an_unknown_hint_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'depth'; put an annotator into annotators/depth.*outline, colour"):
        Conditions(["depth"], size=(32, 32), multiple=8)


def test_hints_that_a_network_draws_are_left_to_it() -> None:
    conditions = Conditions(["outline", "depth"], size=(32, 24), multiple=32, annotated=["outline", "depth"])
    hints = conditions(frame(32, 24)).hints
    colour = Conditions(["colour"], size=(32, 24), multiple=32)(frame(32, 24)).hints["colour"]
    assert hints.keys() == {"outline", "depth"}
    assert torch.equal(hints["outline"], colour)
    assert torch.equal(hints["depth"], colour)


def test_pictures_come_back_cropped_rounded_and_clipped() -> None:
    picture = torch.full((3, 8, 8), 9.0)
    picture[:, 0, 0] = torch.tensor([-1.0, 0.0, 1.0])
    picture[:, 0, 1] = -3.0
    image = as_image(picture, (5, 3))
    assert image.shape == (3, 5, 3)
    assert image.dtype == np.uint8
    assert image[0, 0].tolist() == [0, 128, 255]
    assert image[0, 1].tolist() == [0, 0, 0]
    assert image[2, 4].tolist() == [255, 255, 255]


@given(st.integers(0, 255))
def test_every_level_survives_the_way_to_the_networks_range_and_back(level: int) -> None:
    picture = torch.full((3, 1, 1), level / 127.5 - 1.0)
    assert as_image(picture, (1, 1)).tolist() == [[[level] * 3]]
