"""Which source an address means, and what it may fetch on top of itself."""

import pytest

from toonstream.errors import InputError
from toonstream.stream.sources.open import open_source


@pytest.mark.parametrize(
    "address",
    [
        "rtmp://host/app/sesame",
        "rtmps://host/app/sesame",
        "rtsp://me:sesame@host/cam",
        "http://host/index.m3u8?token=sesame",
        "https://host/index.m3u8?token=sesame",
    ],
)
def test_networks_reach_no_file_and_show_no_secret(address):
    opening = open_source(address)
    allowed = opening.options["protocol_whitelist"].split(",")
    assert {"file", "concat", "pipe", "subfile", "data"}.isdisjoint(allowed)
    assert "sesame" not in opening.shown
    assert "sesame" not in repr(opening)


def test_a_clip_reaches_no_network(make_clip):
    opening = open_source(str(make_clip()))
    assert opening.options["protocol_whitelist"] == "file,crypto"
    assert (opening.paced, opening.ends) == (True, True)
    assert open_source(f"file:{make_clip()}").url == opening.url
    assert open_source(f"file://{make_clip()}").url == opening.url


@pytest.mark.parametrize("address", ["rtmp://127.0.0.1/live/key", "rtsp://127.0.0.1:554/x"])
def test_listening(address):
    assert open_source(address, listen=True).listens
    assert not open_source(address).listens


@pytest.mark.parametrize("address", ["clip.mp4", "http://host/x", "webcam:0"])
def test_only_some_can_be_listened_at(address):
    with pytest.raises(InputError, match="--listen waits at rtmp://HOST:PORT/APP/KEY"):
        open_source(address, listen=True)


@pytest.mark.parametrize("address", ["nowhere.mp4", "file:nowhere.mp4", "."])
def test_a_clip_that_is_not_there(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="does not exist: check the name of the clip"):
        open_source(address)
