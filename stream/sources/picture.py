"""From a decoded picture to upright 8-bit RGB, as a player would show it."""

from collections.abc import Mapping
from fractions import Fraction
from typing import cast

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.reformatter import (
    ColorPrimaries,
    ColorRange,
    Colorspace,
    ColorTrc,
    Interpolation,
    VideoReformatter,
)
from numpy.typing import NDArray

__all__ = ["BACKGROUND", "PictureReader"]

# What shows through transparent pixels: white, like paper.
BACKGROUND = 255

_UNSPECIFIED = 2  # in FFmpeg's AVColorSpace
_HD_HEIGHT = 720
# High dynamic range, as phones film it: HLG and PQ. Taken for BT.709 they come out flat and grey.
_HDR = (ColorTrc.ARIB_STD_B67, ColorTrc.SMPTE2084)


class PictureReader:
    """Converts pictures of one stream, all to the size and orientation of the first.

    Attributes:
        width, height: of the upright pictures, in pixels.
        transposed: whether orientation swaps width and height.
    """

    def __init__(self, first: VideoFrame) -> None:
        self._size = (first.width, first.height)
        self._matrix = _display_matrix(first)
        self.transposed = abs(self._matrix[0, 0]) < abs(self._matrix[0, 1])
        self.width, self.height = self._size[::-1] if self.transposed else self._size
        self._reformatter = VideoReformatter()

    def upright_aspect(self, sample_aspect_ratio: Fraction) -> Fraction:
        """The width of an upright pixel over its height, from that of a stored pixel."""
        return 1 / sample_aspect_ratio if self.transposed else sample_aspect_ratio

    def read(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Convert one picture.

        Range and matrix are the picture's own; where it names no matrix, BT.709 from 720 lines up and BT.601
        below. Transparent pixels are laid over `BACKGROUND`. A picture of another size is scaled to the
        first's. HDR (HLG, PQ) is mapped to BT.709.

        Returns:
            (H, W, 3) uint8 RGB in [0, 255], contiguous.
        """
        transparent = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
        hdr = frame.color_trc in _HDR
        guessed = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
        converted = self._reformatter.reformat(
            frame,
            width=self._size[0],
            height=self._size[1],
            format="rgba" if transparent else "rgb24",
            src_colorspace=guessed if frame.colorspace == _UNSPECIFIED else None,
            dst_color_range=ColorRange.JPEG,
            dst_color_trc=ColorTrc.BT709 if hdr else None,
            dst_color_primaries=ColorPrimaries.BT709 if hdr else None,
            interpolation=Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND,
            threads=1,
        )
        image = np.asarray(converted.to_ndarray(), dtype=np.uint8)
        if transparent:
            image = _over_background(image)
        return np.ascontiguousarray(self._upright(image))

    def _upright(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        (a, b), (c, d) = self._matrix
        flip_x, flip_y = (c < 0, b < 0) if self.transposed else (a < 0, d < 0)
        if self.transposed:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _display_matrix(frame: VideoFrame) -> NDArray[np.int32]:
    """The linear part [[a, b], [c, d]] of a display matrix: x' = a·x + c·y, y' = b·x + d·y."""
    side_data = cast("Mapping[Type, bytes]", frame.side_data)  # the stubs know of motion vectors only
    data = side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return np.eye(2, dtype=np.int32)
    return np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2]


def _over_background(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay (H, W, 4) straight-alpha RGBA over the background, rounded to nearest: (H, W, 3) RGB."""
    alpha = image[..., 3:].astype(np.uint16)
    mixed = image[..., :3] * alpha + BACKGROUND * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
