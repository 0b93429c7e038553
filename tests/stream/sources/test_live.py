"""Sources that come and go: real protocols, on the loopback, and clips read as fast as they play."""

import socket
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from toonstream.errors import InputError
from toonstream.stream.frame import Frame
from toonstream.stream.sinks.live import MuxSink, OutputFormat, Recipe
from toonstream.stream.sinks.wire import UdpWriter
from toonstream.stream.sources import live as live_module
from toonstream.stream.sources.live import LiveSource, Opening, Picture, SourceGone
from toonstream.stream.sources.open import open_source
from toonstream.stream.sources.sound import Sound
from toonstream.stream.sources.timeline import Timeline

TS = Recipe(muxer="mpegts", muxer_options={"flush_packets": "1"}, copied=frozenset(["aac"]))


class FastClock(threading.Event):
    """A clock that is moved on by whoever waits on it, and never set."""

    def __init__(self):
        super().__init__()
        self.now = 100.0

    def __call__(self):
        return self.now

    def wait(self, timeout=None):
        self.now += timeout or 0.0
        return self.is_set()


def live(opening):
    clock = FastClock()
    return LiveSource(opening, clock=clock, stop=clock)


def read(source, timeline=None):
    """Everything, until it ends: (formats, pictures, sounds)."""
    formats = []
    events = list(source.read(timeline or Timeline(), formats.append))
    return (
        formats,
        [event for event in events if isinstance(event, Picture)],
        [event for event in events if isinstance(event, Sound)],
    )


def times(pictures):
    return [picture.frame.pts * picture.frame.time_base for picture in pictures]


def write_ts(path, *, width=64, height=48, rate=25, frames=25, begin=0, codec="libx264", muxer="mpegts"):
    """A clip of noise whose times begin anywhere."""
    rng = np.random.default_rng(width)
    options = {"tune": "zerolatency"} if codec == "libx264" else {"deadline": "realtime"}
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(codec, rate=rate, options={**options, "g": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 90_000)
        for index in range(frames):
            image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            picture = VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts = round((begin + Fraction(index, rate)) * 90_000)
            picture.time_base = Fraction(1, 90_000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def test_a_clip_is_read_as_fast_as_it_plays(make_clip):
    source = live(open_source(str(make_clip(seconds=1.0))))
    (format_,), pictures, sounds = read(source)
    assert (format_.width, format_.height, format_.rate) == (64, 48, 24)
    assert format_.sound.codec == "aac"
    begin = times(pictures)[0]  # the codec's run-in of sound comes before
    assert [float(time - begin) for time in times(pictures)] == pytest.approx(np.arange(24) / 24, abs=1e-4)
    captured = [picture.captured_at for picture in pictures]
    assert captured == pytest.approx(
        [captured[0] + float(time - begin) for time in times(pictures)], abs=1e-4
    )
    assert [picture.frame.index for picture in pictures] == list(range(24))
    assert sounds[0].begin == 0
    assert begin == pytest.approx(1024 / 44_100, abs=1e-4)
    assert float(sounds[-1].begin + sounds[-1].length) == pytest.approx(1.0, abs=0.06)
    assert source.statistics.pictures == 24


def test_pictures_and_sound_come_interleaved(make_clip):
    events = list(live(open_source(str(make_clip(seconds=1.0)))).read(Timeline(), lambda format_: None))
    kinds = "".join("p" if isinstance(event, Picture) else "s" for event in events)
    assert "p" * 12 not in kinds
    assert "s" * 30 not in kinds


def test_a_source_that_changes_size_rate_and_clock_in_the_middle(tmp_path):
    path = tmp_path / "odd.ts"
    first = write_ts(tmp_path / "a.ts", begin=5000).read_bytes()
    second = write_ts(tmp_path / "b.ts", width=96, height=80, rate=50, frames=50, begin=3).read_bytes()
    path.write_bytes(first + second)
    source, timeline = live(open_source(str(path))), Timeline()
    _, pictures, _ = read(source, timeline)
    sizes = [picture.frame.image.shape for picture in pictures]
    assert sizes[0] == (48, 64, 3)
    assert sizes[-1] == (80, 96, 3)
    assert source.statistics.sizes == 1
    assert timeline.jumps >= 1
    assert len(pictures) >= 70
    steps = [later - earlier for earlier, later in pairwise(times(pictures))]
    assert all(0 < step < 1 for step in steps)


FLV_HEADER = 13  # bytes
LARGE = "shows 160x96, over the limit of 10,000 pixels a frame: send smaller pictures"


@pytest.mark.parametrize("kind", ["ts", "flv"])
def test_pictures_that_are_too_large_from_the_beginning(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(live_module, "MAX_PIXELS", 10_000)
    path = write_ts(tmp_path / "a.ts", width=160, height=96)
    if kind == "flv":
        path = remuxed(tmp_path / "a.flv", path)
    with pytest.raises(InputError, match=LARGE):
        read(live(open_source(str(path))))


def remuxed(path, *sources):
    """The packets of some clips, one after the other, in another container."""
    with av.open(str(path), "w") as target:
        stream, time = None, 0
        for source in sources:
            with av.open(str(source)) as container:
                stream = stream or target.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.size:
                        packet.stream, packet.pts = stream, time
                        packet.dts, time = time, time + 3600
                        target.mux(packet)
    return path


@pytest.mark.parametrize("kind", ["ts", "flv", "webm"])
def test_pictures_that_become_too_large_in_the_middle(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(live_module, "MAX_PIXELS", 10_000)
    codec = "libvpx" if kind == "webm" else "libx264"
    small, large = (
        write_ts(tmp_path / f"{width}.{kind}", width=width, height=96, frames=75, codec=codec, muxer=None)
        for width in (64, 160)
    )
    path = tmp_path / f"both.{kind}"
    if kind in ("ts", "flv"):
        path.write_bytes(small.read_bytes() + large.read_bytes()[FLV_HEADER if kind == "flv" else 0 :])
    else:
        remuxed(path, small, large)
    opening = open_source(str(path))
    source = live(replace(opening, options=opening.options | {"probesize": "5000"}))
    with pytest.raises(InputError, match=LARGE):
        read(source)
    assert 70 < source.statistics.pictures <= 75


def test_a_source_of_which_nothing_can_be_decoded_for_long(tmp_path):
    path, clock = tmp_path / "noise.nut", FastClock()
    packets = []
    with av.open(str(write_ts(tmp_path / "a.ts", frames=3))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        with av.open(str(path), "w") as target:
            stream = target.add_stream_from_template(container.streams.video[0])
            for number in range(200):
                packet = packets[0] if number < 2 else av.Packet(b"\0\0\1\x65" + bytes(50))
                packet.stream, packet.time_base = stream, Fraction(1, 90_000)
                packet.pts = packet.dts = number * 3600
                target.mux(packet)
    source = LiveSource(open_source(str(path)), clock=lambda: clock.wait(0.5) or clock.now, stop=clock)
    with pytest.raises(InputError, match=r"nothing that .* shows can be decoded"):
        read(source)
    assert 50 < source.statistics.corrupt < 70


def test_damaged_packets_are_counted_and_passed_over(tmp_path):
    data = bytearray(write_ts(tmp_path / "a.ts", frames=60).read_bytes())
    rng = np.random.default_rng(5)
    for at in rng.integers(8000, len(data), 60):
        data[at] ^= 0xFF
    path = tmp_path / "damaged.ts"
    path.write_bytes(data)
    _, pictures, _ = read(live(open_source(str(path))))
    assert len(pictures) > 10


def test_pixels_become_square(film):
    path = film(sample_aspect_ratio=Fraction(3, 2), frames=3)
    (format_,), pictures, _ = read(live(open_source(str(path))))
    assert (format_.width, format_.height) == (96, 48)
    assert pictures[0].frame.image.shape == (48, 96, 3)


def test_a_source_without_video(film, tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(film(sounds=["aac"]))) as source, av.open(str(path), "w") as target:
        track = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = track
                target.mux(packet)
    with pytest.raises(InputError, match="has no video: give a source with pictures in it"):
        read(live(open_source(str(path))))


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_answers_and_no_key_is_said():
    source = LiveSource(open_source(f"rtmp://127.0.0.1:{free_port()}/live/sesame"))
    with pytest.raises(InputError, match=r"nobody answers at rtmp://127.0.0.1:\d+/live/\*\*\*") as refused:
        read(source)
    assert "sesame" not in str(refused.value)


def test_a_protocol_that_ffmpeg_lacks():
    with pytest.raises(InputError, match=r"srt://127.0.0.1:9\?\*\*\*: .* does not know this protocol"):
        read(LiveSource(open_source("srt://127.0.0.1:9?passphrase=sesame")))


def test_a_host_that_accepts_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        opening = Opening(url=f"rtmp://127.0.0.1:{port}/live/sesame", shown="there", open_timeout=0.2)
        with pytest.raises(InputError, match=r"there shows nothing within 0\.2 s"):
            read(LiveSource(opening))


@contextmanager
def sending(port, *, frames=None, rate=50):
    """Sends pictures to a port in datagrams until the end of the block, or so many."""
    stop = threading.Event()

    def send():
        format_ = OutputFormat(width=64, height=48, rate=Fraction(rate))
        sink = MuxSink("test", UdpWriter(f"udp://127.0.0.1:{port}"), TS, format_)
        rng, index = np.random.default_rng(0), 0
        while not stop.wait(1 / rate) and index != frames:
            image = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
            sink.write(Frame(index=index, pts=index, time_base=Fraction(1, rate), image=image))
            index += 1
        sink.close()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_datagrams_until_they_stop():
    port = free_port(socket.SOCK_DGRAM)
    opening = Opening(
        url=f"udp://127.0.0.1:{port}",
        shown="there",
        format="mpegts",
        open_timeout=20.0,
        read_timeout=0.5,
        options={"analyzeduration": "200000"},
    )
    source, timeline, seen = LiveSource(opening), Timeline(), []

    def go():
        for event in source.read(timeline, lambda format_: None):
            seen.append(event)
            if len(seen) == 20:
                senders.close()

    with ExitStack() as senders:
        senders.enter_context(sending(port))
        with pytest.raises(InputError, match=r"there has sent nothing for 0\.5 s"):
            go()
    steps = [later - earlier for earlier, later in pairwise(times(seen))]
    assert len(seen) >= 20
    assert set(steps) <= {Fraction(count, 50) for count in range(1, 20)}
    captured = [picture.captured_at - float(picture.frame.pts * picture.frame.time_base) for picture in seen]
    assert max(captured) - min(captured) < 2.0


@contextmanager
def web(folder):
    """Serves a folder on the loopback; gives its address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            if "forbidden" in self.path:
                self.send_error(403)
            else:
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_playlist_from_the_web(make_clip, tmp_path):
    folder = tmp_path / "hls"
    folder.mkdir()
    options = {"hls_time": "1"}
    with (
        av.open(str(make_clip(seconds=1.0))) as clip,
        av.open(str(folder / "index.m3u8"), "w", format="hls", options=options) as target,
    ):
        tracks = [target.add_stream_from_template(stream) for stream in clip.streams]
        for packet in clip.demux():
            if packet.size:
                packet.stream = tracks[packet.stream.index]
                target.mux(packet)
    with web(folder) as address:
        (format_,), pictures, sounds = read(live(open_source(f"{address}/index.m3u8")))
    assert len(pictures) == 24
    assert len(sounds) > 30
    assert format_.sound.codec == "aac"


def test_a_playlist_from_the_web_reads_no_file_of_this_machine(make_clip, tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    clip = make_clip()
    (folder / "index.m3u8").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{clip}\n#EXT-X-ENDLIST\n"
    )
    with web(folder) as address, pytest.raises(InputError):
        read(live(open_source(f"{address}/index.m3u8")))


@pytest.mark.parametrize(("name", "says"), [("forbidden", "403"), ("missing", "404")])
def test_a_web_server_that_refuses(tmp_path, name, says):
    with web(tmp_path) as address, pytest.raises(InputError, match=rf"refuses \(Server returned {says}"):
        read(LiveSource(open_source(f"{address}/{name}.m3u8?token=sesame")))


PUBLISH = textwrap.dedent(
    """
    import sys, av
    clip = av.open(sys.argv[1])
    for _ in range(200):
        target = av.open(sys.argv[2], "w", format="rtsp" if sys.argv[2].startswith("rtsp") else "flv")
        tracks = [target.add_stream_from_template(stream) for stream in clip.streams]
        try:
            target.start_encoding()
            break
        except OSError:
            continue
    for packet in clip.demux():
        if packet.size:
            packet.stream = tracks[packet.stream.index]
            target.mux(packet)
    target.close()
    """
)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("rtmp://127.0.0.1:{}/live/sesame", r"whoever published to rtmp://127.0.0.1:\d+/live/\*\*\* left"),
        ("rtsp://127.0.0.1:{}/live", r"whoever published to rtsp://127.0.0.1:\d+/live left"),
    ],
)
def test_listening_to_a_publisher_until_it_leaves(make_clip, address, says):
    """The publisher is FFmpeg's, in a process of its own."""
    clip, address = make_clip(seconds=1.0), address.format(free_port())
    source, formats = LiveSource(open_source(address, listen=True)), []
    publisher = subprocess.Popen([sys.executable, "-c", PUBLISH, str(clip), address])
    with pytest.raises(SourceGone, match=says):
        for _ in source.read(Timeline(), formats.append):
            pass
    assert publisher.wait(20) == 0
    assert source.statistics.pictures == 24
    assert formats[0].sound.codec == "aac"


@pytest.mark.parametrize("address", ["rtmp://127.0.0.1:{}/live/key", "rtsp://127.0.0.1:{}/live"])
def test_whoever_listens_can_be_interrupted(address):
    source = LiveSource(open_source(address.format(free_port()), listen=True))
    thread = threading.Thread(target=lambda: read(source))
    thread.start()
    while thread.is_alive():
        source.interrupt()
        thread.join(0.05)


def test_an_address_that_cannot_be_listened_at():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"rtmp://127.0.0.1:{taken.getsockname()[1]}/live/sesame"
        with pytest.raises(InputError, match=r"cannot listen at .*/live/\*\*\* \(.*\): take another"):
            read(LiveSource(open_source(address, listen=True)))


def test_sound_that_stands_long_before_its_pictures_does_not_slow_them_down(film, tmp_path):
    """A clip as some cameras write it: all sound of two seconds, then their pictures."""
    path = tmp_path / "blocks.mkv"
    with av.open(str(film(frames=100, sounds=["aac"]))) as clip:
        packets = [packet for packet in clip.demux() if packet.size]
        with av.open(str(path), "w", container_options={"max_interleave_delta": "1"}) as target:
            tracks = {stream.index: target.add_stream_from_template(stream) for stream in clip.streams}
            block = lambda packet: (packet.dts * packet.time_base // 2, packet.stream.type != "audio")  # noqa: E731
            for packet in sorted(packets, key=block):
                packet.stream = tracks[packet.stream.index]
                target.mux(packet)
    timeline = Timeline()
    _, pictures, sounds = read(live(open_source(str(path))), timeline)
    assert timeline.jumps == 0
    assert abs(sounds[0].begin - times(pictures)[0]) < 0.1
    captured = [picture.captured_at for picture in pictures]
    assert captured[-1] - captured[0] == pytest.approx(99 / 25, abs=0.01)
