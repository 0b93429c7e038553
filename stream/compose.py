"""Source and toon in one picture: side by side, in a grid with words, and as a contact sheet of a clip."""

from collections.abc import Sequence
from math import ceil, log
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from toonstream.errors import OutputError

__all__ = ["ContactSheet", "Grid", "fitted", "side_by_side"]

_GAP = 4  # pixels between tiles
_PAPER = 255  # grey level behind them
_SCREEN = 16 / 9  # the shape that a grid comes near to
_EMPTY = 0.25  # what an empty cell counts, against the logarithm of how far the shape is off
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_FONT_PIXELS = 30  # from line to line at scale 1
_READABLE = 0.45  # scale of the font at a short side of 256 pixels or less
_NEARLY = 0.02  # two shapes that differ by less are the same
_INK, _BAND = 235, 24  # grey levels of words, and behind them


def side_by_side(source: NDArray[np.uint8], toon: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two (H, W, 3) pictures of the same size next to each other: (H, 2W, 3), source on the left."""
    return np.concatenate((source, toon), axis=1)


def fitted(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale a picture to (width, height), with black bars where its shape is another.

    Args:
        image: (H, W, 3) uint8 RGB.
        size: in pixels.
    """
    height, width = image.shape[:2]
    if (width, height) == size:
        return image
    scale = min(size[0] / width, size[1] / height)
    if abs(size[0] / width / (size[1] / height) - 1) < _NEARLY:
        inner = size
    else:
        inner = max(1, round(width * scale)), max(1, round(height * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    scaled = np.asarray(cv2.resize(image, inner, interpolation=how), dtype=np.uint8)
    if inner == size:
        return scaled
    whole = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    whole[top : top + inner[1], left : left + inner[0]] = scaled
    return whole


class Grid:
    """Pictures of one size in rows, each under a band with two lines of words.

    Attributes:
        size: (width, height) of the whole in pixels, even.

    Args:
        cells: how many pictures there are.
        size: (width, height) of each in pixels, even.
    """

    def __init__(self, cells: int, size: tuple[int, int]) -> None:
        self._width, self._height = size
        self._scale = _READABLE * min(max(1.0, min(size) / 256), 2.5)
        self._line = round(_FONT_PIXELS * self._scale)
        _, below = cv2.getTextSize("g", _FONT, self._scale, 1)  # how far letters reach under their line
        self._band = 2 * self._line + 2 * ceil((below + 2) / 2)  # an even number

        def unlikeness(columns: int) -> float:
            rows = ceil(cells / columns)
            shape = columns * self._width / (rows * (self._height + self._band))
            return abs(log(shape / _SCREEN)) + _EMPTY * (columns * rows - cells)

        self._columns = min(range(1, cells + 1), key=unlikeness)
        rows = ceil(cells / self._columns)
        self.size = self._columns * self._width, rows * (self._height + self._band)

    def draw(self, cells: Sequence[tuple[NDArray[np.uint8], str, str]]) -> NDArray[np.uint8]:
        """Draw the grid.

        Args:
            cells: pictures, (H, W, 3) uint8 RGB, each with two lines of plain ASCII. Lines that are too long
                are written smaller.

        Returns:
            (H, W, 3) uint8 RGB, of `size`.
        """
        sheet = np.full((self.size[1], self.size[0], 3), _BAND, np.uint8)
        for index, (image, *lines) in enumerate(cells):
            row, column = divmod(index, self._columns)
            left, top = column * self._width, row * (self._height + self._band)
            sheet[top + self._band : top + self._band + self._height, left : left + self._width] = image
            for number, text in enumerate(lines):
                self._write(sheet, text, left + 4, top + (number + 1) * self._line)
        return sheet

    def _write(self, sheet: NDArray[np.uint8], text: str, left: int, bottom: int) -> None:
        room = self._width - 8
        (wide, _), _ = cv2.getTextSize(text, _FONT, self._scale, 1)
        scale = self._scale * min(1.0, room / max(wide, 1))
        cv2.putText(sheet, text, (left, bottom), _FONT, scale, (_INK,) * 3, 1, cv2.LINE_AA)


class ContactSheet:
    """A grid of source frames over their toon frames, evenly spread over a clip of unknown length.

    Every n-th frame is kept; whenever twice the columns have come together, every other one is dropped
    and n doubles. So memory is bounded, and the length need not be known.

    Args:
        columns: at most this many frames are shown.
        tile_width: pixels; larger frames are scaled down to it.
    """

    def __init__(self, *, columns: int = 6, tile_width: int = 320) -> None:
        self._columns = columns
        self._tile_width = tile_width
        self._every = 1
        self._seen = 0
        self._kept: list[NDArray[np.uint8]] = []

    def add(self, source: NDArray[np.uint8], toon: NDArray[np.uint8]) -> None:
        """Take the next frame, source and toon: (H, W, 3) uint8 RGB each, of the same size."""
        if self._seen % self._every == 0:
            self._kept.append(np.concatenate((self._tile(source), self._tile(toon)), axis=0))
            if len(self._kept) == 2 * self._columns:
                self._kept = self._kept[::2]
                self._every *= 2
        self._seen += 1

    def image(self) -> NDArray[np.uint8]:
        """Draw the sheet: (H, W, 3) uint8 RGB; one column per kept frame, source above, toon below."""
        chosen = np.linspace(0, len(self._kept) - 1, min(self._columns, len(self._kept))).round().astype(int)
        tiles = [self._kept[index] for index in chosen]
        height, width = tiles[0].shape[:2]
        sheet = np.full((height + 2 * _GAP, (width + _GAP) * len(tiles) + _GAP, 3), _PAPER, np.uint8)
        for column, tile in enumerate(tiles):
            left = _GAP + column * (width + _GAP)
            sheet[_GAP : _GAP + height, left : left + width] = tile
        return sheet

    def write(self, path: Path) -> None:
        """Write the sheet as PNG, under its name only when whole; nothing where no frame was taken.

        Raises:
            OutputError: it cannot be written there.
        """
        if not self._kept:
            return
        _, data = cv2.imencode(".png", cv2.cvtColor(self.image(), cv2.COLOR_RGB2BGR))
        temporary = path.with_name(f".{path.name}.partial")
        try:
            temporary.write_bytes(data.tobytes())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from error

    def _tile(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        height, width = image.shape[:2]
        if width > self._tile_width:
            scaled = (self._tile_width, max(1, round(height * self._tile_width / width)))
            image = np.asarray(cv2.resize(image, scaled, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return image
