"""Clips made for the tests, odd ones included."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.packet import Packet
from av.video.frame import VideoFrame
from numpy.typing import NDArray

SOUND_RATE = 48_000


def moving_picture(index: int, width: int = 64, height: int = 48) -> NDArray[np.uint8]:
    """A soft gradient with a block that moves: every corner and every index looks different.."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack(
        [40 + 160 * x / width, 40 + 160 * y / height, np.full_like(x, 90.0, dtype=float)], axis=2
    )
    left = (index * 3) % max(1, width - 8)
    image[height // 4 : height // 2, left : left + 8] = (220, 200, 40)
    return image.astype(np.uint8)


def write_clip(
    path: Path,
    *,
    images: Sequence[NDArray[np.uint8]] | None = None,
    frames: int = 20,
    width: int = 64,
    height: int = 48,
    encoder: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
    rate: Fraction = Fraction(25),
    time_base: Fraction = Fraction(1, 12_800),
    pts: Sequence[int] | None = None,
    colours: dict[str, Any] | None = None,
    sample_aspect_ratio: Fraction | None = None,
    turn: tuple[float, bool, bool] | None = None,
    sounds: Sequence[str] = (),
    sound_seconds: float | None = None,
    sound_rate: int = SOUND_RATE,
    subtitles: str | None = None,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write a clip.

    `images` are (H, W, 3) or (H, W, 4) uint8, or else moving pictures; `pts` are in units of `time_base`, or
    else in even steps. `colours` are attributes of the codec context, with `range` and `matrix` for the
    conversion. `turn` is the display matrix: degrees counter-clockwise, horizontal flip, vertical flip. Each
    of the `sounds`, named by their encoders, is a tone of its own, in eng, deu, fra. `subtitles` are two
    lines, at 0.2 and at 0.6 s for 0.3 s.
    """
    if images is None:
        images = [moving_picture(index, width, height) for index in range(frames)]
    height, width = images[0].shape[:2]
    step = round(1 / (rate * time_base))
    times = [index * step for index in range(len(images))] if pts is None else list(pts)
    colours = dict(colours or {})
    matrix, scale = colours.pop("matrix", "ITU601"), colours.pop("range", "MPEG")
    with av.open(str(path), "w", container_options=muxer_options or {}) as container:
        container.metadata.update(tags or {})
        video = container.add_stream(
            encoder, rate=rate, options={"crf": "6", "qp": "4"} if options is None else options
        )
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.time_base = video.time_base = time_base
        for name, value in colours.items():
            setattr(video.codec_context, name, value)
        if sample_aspect_ratio:
            video.codec_context.sample_aspect_ratio = sample_aspect_ratio
        if turn:
            video.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        tracks = [container.add_stream(name, rate=sound_rate, layout="stereo") for name in sounds]
        for track, language in zip(tracks, ("eng", "deu", "fra"), strict=False):
            track.metadata["language"] = language
        texts = container.add_mux_stream(subtitles, time_base=Fraction(1, 1000)) if subtitles else None
        container.start_encoding()
        if texts is not None:
            for begin, line in ((200, "first line"), (600, "second line")):
                text = line.encode()
                packet = Packet(len(text).to_bytes(2, "big") + text if subtitles == "mov_text" else text)
                packet.pts = packet.dts = begin
                packet.duration, packet.time_base, packet.stream = 300, Fraction(1, 1000), texts
                container.mux(packet)
        seconds = (times[-1] + step) * time_base if sound_seconds is None else sound_seconds
        for number, track in enumerate(tracks):
            _write_tone(container, track, 220 * (number + 1), float(seconds))
        for image, time in zip(images, times, strict=True):
            raw = VideoFrame.from_ndarray(image, format="rgb24" if image.shape[2] == 3 else "rgba")
            picture = raw.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=scale)
            picture.pts, picture.time_base = time, time_base
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
    return path


def _write_tone(container: Any, track: Any, pitch: int, seconds: float) -> None:
    size, rate = track.codec_context.frame_size or 1024, track.codec_context.sample_rate
    for begin in range(0, int(seconds * rate), size):
        angles = np.arange(begin, begin + size) * 2 * np.pi * pitch / rate
        samples = (np.sin(angles) * 8000).astype(np.int16)
        frame = AudioFrame.from_ndarray(np.repeat(samples, 2)[None], format="s16", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
        for part in av.AudioResampler(format=track.codec_context.format.name).resample(frame):
            container.mux(track.encode(part))
    container.mux(track.encode(None))


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal to noise in dB; pictures of different shapes are an error."""
    assert one.shape == other.shape
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.fixture
def film(tmp_path: Path) -> Callable[..., Path]:
    """Writes an odd clip into the test's folder; keywords are those of `write_clip`."""

    def make(name: str = "odd.mp4", **options: Any) -> Path:
        return write_clip(tmp_path / name, **options)

    return make


@pytest.fixture(name="moving_picture")
def moving_picture_fixture() -> Callable[..., NDArray[np.uint8]]:
    return moving_picture


@pytest.fixture(name="psnr")
def psnr_fixture() -> Callable[..., float]:
    return psnr
