"""Offers and fragments, good and bad."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toonstream.errors import InputError
from toonstream.server.sdp import parse_fragment, read_offer, sending_codecs

OFFER = """v=0
o=- 1 1 IN IP4 0.0.0.0
s=-
t=0 0
m=audio 9 UDP/TLS/RTP/SAVPF 111
a=ice-ufrag:abcd
m=video 9 UDP/TLS/RTP/SAVPF 96
a=candidate:1 1 udp 1 0b2e9f3c.local 5 typ host
a=candidate:2 1 udp 1 192.0.2.1 5 typ host
""".replace("\n", "\r\n")
ANSWER = """v=0
m=audio 9 UDP/TLS/RTP/SAVPF 111 0
a=sendrecv
a=rtpmap:0 PCMU/8000
a=rtpmap:111 opus/48000/2
m=video 9 UDP/TLS/RTP/SAVPF 102 96
a=sendonly
a=rtpmap:96 VP8/90000
a=rtpmap:102 H264/90000
""".replace("\n", "\r\n")


def test_an_offer_tells_its_sections_and_loses_its_local_names() -> None:
    offer = read_offer(OFFER, candidates=2)
    assert (offer.kinds, offer.ice_user) == (("audio", "video"), "abcd")
    assert ".local" not in offer.sdp
    assert "192.0.2.1" in offer.sdp


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "v=0"),
        ("hello", "v=0"),
        ("v=0\r\n", "no media"),
        (OFFER + "m=video 9 X 96\r\n", "several video"),
        (OFFER + "m=text 9 X 96\r\n", "'text'"),
        (OFFER + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n", "send audio and video only"),
        (OFFER + "a=x\x0bm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n", "send audio and video only"),
        (OFFER.replace("a=ice-ufrag:abcd", ""), "ice-ufrag"),
        (OFFER + "a=candidate:3 1 udp 1 192.0.2.1 6 typ host\r\n", "more than 2"),
        (OFFER + "\x00", "zero byte"),
    ],
)
def test_other_offers_are_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_offer(text, candidates=2)


@pytest.mark.parametrize(
    "candidate",
    [
        "a=candidate:1 1 udp 1 x.local\t5 typ host",
        "a=candidate: 1 1 udp 1 x.LOCAL 5 typ host",
        "a=x\x0ba=candidate:1 1 udp 1 x.local 5 typ host",
    ],
)
def test_nobody_has_us_look_up_a_local_name(candidate: str) -> None:
    offer = read_offer(
        OFFER.replace("a=candidate:1 1 udp 1 0b2e9f3c.local 5 typ host", candidate), candidates=2
    )
    assert ".local" not in offer.sdp.lower()
    assert "192.0.2.1" in offer.sdp
    fragment = parse_fragment(f"a=ice-ufrag:abcd\r\n{candidate}\r\n")
    assert fragment.candidates == ()


@pytest.mark.parametrize(
    ("lines", "sends", "receives"),
    [
        ("m=video 9 X 96\r\n", ("video",), ("video",)),
        ("m=video 9 X 96\r\na=sendonly\r\n", ("video",), ()),
        ("m=audio 9 X 0\r\na=recvonly\r\nm=video 9 X 96\r\n", ("video",), ("audio", "video")),
        ("a=recvonly\r\nm=video 9 X 96\r\n", (), ("video",)),
        ("a=recvonly\r\nm=video 9 X 96\r\na=sendrecv\r\n", ("video",), ("video",)),
        ("m=video 0 X 96\r\n", (), ()),
        ("m=video 0 X 96\r\na=bundle-only\r\n", ("video",), ("video",)),
        ("m=video \r\n", (), ()),
        (f"m=video {'9' * 5000} X 96\r\n", (), ()),
    ],
)
def test_which_way_media_would_go(lines: str, sends: tuple[str, ...], receives: tuple[str, ...]) -> None:
    offer = read_offer(f"v=0\r\na=ice-ufrag:abcd\r\n{lines}", candidates=2)
    assert (offer.sends, offer.receives) == (sends, receives)


@settings(deadline=None)
@given(st.lists(st.sampled_from([*OFFER.splitlines(), "m=", "m=video", "m=video 0", "a=inactive", "a=", ""])))
def test_an_offer_of_any_lines_is_read_or_refused(lines: list[str]) -> None:
    with suppress(InputError):
        offer = read_offer("\r\n".join(["v=0", *lines]), candidates=2)
        assert {*offer.sends, *offer.receives} <= {*offer.kinds}


def test_a_fragment_holds_candidates_and_their_end() -> None:
    fragment = parse_fragment(
        "a=ice-ufrag:abcd\r\nm=audio 9 X 0\r\na=mid:0\r\n"
        "a=candidate:1 1 udp 1 192.0.2.1 5 typ host\r\n"
        "a=candidate:1 1 udp 1 abc.local 5 typ host\r\na=end-of-candidates\r\n"
    )
    assert fragment.ice_user == "abcd"
    first, last = fragment.candidates
    assert first is not None
    assert (first.ip, first.sdpMid, last) == ("192.0.2.1", "0", None)


@pytest.mark.parametrize("text", ["", "a=mid:0", "a=candidate:1 2 3", "a=candidate:1 x udp 1 h 5 typ host"])
def test_other_fragments_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_fragment(text)


@settings(deadline=None)
@given(st.text(alphabet="av=m:-0123456789 \r\ncndiateosruflgk", max_size=200))
def test_nonsense_is_refused_and_nothing_worse(text: str) -> None:
    for read in (parse_fragment, sending_codecs, lambda text: read_offer(f"v=0{text}", candidates=2)):
        try:
            read(text)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017 what matters is that nothing else is raised


def test_what_is_sent_is_what_the_answer_puts_first() -> None:
    assert sending_codecs(ANSWER) == {"audio": "opus", "video": "h264"}
    assert sending_codecs(ANSWER.replace("sendonly", "recvonly")) == {"audio": "opus"}
