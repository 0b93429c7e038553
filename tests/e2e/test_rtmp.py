"""A real RTMP server in the middle: pushed to, pulled from, refusing, killed and started again.

The server is nginx with its RTMP module. Whoever feeds it is FFmpeg, in a process of its own, and whoever
watches is FFmpeg too.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.error import FFmpegError
from av.video.frame import VideoFrame

from toonstream.stream.live.core import LiveToon
from toonstream.stream.live.session import End
from toonstream.stream.live.settings import Plan
from toonstream.stream.live.statistics import Meter
from toonstream.stream.relay import Relay
from toonstream.stream.retry import FOREVER, Patience
from toonstream.stream.sinks.open import open_destination
from toonstream.stream.sinks.tee import Outlet, Tee
from toonstream.stream.sources.live import LiveSource
from toonstream.stream.sources.open import open_source

MODULE = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    NGINX is None or not MODULE.is_file(), reason="needs nginx and libnginx-mod-rtmp, as Debian has them"
)

SECONDS = 30.0  # that anything here may take
QUICK = Patience(first=0.05, cap=0.2, limit=FOREVER, first_limit=FOREVER)
PLAN = Plan(size=(64, 48), steps=1, window=8, stride=4)
RATE, SOUND_RATE = 25, 48_000
FLASHES = range(20, 500, 25)  # pictures that are white, and beep

CONFIGURATION = """
load_module {module};
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
rtmp {{
    server {{
        listen 127.0.0.1:{port};
        application live {{ live on; }}
        application locked {{ live on; on_publish http://127.0.0.1:{door}/; }}
        application shut {{ live on; deny publish all; }}
    }}
}}
"""

FEED = textwrap.dedent(
    """
    import sys, time, av
    while True:
        try:
            with av.open(sys.argv[1]) as clip, av.open(sys.argv[2], "w", format="flv") as target:
                tracks = [target.add_stream_from_template(stream) for stream in clip.streams]
                zero = time.monotonic()
                for packet in clip.demux():
                    if packet.size:
                        time.sleep(max(0, float(packet.dts * packet.time_base) - (time.monotonic() - zero)))
                        packet.stream = tracks[packet.stream.index]
                        target.mux(packet)
        except OSError:
            time.sleep(0.05)
    """
)


class Server:
    """nginx on a random port of the loopback, as often as it is started."""

    def __init__(self, folder: Path, door: int) -> None:
        self.port = free_port()
        self._configuration = folder / "nginx.conf"
        self._configuration.write_text(
            CONFIGURATION.format(module=MODULE, folder=folder, port=self.port, door=door)
        )
        self._log = folder / "error.log"
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, name: str) -> str:
        return f"rtmp://127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        words = [str(NGINX), "-c", str(self._configuration), "-e", str(self._log)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._answers)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1.0):
            return True
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        threading.Event().wait(0.02)


@pytest.fixture
def door() -> Iterator[int]:
    """Somebody who is asked who may publish, and says no."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(403)

        def log_message(self, *words: object) -> None:
            pass

    answering = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=answering.serve_forever)
    thread.start()
    yield answering.server_port
    answering.shutdown()
    answering.server_close()
    thread.join()


@pytest.fixture
def server(tmp_path: Path, door: int) -> Iterator[Server]:
    folder = tmp_path / "nginx"
    folder.mkdir()
    made = Server(folder, door)
    made.start()
    yield made
    made.kill()


@pytest.fixture
def flashes(tmp_path: Path) -> Path:
    """A dark clip of twelve seconds with a white picture and a beep every second."""
    path = tmp_path / "flashes.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"g": "25", "bf": "0", "crf": "20"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        track: Any = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        container.start_encoding()
        for index in range(RATE * 12):
            image = np.full((48, 64, 3), 235 if index in FLASHES else 20, np.uint8)
            picture = VideoFrame.from_ndarray(image, format="rgb24")
            picture.pts, picture.time_base = index, Fraction(1, RATE)
            container.mux(video.encode(picture))
        samples = np.zeros(SOUND_RATE * 12, np.float32)
        for index in FLASHES:
            begin = index * SOUND_RATE // RATE
            length = len(samples[begin : begin + 2000])
            samples[begin : begin + length] = 0.8 * np.sin(np.arange(length) * 0.3)
        for begin in range(0, len(samples), 1024):
            frame = AudioFrame.from_ndarray(samples[None, begin : begin + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, begin, Fraction(1, SOUND_RATE)
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
        container.mux(video.encode(None))
    return path


@pytest.fixture
def feed(flashes: Path) -> Iterator[Callable[[str], "subprocess.Popen[bytes]"]]:
    """Publishes the clip to an address, again and again, in real time."""
    feeders = []

    def begin(address: str) -> "subprocess.Popen[bytes]":
        feeders.append(subprocess.Popen([sys.executable, "-c", FEED, str(flashes), address]))
        return feeders[-1]

    yield begin
    for feeder in feeders:
        feeder.kill()
        feeder.wait()


class Inverter:
    """A session that turns light into dark, in bursts of four, four pictures late, as a window would."""

    def __init__(self, deliver: Callable[[LiveToon], None], ended: Callable[[End], None]) -> None:
        self._deliver, self._ended = deliver, ended
        self._waiting: list[LiveToon] = []
        self._over = False
        self.drawn = 0

    def offer(self, frame: Any, captured_at: float) -> None:
        toon = replace(frame, image=255 - frame.image, index=self.drawn)
        self.drawn += 1
        now = time.perf_counter()
        self._waiting.append(
            LiveToon(source=frame, toon=toon, captured_at=captured_at, committed_at=now, plan=PLAN)
        )
        if len(self._waiting) == 8:
            self._flush(4)

    def _flush(self, count: int) -> None:
        for made in self._waiting[:count]:
            self._deliver(made)
        del self._waiting[:count]

    def finish(self) -> None:
        self._flush(8)
        self.close()

    def close(self) -> None:
        if not self._over:
            self._over = True
            self._ended(End(reason="finished", message="done"))

    def wait(self, seconds: float | None = None) -> bool:
        return self._over

    def note_shown(self, toon: LiveToon, at: float | None = None) -> None:
        pass

    def statistics(self) -> Any:
        return Meter().read(at=0.0)


class Running:
    """A relay on a thread of its own, until it is stopped."""

    def __init__(
        self, source: str, *destinations: str, patience: Patience = QUICK, listen: bool = False
    ) -> None:
        self.lines: list[str] = []
        self._stop = threading.Event()
        outlets = [Outlet(open_destination(name), patience, note=self.lines.append) for name in destinations]
        self._relay = Relay(
            LiveSource(open_source(source, listen=listen), clock=time.perf_counter),
            Inverter,
            Tee(outlets),
            size=lambda width, height: (64, 48),
            patience=patience,
            note=self.lines.append,
        )
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.news = self._relay.run(stopped=self._stop.is_set)
        except OSError as error:  # OutputError
            self.error = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def outlet(self, number: int = 0) -> Any:
        return self._relay.news().outlets[number]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def lasts(seconds: float) -> Callable[[list[tuple[float, float]]], bool]:
    return lambda pictures: pictures[-1][0] - pictures[0][0] >= seconds


def moves(pictures: list[tuple[float, float]]) -> bool:
    """Whether more is shown than the last toon, repeated: that is five times a second."""
    return sum(later - earlier < 0.1 for (earlier, _), (later, _) in pairwise(pictures)) > 10


def watch(
    address: str, enough: Callable[[list[tuple[float, float]]], bool]
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Watch until it was enough: (time, brightness) of the pictures, (time, loudness) of the sound."""
    end = time.monotonic() + SECONDS
    while True:
        pictures: list[tuple[float, float]] = []
        sounds: list[tuple[float, float]] = []
        try:
            with av.open(
                address, timeout=(3.0, 3.0), container_options={"analyzeduration": "700000"}
            ) as stream:
                for frame in stream.decode(video=0, audio=0):
                    assert frame.time is not None
                    level = float(
                        np.abs(
                            frame.to_ndarray(format="gray")
                            if isinstance(frame, VideoFrame)
                            else frame.to_ndarray()
                        ).max()
                    )
                    (pictures if isinstance(frame, VideoFrame) else sounds).append((frame.time, level))
                    if pictures and enough(pictures):
                        return pictures, sounds
                    assert time.monotonic() < end
        except (FFmpegError, IndexError, ValueError):
            assert time.monotonic() < end


def test_from_one_stream_to_another_and_a_folder_with_lips_in_sync(
    server: Server, feed: Callable[[str], object], tmp_path: Path
) -> None:
    feed(server.address("live/in"))
    toon = server.address("live/toon")
    with Running(server.address("live/in"), toon, f"{tmp_path}/hls/", f"{tmp_path}/toon.mp4") as relay:
        pictures, sounds = watch(toon, lasts(3.2))
        assert [relay.outlet(number).opened for number in range(3)] == [1, 1, 1]
    dark = [time for time, level in pictures if level < 100]
    beeps = [time for time, level in sounds if level > 0.3]
    assert 3 <= len(dark) <= 8
    apart = [min(abs(beep + 0.5 * 1024 / SOUND_RATE - flash) for beep in beeps) for flash in dark[1:-1]]
    assert max(apart) <= 0.04
    assert relay.news.jumps == 0
    for name in ("hls/index.m3u8", "toon.mp4"):
        with av.open(str(tmp_path / name)) as stored:
            levels = [frame.to_ndarray(format="gray").mean() for frame in stored.decode(video=0)]
        assert len(levels) >= len(pictures)
        assert np.median(levels) > 200  # a dark clip, inverted


def test_a_server_that_is_killed_and_started_again(server: Server, feed: Callable[[str], object]) -> None:
    feed(server.address("live/in"))
    toon = server.address("live/toon")
    with Running(server.address("live/in"), toon) as relay:
        watch(toon, moves)
        server.kill()
        until(lambda: relay.outlet().state == "away")
        until(lambda: sum("again in" in line for line in relay.lines) >= 3)
        server.start()
        watch(toon, moves)
        assert relay.outlet().opened >= 2
        assert relay.alive
    assert any(line.endswith("/live/*** is there again") for line in relay.lines)
    assert not any("/live/toon" in line or "/live/in" in line for line in relay.lines)


def test_publishers_come_straight_to_us_and_go(
    server: Server, feed: Callable[[str], "subprocess.Popen[bytes]"]
) -> None:
    address, toon = f"rtmp://127.0.0.1:{free_port()}/live/sesame", server.address("live/toon")
    with Running(address, toon, listen=True) as relay:
        first = feed(address)
        watch(toon, moves)
        first.kill()
        until(lambda: any("again in" in line for line in relay.lines))
        feed(address.replace("sesame", "wrong"))
        feed(address)
        until(lambda: any(line.endswith("is there again") for line in relay.lines))
        watch(toon, moves)
        assert relay.outlet().opened == 1
    assert any("whoever published to rtmp://127.0.0.1:" in line for line in relay.lines)
    assert not any("sesame" in line for line in relay.lines)


@pytest.mark.parametrize("application", ["locked", "shut", "nowhere"])
def test_a_key_that_is_refused_is_said_in_one_line(server: Server, flashes: Path, application: str) -> None:
    with Running(f"file:{flashes}", server.address(f"{application}/sesame"), patience=Patience()) as relay:
        until(lambda: not relay.alive)
    assert relay.error is not None
    assert f"/{application}/***" in str(relay.error)
    assert "key" in str(relay.error)
    assert "sesame" not in "".join([str(relay.error), *relay.lines])


def toonstream(*words: object, cwd: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "toonstream", *map(str, words)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_with_the_networks_that_ship_until_ctrl_c(
    server: Server, feed: Callable[[str], object], tmp_path: Path
) -> None:
    feed(server.address("live/in"))
    words = ("--size", 64, "--latency", "2s", "--json", "--engine", "onnxruntime")
    process = toonstream(
        server.address("live/in"), server.address("live/sesame"), "toon.mp4", *words, cwd=tmp_path
    )
    assert process.stdout is not None
    events = []
    for line in process.stdout:
        events.append(json.loads(line))
        if events[-1]["event"] == "live" and events[-1]["frames_out"] > 5:
            process.send_signal(signal.SIGINT)
            break
    rest, complaints = process.communicate(timeout=SECONDS)
    assert (process.returncode, complaints) == (128 + signal.SIGINT, "")
    events += [json.loads(line) for line in rest.splitlines()]
    assert [event["event"] for event in events if event["event"] not in ("live", "note")] == ["start", "done"]
    live = [event for event in events if event["event"] == "live"]
    assert all(later["seconds"] - earlier["seconds"] > 0.8 for earlier, later in pairwise(live))
    assert live[-1]["latency_ms"]["p95"] > 0
    assert "sesame" not in json.dumps(events)
    done = events[-1]
    assert [outlet["state"] for outlet in done["destinations"]] == ["closed", "closed"]
    with av.open(str(tmp_path / "toon.mp4")) as stored:
        assert {stream.type for stream in stored.streams} == {"video", "audio"}
        frames = [frame.to_ndarray(format="rgb24") for frame in stored.decode(video=0)]
    assert len(frames) == done["destinations"][1]["frames"]
    assert frames[0].shape == (64, 86, 3)
    assert list(tmp_path.glob(".toon*")) == []


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"rtmp://127.0.0.1:{taken.getsockname()[1]}/live/sesame"
    process = toonstream(address, "toon.mp4", "-q", "--engine", "onnxruntime", cwd=tmp_path)
    out, complaint = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (2, "")
    assert complaint.startswith("toonstream: nobody answers at rtmp://127.0.0.1:")
    assert complaint.count("\n") == 1
    assert "sesame" not in complaint
    assert list(tmp_path.iterdir()) == []
