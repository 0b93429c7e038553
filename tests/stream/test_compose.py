from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.errors import OutputError
from toonstream.stream.compose import ContactSheet, side_by_side


def flat(level: int, width: int = 16, height: int = 8) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def test_the_source_is_on_the_left() -> None:
    both = side_by_side(flat(10), flat(200))
    assert both.shape == (8, 32, 3)
    assert (both[:, :16] == 10).all()
    assert (both[:, 16:] == 200).all()


@given(st.integers(1, 200), st.integers(1, 8))
@settings(max_examples=40)
def test_a_sheet_is_spread_over_the_clip_however_long(frames: int, columns: int) -> None:
    sheet = ContactSheet(columns=columns)
    for index in range(frames):
        sheet.add(flat(index), flat(255 - index))
    image = sheet.image()
    shown = min(columns, frames)
    assert image.shape[1] == shown * (16 + 4) + 4
    tiles = [int(image[6, 4 + 20 * column + 8, 0]) for column in range(shown)]
    assert tiles == sorted(set(tiles))
    assert tiles[0] == 0
    assert shown == 1 or tiles[-1] >= frames // 2
    assert [int(image[14, 4 + 20 * column + 8, 0]) for column in range(shown)] == [
        255 - tile for tile in tiles
    ]


def test_large_frames_are_scaled_down() -> None:
    sheet = ContactSheet(columns=2, tile_width=32)
    sheet.add(flat(9, 128, 64), flat(99, 128, 64))
    assert sheet.image().shape == (2 * 16 + 8, 32 + 8, 3)


def test_a_sheet_is_written_in_the_right_colours(tmp_path: Path) -> None:
    sheet = ContactSheet()
    red = np.zeros((8, 16, 3), np.uint8)
    red[..., 0] = 255
    sheet.add(red, red)
    sheet.write(tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png"))[10, 10].tolist() == [0, 0, 255]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_nothing_is_written_without_a_frame(tmp_path: Path) -> None:
    ContactSheet().write(tmp_path / "sheet.png")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    sheet = ContactSheet()
    sheet.add(flat(1), flat(2))
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(OutputError, match="choose another place"):
        sheet.write(tmp_path / "sheet.png")
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
