from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.errors import OutputError
from toonstream.stream.compose import ContactSheet, Grid, side_by_side


def flat(level: int, width: int = 16, height: int = 8) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def test_the_source_is_on_the_left() -> None:
    both = side_by_side(flat(10), flat(200))
    assert both.shape == (8, 32, 3)
    assert (both[:, :16] == 10).all()
    assert (both[:, 16:] == 200).all()


@given(st.integers(1, 9), st.integers(8, 300), st.integers(8, 300))
@settings(max_examples=25, deadline=None)
def test_a_grid_has_a_place_for_every_picture_under_its_words(count: int, width: int, height: int) -> None:
    width, height = 2 * width, 2 * height
    grid = Grid(count, (width, height))
    assert grid.size[0] % width == grid.size[0] % 2 == grid.size[1] % 2 == 0
    cells = [(flat(100 + index, width, height), "a name", "and figures") for index in range(count)]
    sheet = grid.draw(cells)
    assert sheet.shape == (grid.size[1], grid.size[0], 3)
    columns = grid.size[0] // width
    rows = -(-count // columns)
    step = grid.size[1] // rows
    for index in range(count):
        top, left = index // columns * step + step - height, index % columns * width
        assert (sheet[top : top + height, left : left + width] == 100 + index).all()
        assert sheet[top - step + height : top, left : left + width].max() > 50  # words


def test_a_grid_comes_near_to_a_screen() -> None:
    assert [Grid(count, (640, 360)).size[0] // 640 for count in (1, 2, 3, 4, 6, 9)] == [1, 2, 2, 2, 3, 3]
    assert Grid(3, (360, 640)).size[0] == 3 * 360


def test_words_that_are_too_long_stay_in_their_cell() -> None:
    grid = Grid(2, (64, 256))
    words = "wavefront+fusion=0.5+remember=2"
    with_both = grid.draw([(flat(0, 64, 256), words, words), (flat(0, 64, 256), "", "")])
    assert (with_both[:, 64:] <= 30).all()


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
