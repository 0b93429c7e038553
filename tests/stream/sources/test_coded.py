"""Sizes that packets claim, of real encoders and of liars."""

from fractions import Fraction

import av
import pytest
from av.video.codeccontext import VideoCodecContext

from toonstream.stream.sources.coded import H264_ALIGNMENT, claimed_size


def encoded(
    codec: str, width: int, height: int, pixels: str = "yuv420p", **options: str
) -> tuple[bytes, bytes]:
    """The first packet of a clip, and the encoder's extra data."""
    context = av.CodecContext.create(codec, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, pixels
    context.time_base, context.options = Fraction(1, 25), options
    context.open()
    frame = av.VideoFrame(width, height, pixels)
    for plane in frame.planes:
        plane.update(bytes(plane.buffer_size))
    frame.pts = 0
    packets = context.encode(frame) or context.encode(None)
    return bytes(packets[0]), context.extradata or b""


@pytest.mark.parametrize(("width", "height"), [(16, 16), (128, 96), (175, 143), (1920, 1080)])
def test_vp8(width: int, height: int) -> None:
    packet, _ = encoded("libvpx", width, height, deadline="realtime")
    assert claimed_size("vp8", packet) == (width, height)


@pytest.mark.parametrize("more", [{}, {"flags": "+ildct+ilme"}, {"flags": "+global_header"}])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10", "gray"])
@pytest.mark.parametrize(("width", "height"), [(16, 32), (178, 144), (1920, 1088)])
def test_h264(width: int, height: int, pixels: str, more: dict[str, str]) -> None:
    packet, extra = encoded("libx264", width, height, pixels, preset="ultrafast", **more)
    steps = 2 * H264_ALIGNMENT if "ildct" in str(more) else H264_ALIGNMENT
    size = claimed_size("h264", extra if more.get("flags") == "+global_header" else packet)
    assert size is not None
    assert all(side <= coded < side + steps for side, coded in zip((width, height), size, strict=True))
    assert all(coded % 16 == 0 for coded in size)


@pytest.mark.parametrize("profile", ["baseline", "main", "high"])
def test_profiles_of_h264_and_scaling_lists(profile: str) -> None:
    lists = "cqm=jvt:" if profile == "high" else ""
    packet, _ = encoded("libx264", 320, 240, profile=profile, **{"x264-params": f"{lists}bframes=0"})
    assert claimed_size("h264", packet) == (320, 240)


def test_the_configuration_record_of_containers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        frame = av.VideoFrame(320, 240, "yuv420p")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        record = container.streams.video[0].codec_context.extradata
    assert record is not None
    assert record[0] == 1
    assert claimed_size("h264", record) == (320, 240)
    assert claimed_size("h264", record[:6]) is None


def test_packets_that_say_nothing_of_it() -> None:
    assert claimed_size("vp8", b"\1\2\3") is None
    assert claimed_size("h264", b"\0\0\0\1\x41" + bytes(100)) is None
    assert claimed_size("hevc", b"\0\0\0\1\x67") is None
    assert claimed_size("h264", b"") is claimed_size("vp8", b"") is None


def test_the_largest_of_several_counts() -> None:
    small, large = (encoded("libx264", side, side, preset="ultrafast")[0] for side in (64, 512))
    assert claimed_size("h264", small + large) == claimed_size("h264", large + small) == (512, 512)


def test_a_set_that_reads_otherwise_with_its_escapes_left_in() -> None:
    """What makes no sense without its escapes is read by libavcodec a second time, as it stands."""
    escaped = "11111" + "0" + 2 * "00100" + "1"  # 64x64
    as_it_is = "111" + "0" + 2 * f"{0:010b}{1365:b}" + "1"  # 21840x21840, behind what the escape adds
    bits = (escaped + as_it_is).ljust(160, "1")
    for prefix, size in ((b"\x42\0\x0c", (64, 64)), (b"\x42\0\0\3", (21840, 21840))):
        sequence = prefix + int(bits, 2).to_bytes(20, "big")
        assert claimed_size("h264", b"\0\0\1\x67" + sequence) == size


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\0\0\1\x67\x42\x00\x1f", id="cut off"),
        pytest.param(b"\0\0\1\x67\x42\x00\x1f" + bytes(40), id="nothing but zeros"),
        pytest.param(b"\0\0\1\x67\x07\x00\x1f" + b"\xff" * 40, id="a profile that nobody has"),
        pytest.param(
            b"".join(b"\0\0\1\x67\x42\x00" + bytes([n, n]) + b"\xff" * 20 for n in range(128)),
            id="more sets than there can be",
        ),
    ],
)
def test_headers_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"header|profile|more"):
        claimed_size("h264", data)


def test_a_key_frame_without_a_header() -> None:
    with pytest.raises(ValueError, match="without a header"):
        claimed_size("vp8", b"\0\1\2")
