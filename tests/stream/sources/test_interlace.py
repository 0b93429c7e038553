"""Interlaced pictures come out whole, one for each, at their own times; others are left alone."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec.context import Flags
from numpy.typing import NDArray

from toonstream.stream.sources.decode import VideoDecoder
from toonstream.stream.sources.file import FileSource

RATE = 25
WIDTH, HEIGHT = 128, 96
Image = NDArray[np.uint8]


def moment(half: int) -> Image:
    """What the camera sees at a half picture's moment: soft stripes that move fast."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    stripes = 128 + 80 * np.sin((x + 4 * half) / 9.0 + y / 20)
    return np.stack([stripes, stripes, np.full(x.shape, 90.0)], axis=2).astype(np.uint8)


def woven(index: int) -> Image:
    """Lines of two moments by turns, the earlier one's first."""
    picture = moment(2 * index)
    picture[1::2] = moment(2 * index + 1)[1::2]
    return picture


OPTIONS = {
    "libx264": {"crf": "4"},
    "mpeg2video": {"b": "8000000", "bt": "4000000"},
    "mpeg4": {"b": "8000000", "bt": "4000000"},
}


def write(
    path: Path, encoder: str, images: Sequence[Image], *, interlaced: bool = True, first: int = 0
) -> Path:
    """Write pictures, and say whether they are interlaced; `first` is the time of the first."""
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream(encoder, rate=RATE, options=OPTIONS[encoder])
        stream.width, stream.height, stream.pix_fmt = WIDTH, images[0].shape[0], "yuv420p"
        if interlaced:
            stream.codec_context.flags |= Flags.interlaced_dct
        for pts, image in enumerate(images, first):
            picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = pts, Fraction(1, RATE)
            clip.mux(stream.encode(picture))
        clip.mux(stream.encode(None))
    return path


def combing(image: Image) -> float:
    """How far lines stand out from the ones above and below."""
    lines = image.astype(float)
    return float(np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean())


def closest(image: Image, index: int, psnr: Callable[[Image, Image], float]) -> float:
    """How like one of its two moments a picture is: it says itself which of them came first."""
    return max(psnr(image, moment(2 * index + half)) for half in (0, 1))


@pytest.mark.parametrize(
    ("name", "encoder"),
    [("c.mp4", "libx264"), ("c.mkv", "libx264"), ("c.ts", "mpeg2video"), ("c.avi", "mpeg4")],
)
def test_interlaced_pictures_are_made_whole(name, encoder, tmp_path, psnr):
    path = write(tmp_path / name, encoder, [woven(index) for index in range(12)])
    with av.open(str(path)) as clip:
        stored = list(clip.decode(video=0))
    assert all(picture.interlaced_frame for picture in stored)
    with FileSource(path) as source:
        frames = list(source)
    assert [frame.pts for frame in frames] == [picture.pts for picture in stored]
    assert [frame.duration for frame in frames] == [picture.duration or None for picture in stored]
    for index, frame in enumerate(frames):
        assert combing(frame.image) < 2 < 8 < combing(woven(index))
        assert closest(frame.image, index, psnr) > 28


def test_a_part_of_an_interlaced_clip_begins_where_it_is_asked_to(tmp_path, psnr):
    path = write(tmp_path / "c.mp4", "libx264", [woven(index) for index in range(12)])
    with FileSource(path, start=0.2, duration=0.2) as source:
        frames = list(source)
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(n, RATE) for n in range(5, 10)]
    assert closest(frames[2].image, 7, psnr) > 28


def test_a_lone_interlaced_picture_is_not_lost(tmp_path):
    path = write(tmp_path / "c.mp4", "libx264", [woven(0)])
    with FileSource(path) as source:
        assert [frame.pts for frame in source] == [0]


def test_pictures_that_do_not_say_so_are_left_as_they_are(tmp_path):
    path = write(tmp_path / "c.mp4", "mpeg4", [woven(index) for index in range(5)], interlaced=False)
    with av.open(str(path)) as clip:
        stored = [picture.to_ndarray() for picture in clip.decode(video=0)]
    decoder = VideoDecoder(path)
    assert all(
        np.array_equal(frame.to_ndarray(), picture)
        for (frame, _), picture in zip(decoder.frames_from(None), stored, strict=True)
    )
    decoder.close()


def test_a_clip_that_is_interlaced_in_the_middle_and_changes_its_size(tmp_path):
    """Transport streams may be put end to end: three recordings make one clip."""
    whole = b""
    for number, interlaced in enumerate((False, True, False)):
        images = [woven(index) if interlaced else moment(2 * index) for index in range(5)]
        if number == 2:
            images = [np.ascontiguousarray(image[:64]) for image in images]
        part = tmp_path / f"{number}.ts"
        write(part, "mpeg2video", images, interlaced=interlaced, first=5 * number)
        whole += part.read_bytes()
    path = tmp_path / "whole.ts"
    path.write_bytes(whole)
    with av.open(str(path)) as clip:
        said = [picture.interlaced_frame for picture in clip.decode(video=0)]
    assert 4 <= said.count(True) <= 5 < said.count(False)
    with FileSource(path) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(len(said)))
    assert all(frame.image.shape == (HEIGHT, WIDTH, 3) for frame in frames)
    # The one before the change of size stands alone at the end of its kind, as a clip of one picture does.
    assert all(combing(frame.image) < 2 for frame, interlaced in zip(frames, said, strict=True) if interlaced)
