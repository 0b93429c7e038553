"""Live toons as they are written: each container, sound copied and encoded, odd sizes, places that refuse."""

import io
import socket
import threading
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from hypothesis import given
from hypothesis import strategies as st

from toonstream.errors import OutputError
from toonstream.stream.compose import fitted
from toonstream.stream.frame import Frame
from toonstream.stream.sinks.live import MuxSink, OutputFormat, Recipe
from toonstream.stream.sinks.open import open_destination
from toonstream.stream.sources.sound import Sound, SoundFormat
from toonstream.stream.sources.timeline import TICK

RATE = 25


def picture(index, width=64, height=48, begin=0):
    image = np.full((height, width, 3), 40, np.uint8)
    image[:, (index * 2) % width :] = 200
    return Frame(index=index, pts=round((begin + Fraction(index, RATE)) / TICK), time_base=TICK, image=image)


def tone(codec="aac", *, seconds=2.0, rate=48_000, begin=0, muxer="nut"):
    """Sound packets as a source gives them."""
    held = io.BytesIO()
    with av.open(held, "w", format=muxer) as container:
        track = container.add_stream(codec, rate=rate, layout="stereo")
        container.start_encoding()
        size = track.codec_context.frame_size or 960
        for at in range(0, int(seconds * rate), size):
            wave = (np.sin(np.arange(at, at + size) * 2 * np.pi * 440 / rate) * 8000).astype(np.int16)
            frame = AudioFrame.from_ndarray(np.repeat(wave, 2)[None], format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            for part in av.AudioResampler(format=track.codec_context.format.name).resample(frame):
                container.mux(track.encode(part))
        container.mux(track.encode(None))
    held.seek(0)
    with av.open(held) as container:
        stream = container.streams.audio[0]
        format_ = SoundFormat.of(stream)
        return [
            Sound(
                data=format_.bare(bytes(packet)),
                begin=begin + max(Fraction(0), packet.pts * packet.time_base),
                length=(packet.duration or 0) * packet.time_base,
                format=format_,
            )
            for packet in container.demux(stream)
            if packet.size
        ]


def write(sink, *, frames=50, sounds=(), begin=0, width=64, height=48):
    waiting = list(sounds)
    for index in range(frames):
        frame = picture(index, width, height, begin)
        sink.write(frame)
        while waiting and waiting[0].begin <= frame.pts * TICK:
            sink.hear(waiting.pop(0))
    sink.close()


def read(path):
    """(times of the pictures, pictures, times of the sound's packets, its codec, seconds of it)."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return [time for time, _ in frames], [image for _, image in frames], [], None, 0.0
        stream = container.streams.audio[0]
        packets = [float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.size]
    with av.open(str(path)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
    name = stream.codec_context.codec.canonical_name
    return [time for time, _ in frames], [image for _, image in frames], packets, name, samples / 48_000


FORMAT = OutputFormat(width=64, height=48, rate=Fraction(RATE))


def with_sound(sounds):
    return OutputFormat(width=64, height=48, rate=Fraction(RATE), sound=sounds[0].format)


@pytest.mark.parametrize(
    ("name", "codec", "written"),
    [
        ("toon.mp4", "aac", "aac"),
        ("toon.mkv", "libopus", "opus"),
        ("toon.webm", "aac", "opus"),
        ("toon.ts", "aac", "aac"),
        ("toon.ts", "libopus", "aac"),
        ("toon.flv", "aac", "aac"),
        ("toon.flv", "libmp3lame", "aac"),
        ("toon.mov", "pcm_mulaw", "aac"),
    ],
)
def test_pictures_and_sound_in_every_container(tmp_path, name, codec, written):
    sounds = tone(codec, begin=100)
    path = tmp_path / name
    write(open_destination(str(path)).open(with_sound(sounds)), sounds=sounds, begin=100)
    times, images, heard, sound, seconds = read(path)
    assert len(times) == 50
    steps = [later - earlier for earlier, later in pairwise(times)]
    assert steps == pytest.approx([1 / RATE] * 49, abs=0.0011)
    assert np.abs(images[10].astype(int) - picture(10).image).mean() < 12
    assert sound == written
    assert abs(heard[0] - times[0]) < 0.04
    assert seconds == pytest.approx(2.0, abs=0.1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_goes_over_networks_has_no_delay_and_a_key_frame_every_second():
    held = io.BytesIO()

    class Wire:
        def write(self, data):
            packets.append(len(data))
            return held.write(data)

        def abort(self):
            pass

        def close(self):
            pass

    packets = []
    recipe = Recipe(muxer="mpegts", muxer_options={"flush_packets": "1"}, copied=frozenset())
    sink = MuxSink("wire", Wire(), recipe, FORMAT)
    for index in range(10):
        before = len(packets)
        sink.write(picture(index))
        assert len(packets) > before or index < 2
    write(sink, frames=100, begin=1)
    held.seek(0)
    with av.open(held) as container:
        keys = [
            float(packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.is_keyframe
        ]
    assert all(later - earlier <= 1.05 for earlier, later in pairwise(keys))


def test_slow_pictures_have_key_frames_as_often(tmp_path):
    path = tmp_path / "slow.ts"
    sink = open_destination(str(path)).open(FORMAT)
    for index in range(0, 200, 20):  # one and a quarter a second
        sink.write(picture(index))
    sink.close()
    with av.open(str(path)) as container:
        assert sum(packet.is_keyframe for packet in container.demux(video=0) if packet.size) >= 5


def test_sound_that_changes_its_format_goes_on(tmp_path):
    sounds = [
        *tone(seconds=1.0),
        *tone(seconds=1.0, rate=44_100, begin=1),
        *tone("libopus", seconds=1.0, begin=2),
    ]
    path = tmp_path / "toon.mp4"
    write(open_destination(str(path)).open(with_sound(sounds)), frames=75, sounds=sounds)
    _, _, heard, sound, seconds = read(path)
    assert sound == "aac"
    assert seconds == pytest.approx(3.0, abs=0.15)
    assert all(later > earlier for earlier, later in pairwise(heard))


def test_sound_of_an_adts_source_fits_an_mp4(tmp_path):
    sounds = tone(muxer="mpegts")
    assert sounds[0].format.extradata == bytes([0x11, 0x90])  # made of what its packets say
    path = tmp_path / "toon.mp4"
    write(open_destination(str(path)).open(with_sound(sounds)), sounds=sounds)
    assert read(path)[4] == pytest.approx(2.0, abs=0.1)


def test_pictures_of_any_size_are_fitted_in(tmp_path):
    path = tmp_path / "toon.mp4"
    sink = open_destination(str(path)).open(FORMAT)
    for index, (width, height) in enumerate([(64, 48), (32, 24), (48, 64), (200, 20), (2, 2)]):
        sink.write(picture(index, width, height))
    sink.close()
    assert {image.shape for image in read(path)[1]} == {(48, 64, 3)}


@given(st.tuples(*[st.integers(1, 90)] * 4))
def test_fitting_keeps_the_shape_and_fills_one_side(sizes):
    width, height, to_width, to_height = sizes
    image = fitted(np.full((height, width, 3), 255, np.uint8), (to_width, to_height))
    assert image.shape == (to_height, to_width, 3)
    rows, columns = np.nonzero(image[..., 0] > 127)
    filled = columns.max() - columns.min() + 1, rows.max() - rows.min() + 1
    assert filled[0] == to_width or filled[1] == to_height


@pytest.mark.parametrize("address", ["folder/", "folder", "hls:folder", "folder/live.m3u8"])
def test_a_folder_for_hls(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    sounds = tone(seconds=5.0)
    destination = open_destination(address)
    write(destination.open(with_sound(sounds)), frames=125, sounds=sounds)
    times, _, heard, _, seconds = read(Path(destination.shown))
    assert len(times) == 125
    assert seconds == pytest.approx(5.0, abs=0.1)
    assert abs(heard[0] - times[0]) < 0.04
    playlist = Path(destination.shown).read_text()
    assert playlist.count("#EXTINF") == 3
    assert "#EXT-X-ENDLIST" in playlist


def test_hls_goes_on_where_it_broke_off(tmp_path):
    destination = open_destination(f"{tmp_path}/live/")
    for _ in range(2):
        write(destination.open(FORMAT), frames=75)
    playlist = (tmp_path / "live" / "index.m3u8").read_text()
    assert "#EXT-X-DISCONTINUITY" in playlist
    assert playlist.count("#EXTINF") == 4


def test_hls_keeps_the_disk_small(tmp_path):
    write(open_destination(f"{tmp_path}/live/").open(FORMAT), frames=25 * 30)
    assert len(list((tmp_path / "live").glob("*.ts"))) <= 9


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "toon.mp4"
    path.write_text("yesterday's")
    sink = open_destination(str(path)).open(FORMAT)
    sink.write(picture(0))
    assert path.read_text() == "yesterday's"
    sink.close()
    assert len(read(path)[0]) == 1


def test_a_file_given_up_is_kept_beside(tmp_path):
    path = tmp_path / "toon.mp4"
    sink = open_destination(str(path)).open(FORMAT)
    for index in range(30):
        sink.write(picture(index))
    sink.abandon()
    assert [file.name for file in tmp_path.iterdir()] == ["toon.partial.mp4"]
    assert len(read(tmp_path / "toon.partial.mp4")[0]) == 30


@pytest.mark.parametrize("end", ["close", "abandon"])
def test_a_file_without_a_picture_is_not_left(tmp_path, end):
    sink = open_destination(str(tmp_path / "toon.mp4")).open(FORMAT)
    getattr(sink, end)()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("toon.avi", "end it in .mp4, .mov, .mkv, .webm, .ts, .flv or .m3u8"),
        ("nowhere/toon.mp4", "make that folder first"),
        ("nowhere/there/", "cannot be made"),
        ("clip.mp4", "is the clip itself"),
        ("50% off/", "takes no % in the name"),
        ("udp://127.0.0.1", "write udp://HOST:PORT"),
        ("tcp://:1", "write tcp://HOST:PORT"),
        ("rtmp://host/app", "write rtmp://HOST/APPLICATION/KEY"),
        ("rtsp://host/x", "nothing is sent to rtsp://host/x: take rtmp://"),
        ("webcam:0", "nothing is sent to webcam:0"),
    ],
)
def test_places_that_cannot_be_written_to_are_told_beforehand(tmp_path, monkeypatch, address, says):
    monkeypatch.chdir(tmp_path)
    clip = tmp_path / "clip.mp4"
    clip.write_text("a clip")
    with pytest.raises(OutputError, match=says):
        open_destination(address, source=clip)
    assert list(tmp_path.iterdir()) == [clip]


def test_datagrams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        sink = open_destination(f"udp://127.0.0.1:{receiver.getsockname()[1]}").open(FORMAT)
        write(sink, frames=10)
        datagrams = [receiver.recv(65536) for _ in range(3)]
    assert {len(datagram) for datagram in datagrams} == {1316}
    assert all(datagram[at] == 0x47 for datagram in datagrams for at in range(0, len(datagram), 188))


def test_nobody_listens_to_datagrams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    write(open_destination(f"udp://127.0.0.1:{port}").open(FORMAT), frames=10)


def test_a_byte_stream_until_the_receiver_leaves():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        received = []

        def receive():
            connection, _ = listening.accept()
            with connection:
                received.append(connection.recv(188))

        thread = threading.Thread(target=receive)
        thread.start()
        sink = open_destination(f"tcp://127.0.0.1:{listening.getsockname()[1]}").open(FORMAT)
        with pytest.raises(OutputError, match="takes nothing any more"):
            write(sink, frames=10_000)
        sink.abandon()
        thread.join()
    assert received[0][0] == 0x47


def test_nobody_accepts_a_byte_stream():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OutputError, match="start the receiver there"):
        open_destination(f"tcp://127.0.0.1:{port}").open(FORMAT)
