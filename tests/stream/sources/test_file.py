"""Clips in, upright RGB frames with exact times out, whatever is odd or wrong with the clip."""

import os
from fractions import Fraction
from itertools import accumulate

import av
import numpy as np
import pytest
from av.packet import Packet

from toonstream.errors import InputError
from toonstream.stream.sources.clip import MAX_PIXELS
from toonstream.stream.sources.file import FileSource

FAITHFUL = 31  # dB: what chroma subsampling and light compression leave of the made pictures


SESSION = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video 5004 RTP/AVP 96
a=rtpmap:96 H264/90000
"""


def read(path, **options):
    with FileSource(path, **options) as source:
        return source.info, list(source), source.damage


def test_frames_come_in_order_with_the_times_of_the_file(film, moving_picture, psnr):
    info, frames, damage = read(film())
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(i, 25) for i in range(20)]
    assert all(frame.duration * frame.time_base == Fraction(1, 25) for frame in frames)
    assert all(frame.image.dtype == np.uint8 and frame.image.shape == (48, 64, 3) for frame in frames)
    assert min(psnr(frame.image, moving_picture(frame.index)) for frame in frames) > FAITHFUL
    assert (info.width, info.height, info.frame_count, info.average_rate) == (64, 48, 20, 25)
    assert info.duration == pytest.approx(0.8)
    assert not damage
    assert damage.message == ""


def test_reading_is_lazy(film, monkeypatch):
    """One picture is converted for each that is asked for, and none before."""
    with FileSource(film(frames=60)) as source:
        read_pictures = []
        convert = source._reader.read
        monkeypatch.setattr(
            source._reader, "read", lambda picture: read_pictures.append(1) or convert(picture)
        )
        frames = iter(source)
        assert not read_pictures
        next(frames)
        next(frames)
        assert len(read_pictures) == 2


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_orientation_is_applied_to_the_pixels(film, moving_picture, psnr, degrees, flips):
    stored = moving_picture(0)
    upright = np.rot90(stored, degrees // 90)  # counter-clockwise
    if flips[0]:
        upright = upright[:, ::-1]
    if flips[1]:
        upright = upright[::-1]
    info, frames, _ = read(
        film(images=[stored] * 3, turn=(degrees, *flips), sample_aspect_ratio=Fraction(4, 3))
    )
    assert psnr(frames[0].image, upright) > FAITHFUL
    assert (info.height, info.width) == upright.shape[:2]
    assert info.sample_aspect_ratio == (Fraction(3, 4) if degrees % 180 else Fraction(4, 3))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 1), (33, 17), (65, 47), (64, 2)])
def test_odd_sizes(film, moving_picture, psnr, width, height):
    info, frames, _ = read(film("odd.mkv", width=width, height=height, pix_fmt="yuv444p", frames=3))
    assert (info.width, info.height) == (width, height)
    assert len(frames) == 3
    assert psnr(frames[2].image, moving_picture(2, width, height)) > FAITHFUL


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_keeps_its_times(film, suffix):
    pts = [0, *accumulate([40, 17, 200, 33, 1, 5, 1000, 40, 3, 90])]
    _, frames, _ = read(
        film("vfr" + suffix, pts=pts, frames=len(pts), time_base=Fraction(1, 1000), rate=Fraction(30))
    )
    assert [frame.pts * frame.time_base * 1000 for frame in frames] == pts


@pytest.mark.parametrize("matrix", [("ITU709", 1), ("ITU601", 6)])
@pytest.mark.parametrize("scale", [("MPEG", 1), ("JPEG", 2)])
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv444p10le"])
def test_range_matrix_and_depth_are_honoured(film, psnr, matrix, scale, pix_fmt):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32], image[:24, 32:], image[24:, :32], image[24:, 32:] = (
        (250, 5, 5),
        (5, 250, 5),
        (5, 5, 250),
        250,
    )
    colours = {"matrix": matrix[0], "range": scale[0], "colorspace": matrix[1], "color_range": scale[1]}
    _, frames, _ = read(film("colours.mkv", images=[image] * 3, pix_fmt=pix_fmt, colours=colours))
    assert psnr(frames[1].image, image) > FAITHFUL
    assert np.abs(frames[1].image.astype(int) - image).mean() < 3


def test_high_dynamic_range_is_mapped_and_not_left_grey(film):
    """Reference white is 75 % of the signal in HLG; taken for BT.709 it would be grey."""
    image = np.full((48, 64, 3), 191, np.uint8)
    colours = {"matrix": "BT2020", "colorspace": 9, "color_range": 1, "color_primaries": 9, "color_trc": 18}
    _, frames, _ = read(film("hdr.mkv", images=[image] * 2, pix_fmt="yuv420p10le", colours=colours))
    pixel = frames[0].image[24, 32].astype(int)
    assert pixel.min() > 201
    assert pixel.max() - pixel.min() <= 3


@pytest.mark.parametrize(("height", "matrix"), [(720, "ITU709"), (480, "ITU601")])
def test_an_unnamed_matrix_goes_by_the_height(film, height, matrix):
    image = np.full((height, 64, 3), (200, 40, 40), np.uint8)
    _, frames, _ = read(
        film("unnamed.mkv", images=[image] * 2, pix_fmt="yuv444p", colours={"matrix": matrix})
    )
    assert np.abs(frames[0].image.astype(int) - image).max() <= 3


@pytest.mark.parametrize(
    ("name", "encoder", "pix_fmt", "tolerance"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p", 6),
        ("a.mov", "qtrle", "argb", 1),
        ("a.mov", "png", "rgba", 1),
        ("a.mov", "prores_ks", "yuva444p10le", 6),
    ],
)
def test_alpha_is_laid_over_white(film, name, encoder, pix_fmt, tolerance):
    image = np.full((64, 64, 4), (200, 40, 40, 255), np.uint8)
    image[:, 16:32, 3], image[:, 32:, 3] = 128, 0
    _, frames, _ = read(film(name, images=[image] * 3, encoder=encoder, pix_fmt=pix_fmt, options={}))
    row = frames[1].image[32].astype(int)
    assert np.abs(row[8] - (200, 40, 40)).max() <= tolerance
    assert np.abs(row[24] - (227, 147, 147)).max() <= tolerance
    assert np.abs(row[48] - 255).max() <= tolerance


def test_a_gif(film):
    image = np.full((48, 64, 3), (216, 36, 85), np.uint8)
    _, frames, _ = read(
        film(
            "a.gif", images=[image] * 3, encoder="gif", pix_fmt="rgb8", options={}, time_base=Fraction(1, 100)
        )
    )
    assert len(frames) == 3
    assert np.abs(frames[0].image.astype(int) - image).max() < 8


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts", ".mov"])
@pytest.mark.parametrize(
    ("start", "duration"), [(0.0, 0.2), (0.4, None), (0.44, 0.12), (1.16, 0.3), (1.95, 9.0)]
)
def test_a_part_is_chosen_to_the_frame(film, moving_picture, psnr, suffix, start, duration):
    unit = Fraction(1, 25) if suffix == ".avi" else Fraction(1, 12_800)
    path = film("part" + suffix, frames=50, time_base=unit, options={"g": "15", "bf": "2", "qp": "4"})
    info, frames, _ = read(path, start=start, duration=duration)
    first = -int(-Fraction(str(start)) * 25 // 1)
    last = (
        50 if duration is None else min(50, -int(-(Fraction(str(start)) + Fraction(str(duration))) * 25 // 1))
    )
    assert len(frames) == last - first
    assert all(psnr(frame.image, moving_picture(first + frame.index)) > 30 for frame in frames)
    assert info.begin == frames[0].pts * frames[0].time_base or start == 0


def test_missing_times_are_filled_in(film):
    _, frames, _ = read(film("raw.h264", frames=12))
    assert len(frames) == 12
    times = [frame.pts for frame in frames]
    assert times == sorted(set(times))


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize(
    ("name", "muxer_options"),
    [
        ("cut.mp4", {"movflags": "+faststart"}),
        ("cut.mkv", {}),
        ("cut.avi", {}),
        ("cut.mp4", {"movflags": "+frag_keyframe+empty_moov"}),
    ],
)
def test_a_cut_file_is_read_up_to_the_cut_and_says_so(film, moving_picture, psnr, name, muxer_options):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(50)]
    path = film(name, images=images, muxer_options=muxer_options, options={"g": "10", "qp": "10"})
    _, whole, damage = read(path)
    assert not damage
    _, frames, damage = read(cut(path, 0.5))
    assert 10 <= len(frames) < 45
    assert damage.truncated
    assert "cut off" in damage.message
    assert all(psnr(one.image, other.image) > 60 for one, other in zip(frames, whole, strict=False))


def test_a_start_in_a_cut_file(film):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(50)]
    path = cut(film(images=images, muxer_options={"movflags": "+faststart"}, options={"g": "10"}), 0.5)
    _, frames, damage = read(path, start=0.3)
    assert frames
    assert damage.truncated
    with pytest.raises(InputError, match="start earlier"):
        FileSource(path, start=1.9)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_corrupt_packet_in_the_middle_is_skipped_and_counted(film, moving_picture, psnr, suffix):
    path = film("corrupt" + suffix, frames=30, encoder="mjpeg", pix_fmt="yuvj420p", options={})
    _, whole, _ = read(path)
    spoil(path, 15)
    _, frames, damage = read(path)
    assert damage.skipped_packets == 1
    assert "1 corrupt packet" in damage.message
    assert not damage.truncated
    assert [frame.pts for frame in frames] == [frame.pts for frame in whole if frame.index != 15]
    assert [frame.index for frame in frames] == list(range(29))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_corrupt_h264_packet_is_counted(film, suffix):
    path = film("corrupt" + suffix, frames=40, options={"g": "10", "bf": "0", "qp": "10"})
    spoil(path, 20)
    _, frames, damage = read(path)
    assert damage.skipped_packets + damage.concealed_frames >= 1
    assert 30 <= len(frames) <= 40
    times = [frame.pts for frame in frames]
    assert times == sorted(set(times))


def spoil(path, number):
    """Overwrite a whole video packet in the file with noise."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][number]
        content = bytes(packet)
    data = path.read_bytes()
    place = data.index(content)
    noise = np.random.default_rng(1).integers(1, 255, len(content), dtype=np.uint8).tobytes()
    path.write_bytes(data[:place] + noise + data[place + len(content) :])


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        FileSource(tmp_path / "none.mp4")


def test_a_directory(tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        FileSource(tmp_path)


def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(InputError, match="not a regular file"):
        FileSource(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"This is a letter and not a film.\n" * 40, "cannot be read as a video clip"),
        (
            b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2",
            "cannot be read as a video clip|no video stream",
        ),
        (bytes(5000), "cannot be read as a video clip"),
    ],
)
def test_a_file_that_is_no_clip(tmp_path, content, reason):
    path = tmp_path / "letter.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        FileSource(path)
    assert "\n" not in str(caught.value)


def test_a_clip_that_lost_its_index(film):
    with pytest.raises(InputError, match="cannot be read as a video clip"):
        FileSource(cut(film(), 0.4))


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {name}\n",
        SESSION,
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".ffconcat", ".sdp"])
def test_a_playlist_opens_nothing(film, tmp_path, text, suffix):
    clip = film("secret.ts")
    path = tmp_path / f"list{suffix}"
    path.write_text(text.format(clip=clip, name=clip.name))
    with pytest.raises(InputError, match="cannot be read as a video clip"):
        FileSource(path)


def test_a_name_with_a_colon_is_a_name(film):
    _, frames, _ = read(film("file:http:what %20.mp4".replace("file:", "")))
    assert len(frames) == 20


def test_no_video_stream(film, tmp_path):
    path = film(sounds=["aac"])
    only_sound = tmp_path / "sound.mp4"
    with av.open(str(path)) as source, av.open(str(only_sound), "w") as target:
        copy = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    with pytest.raises(InputError, match="no video stream"):
        FileSource(only_sound)


def test_no_frames(tmp_path):
    path = tmp_path / "nothing.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = 64, 48
        container.start_encoding()
    with pytest.raises(InputError) as caught:
        FileSource(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_the_limit_on_size_is_named(tmp_path, suffix):
    path = tmp_path / f"big{suffix}"
    with av.open(str(path), "w") as container:
        claim = container.add_mux_stream("mjpeg", rate=25, width=8000, height=8000, time_base=Fraction(1, 25))
        packet = Packet(bytes(range(256)))
        packet.pts = packet.dts = 0
        packet.time_base, packet.stream = Fraction(1, 25), claim
        container.mux(packet)
    with pytest.raises(InputError, match=rf"8000x8000.*{MAX_PIXELS:,}.*scale it down"):
        FileSource(path)


@pytest.mark.parametrize(("start", "duration"), [(-1.0, None), (0.0, 0.0), (0.0, -2.0), (float("nan"), None)])
def test_impossible_parts(film, start, duration):
    with pytest.raises(InputError, match="seconds"):
        FileSource(film(), start=start, duration=duration)


def test_a_start_after_the_end(film):
    with pytest.raises(InputError, match="start earlier"):
        FileSource(film(), start=5.0)


def test_sound_that_starts_first_does_not_move_the_pictures(film):
    info, frames, damage = read(film("s.mp4", sounds=["aac"], frames=25))
    assert info.origin == 0
    assert frames[0].pts == 0
    assert not damage
