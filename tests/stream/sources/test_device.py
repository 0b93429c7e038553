"""Cameras and screens are found by what people call them; of one that is not there, it is told which are."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise

import av
import numpy as np
import pytest

from toonstream.errors import InputError
from toonstream.stream.sources.device import Camera, list_cameras, list_screens, platform, screen, webcam
from toonstream.stream.sources.live import LiveSource
from toonstream.stream.sources.open import open_source
from toonstream.stream.sources.timeline import Timeline

LINUX, MAC, WINDOWS = platform("linux"), platform("darwin"), platform("win32")
CAMERAS = (
    Camera(name="/dev/video0", description="Integrated Camera"),
    Camera(name="/dev/video2", description="USB Capture HDMI"),
)


def found(wanted, system=LINUX, cameras=CAMERAS):
    return webcam(wanted, system=system, cameras=lambda _: cameras)


@pytest.mark.parametrize(
    ("wanted", "url"),
    [
        ("", "/dev/video0"),
        ("0", "/dev/video0"),
        ("1", "/dev/video2"),
        ("2", "/dev/video2"),
        ("/dev/video2", "/dev/video2"),
        ("usb capture", "/dev/video2"),
    ],
)
def test_a_camera_by_number_name_or_description(wanted, url):
    assert (found(wanted).url, found(wanted).format) == (url, "v4l2")


@pytest.mark.parametrize("wanted", ["7", "/dev/video9", "film"])
def test_a_camera_that_does_not_exist_and_which_ones_do(wanted):
    with pytest.raises(InputError, match=r"take one of 0 \(Integrated Camera\), 1 \(USB Capture HDMI\)"):
        found(wanted)


def test_no_camera_at_all():
    with pytest.raises(InputError, match="no camera is found: plug one in"):
        found("0", cameras=())


def test_other_systems():
    names = (Camera(name="0", description="FaceTime HD Camera"), Camera(name="HD Pro", description="HD Pro"))
    assert (found("facetime", MAC, names).url, found("", MAC, names).format) == ("0:none", "avfoundation")
    assert (found("hd pro", WINDOWS, names).url, found("1", WINDOWS, names).format) == (
        "video=HD Pro",
        "dshow",
    )
    with pytest.raises(InputError, match="cameras and screens of amiga are not known"):
        platform("amiga")


def test_this_machine_is_asked_without_complaint():
    for system in (LINUX, MAC, WINDOWS):  # FFmpeg knows one of them
        assert isinstance(list_cameras(system), tuple)


def test_the_usual_screen_and_a_named_one():
    assert screen("", system=LINUX, environment={"DISPLAY": ":7"}).url == ":7"
    assert screen(":1.0", system=LINUX, environment={}).url == ":1.0"
    assert screen("", system=WINDOWS, environment={}).url == "desktop"


def test_no_screen():
    with pytest.raises(InputError, match="no screen is found: set DISPLAY"):
        screen("", system=LINUX, environment={}, screens=lambda system: ())
    with pytest.raises(InputError, match="no screen is found: take one of :1, :9 as in screen::1"):
        screen("", system=LINUX, environment={}, screens=lambda system: (":1", ":9"))


def test_screens_are_those_of_x_servers(tmp_path):
    for name in ("X9", "X1", "X10", "other"):
        (tmp_path / name).touch()
    assert list_screens(LINUX, tmp_path) == (":1", ":9", ":10")
    assert list_screens(LINUX, tmp_path / "none") == list_screens(MAC, tmp_path) == ()


def test_addresses_of_devices(monkeypatch):
    monkeypatch.setattr("toonstream.stream.sources.device.sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", ":3")
    assert open_source("screen:").url == ":3"
    assert open_source("screen::9").url == ":9"


@pytest.mark.skipif("x11grab" not in av.formats_available, reason="needs FFmpeg's x11grab")
def test_a_screen_that_does_not_open():
    source = LiveSource(screen(":987", system=LINUX, screens=lambda system: (":1", ":9")))
    with pytest.raises(InputError, match=r"screen::987 does not open .* check that .*\(there are: :1, :9\)$"):
        next(source.read(Timeline(), lambda format_: None))


XVFB = shutil.which("Xvfb")


@pytest.fixture
def display(request) -> Iterator[str]:
    """A screen of one colour that nobody looks at."""
    reading, writing = os.pipe()
    words = [
        XVFB,
        "-displayfd",
        str(writing),
        request.param,
        "-screen",
        "0",
        "160x120x24",
        "-nolisten",
        "tcp",
    ]
    server = subprocess.Popen(words, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as numbers:
        yield f":{int(numbers.readline())}"
    server.terminate()
    server.wait()


@pytest.mark.skipif("x11grab" not in av.formats_available, reason="needs FFmpeg's x11grab")
@pytest.mark.skipif(XVFB is None, reason="needs Xvfb")
@pytest.mark.parametrize(("display", "level"), [("-wr", 255), ("-br", 0)], indirect=["display"])
def test_a_real_screen(display, level):
    assert display in list_screens(LINUX)
    source = LiveSource(open_source(f"screen:{display}"))
    read = source.read(Timeline(), lambda format_: None)
    frames = [frame for event, _ in zip(read, range(5), strict=False) for frame in [event.frame]]
    read.close()
    assert frames[0].image.shape == (120, 160, 3)
    assert all(np.median(frame.image) == level for frame in frames)
    times = [frame.pts * frame.time_base for frame in frames]
    assert all(later > earlier for earlier, later in pairwise(times))
