"""What an operator may set."""

import json
from pathlib import Path

import pytest

from toonstream.errors import SettingError
from toonstream.server.settings import IceServer, ServerSettings, read_ice_servers

TOKEN = "a token of some length"


def test_out_of_the_box_it_listens_to_this_machine_only() -> None:
    settings = ServerSettings()
    assert settings.loopback
    assert settings.url == "http://127.0.0.1:8080/"
    assert settings.ssl_context() is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.5", "example.org"])
def test_whoever_can_be_reached_needs_a_token(host: str) -> None:
    with pytest.raises(SettingError, match="set a token"):
        ServerSettings(host=host)
    assert not ServerSettings(host=host, token=TOKEN).loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_has_several_names(host: str) -> None:
    assert ServerSettings(host=host).loopback


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"token": "short"},
        {"token": "lang genug, aber ähnlich"},
        {"tls_cert": Path("cert.pem")},
        {"max_sessions": 0},
        {"max_watchers": -1},
        {"latency": 0.0},
        {"codec": "av1"},
        {"bitrate": 10},
        {"grace": -1.0},
        {"origins": ["example.org"]},
        {"origins": ["https://example.org/path"]},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        ServerSettings(**wrong)


def test_a_certificate_that_is_none_is_said(tmp_path: Path) -> None:
    pem = tmp_path / "x.pem"
    pem.write_text("no certificate")
    with pytest.raises(SettingError, match="for TLS"):
        ServerSettings(tls_cert=pem, tls_key=pem).ssl_context()


def test_ice_servers_are_read_as_written() -> None:
    assert IceServer.parse("stun:example.org:3478") == IceServer(url="stun:example.org:3478")
    turn = IceServer.parse("turn:me:se:cr@t@example.org:3478?transport=tcp")
    assert (turn.url, turn.username, turn.credential) == (
        "turn:example.org:3478?transport=tcp",
        "me",
        "se:cr@t",
    )


@pytest.mark.parametrize("text", ["example.org", "http://x", "turn:example.org", "turn:me:secret@", "stun:"])
def test_other_ice_servers_are_refused_without_repeating_a_password(text: str) -> None:
    with pytest.raises(SettingError) as caught:
        IceServer.parse(text)
    assert "secret" not in str(caught.value)


def test_ice_servers_come_from_a_file_as_browsers_have_it(tmp_path: Path) -> None:
    path = tmp_path / "ice.json"
    entries = [{"urls": ["stun:a:1", "stun:b:2"]}, {"urls": "turn:c", "username": "u", "credential": "p"}]
    path.write_text(json.dumps(entries))
    assert [server.url for server in read_ice_servers(path)] == ["stun:a:1", "stun:b:2", "turn:c"]
    for text in ("{", "3", '[{"url": "stun:a"}]'):
        path.write_text(text)
        with pytest.raises(SettingError):
            read_ice_servers(path)
    with pytest.raises(SettingError, match="No such file"):
        read_ice_servers(tmp_path / "none.json")


def test_secrets_are_not_in_what_is_printed() -> None:
    settings = ServerSettings(token=TOKEN, ice_servers=(IceServer.parse("turn:me:secret@example.org"),))
    assert TOKEN not in repr(settings)
    assert "secret" not in repr(settings)
