"""Our own encoders."""

import av
import numpy as np
import pytest

from toonstream.server.encode import AUDIO_CLOCK, VIDEO_CLOCK, OpusSound, Picture, VideoEncoder

DECODERS = {"vp8": "libvpx", "h264": "h264"}


def picture(index: int, size: tuple[int, int] = (96, 64)) -> Picture:
    width, height = size
    image = np.full((height, width, 3), (200, 90, 40), np.uint8)
    image[8:24, 8 + index % 32 : 24 + index % 32] = 255
    return Picture(image, index * VIDEO_CLOCK // 30, index / 30)


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_pictures_come_back_at_once_with_their_times_and_colours(codec: str) -> None:
    encoder, decoder = VideoEncoder(codec, bitrate=1_000_000), av.CodecContext.create(DECODERS[codec], "r")
    keys = []
    for index in range(12):
        (encoded,) = encoder.encode(picture(index), key=index == 6)
        assert (encoded.packet.pts, encoded.captured_at) == (index * 3000, index / 30)
        keys.append(encoded.key)
        for frame in decoder.decode(encoded.packet):
            back = frame.to_ndarray(format="rgb24")[40:, :].mean((0, 1))
            assert np.abs(back - (200, 90, 40)).max() < 12
    assert [index for index, key in enumerate(keys) if key] == [0, 6]


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_another_size_begins_with_a_key_frame(codec: str) -> None:
    encoder, decoder = VideoEncoder(codec, bitrate=1_000_000), av.CodecContext.create(DECODERS[codec], "r")
    sizes = []
    for index, size in enumerate([(96, 64), (96, 64), (65, 97), (65, 97)]):
        for encoded in encoder.encode(picture(index, size), key=False):
            assert encoded.key == (index in (0, 2))
            sizes += [(frame.width, frame.height) for frame in decoder.decode(encoded.packet)]
    assert set(sizes) == {(96, 64), (64, 96)}


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_the_bitrate_is_ours(codec: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 30, 40, 3), np.uint8)

    def bits(bitrate: int) -> int:
        encoder = VideoEncoder(codec, bitrate=bitrate)
        total = 0
        for index, small in enumerate(noise):
            image = small.repeat(8, 0).repeat(8, 1)
            for encoded in encoder.encode(Picture(image, index * 3000, index / 30), key=False):
                total += 8 * encoded.packet.size
        return total

    assert 1.5 * bits(800_000) < bits(5_000_000)


def sound(index: int) -> av.AudioFrame:
    times = (np.arange(960) + 960 * index) / AUDIO_CLOCK
    tone = (8000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = AUDIO_CLOCK, 960 * index
    return frame


def test_sound_keeps_its_times_and_a_gap_in_it() -> None:
    encoder, decoder = OpusSound(origin=100.0), av.CodecContext.create("libopus", "r")
    times, heard = [], []
    for index in range(50):
        captured = 100.5 + index * 0.02 + (2.0 if index >= 25 else 0.0)
        for encoded in encoder.encode((sound(index), captured), key=False):
            assert encoded.key
            assert abs(encoded.packet.pts / AUDIO_CLOCK + 100.0 - encoded.captured_at) < 1e-3
            times.append(encoded.captured_at)
            heard += [frame.to_ndarray() for frame in decoder.decode(encoded.packet)]
    assert abs(times[0] - 100.5) < 0.03
    steps = np.diff(times)
    assert np.isclose(np.delete(steps, steps.argmax()), 0.02).all()
    assert 1.9 < steps.max() < 2.1
    loud = np.concatenate([np.abs(each).max(keepdims=True).ravel() for each in heard[3:]])
    assert loud.max() > 0.1
