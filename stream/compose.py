"""Source and toon in one picture: side by side, and as a contact sheet of a whole clip."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from toonstream.errors import OutputError

__all__ = ["ContactSheet", "side_by_side"]

_GAP = 4  # pixels between tiles
_PAPER = 255  # grey level behind them


def side_by_side(source: NDArray[np.uint8], toon: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two (H, W, 3) pictures of the same size next to each other: (H, 2W, 3), source on the left."""
    return np.concatenate((source, toon), axis=1)


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
