"""Whether anybody is there, told in a moment."""

import socket

import pytest

from toonstream.errors import InputError, OutputError
from toonstream.stream.reach import reach


def test_somebody_is_there():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        reach(f"rtmp://127.0.0.1:{listening.getsockname()[1]}/live/sesame", OutputError)


@pytest.mark.parametrize("kind", ["rtmp", "rtsp", "http", "tcp"])
def test_nobody_is_there(kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=rf"nobody answers at {kind}://127.0.0.1:{port}/") as refused:
        reach(f"{kind}://127.0.0.1:{port}/live?key=sesame", InputError)
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("rtmp://no-such-host.invalid/app/key", "no host of that name"),
        ("rtmp:///app/key", "names no host"),
        ("tcp://host", "names no host"),
        ("rtmp://host:many/app/key", "names no host"),
    ],
)
def test_addresses_that_lead_nowhere(address, says):
    with pytest.raises(OutputError, match=says):
        reach(address, OutputError)


@pytest.mark.parametrize("address", ["udp://127.0.0.1:9", "webcam:0", "clip.mp4", "hls:folder", "srt://h:1"])
def test_others_are_passed_over(address):
    reach(address, OutputError)
