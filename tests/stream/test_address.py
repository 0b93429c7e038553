"""What is shown of an address, and what never is."""

import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from toonstream.stream.address import HIDDEN, is_address, redact, scheme, shown

SCHEMES = st.sampled_from(["rtmp", "rtmps", "rtsp", "http", "https", "srt", "udp", "RTMP"])
# A secret of at least four characters that nothing else in these addresses looks like.
SECRETS = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["Cc", "Zs"]), min_size=4
).map(lambda text: f"s3{text}")
REFERENCE = "rtmp rtmps rtsp http https srt udp host.example:1935 live stream 127.0.0.1 ***"


def assert_hidden(secret, text):
    assert secret not in text
    assert not any(part in text for part in secret.split("/") if len(part) > 5 and part not in REFERENCE)


@given(SCHEMES, SECRETS)
def test_a_stream_key_is_never_shown(kind, key):
    if kind.lower().startswith("rtmp"):
        assert_hidden(key, shown(f"{kind}://host.example:1935/live/{key}"))
        assert_hidden(key, redact(f"push to {kind}://host.example/live/{key} failed"))


@given(SCHEMES, SECRETS, SECRETS)
def test_user_and_password_are_never_shown(kind, user, password):
    text = shown(f"{kind}://{user}:{password}@host.example:1935/live/stream")
    assert_hidden(user, text)
    assert_hidden(password, text)


@given(SCHEMES, SECRETS, SECRETS)
def test_tokens_in_queries_and_fragments_are_never_shown(kind, token, other):
    text = shown(f"{kind}://host.example/live/stream?token={token}#{other}")
    assert_hidden(token, text)
    assert_hidden(other, text)


@given(SCHEMES, SECRETS, st.lists(SECRETS, max_size=3))
def test_all_at_once(kind, secret, more):
    assume("@" not in "".join(more))
    tail = "&".join([f"a={secret}", *more])
    text = shown(f"{kind}://{secret}:{secret}@host.example/live/{HIDDEN}?{tail}")
    assert_hidden(secret, text)


@given(st.text())
def test_anything_can_be_shown_and_redacted(text):
    assert isinstance(shown(text), str)
    assert isinstance(redact(text), str)


@given(st.text(string.ascii_letters + string.digits + " .,:;()-/", max_size=80))
def test_texts_without_addresses_stay_as_they_are(text):
    assume("://" not in text)
    assert redact(text) == text


@pytest.mark.parametrize(
    ("address", "visible"),
    [
        ("rtmp://host/app/key", "rtmp://host/app/***"),
        ("rtmp://host/app", "rtmp://host/app"),
        ("rtmp://host:1935/app/key?auth=1", "rtmp://host:1935/app/***?***"),
        ("rtmps://u:p@host/app/key", "rtmps://***@host/app/***"),
        ("https://cdn.example/cam/index.m3u8?token=x", "https://cdn.example/cam/index.m3u8?***"),
        ("rtsp://10.0.0.3:554/user=admin_password=x_channel=1", "rtsp://10.0.0.3:554/***"),
        ("udp://239.0.0.1:5000", "udp://239.0.0.1:5000"),
        ("rtsp://admin:a/b@host/x", "rtsp://***"),
        ("webcam:0", "webcam:0"),
        ("clip with @.mp4", "clip with @.mp4"),
        ("file:a.mp4", "file:a.mp4"),
    ],
)
def test_what_is_left(address, visible):
    assert shown(address) == visible


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("rtmp://a/b/c", "rtmp"),
        ("RTSP://a", "rtsp"),
        ("webcam:", "webcam"),
        ("screen::0", "screen"),
        ("hls:folder", "hls"),
        ("file:x.mp4", "file"),
        (r"C:\clip.mp4", ""),
        ("clip:2.mp4", ""),
        ("demo", ""),
    ],
)
def test_schemes(text, kind):
    assert scheme(text) == kind
    assert is_address(text) == bool(kind)
