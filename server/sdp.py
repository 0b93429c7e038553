"""What a session description says, as far as we have to know before and after aiortc reads it."""

import re
from dataclasses import dataclass

from aiortc import RTCIceCandidate
from aiortc.sdp import candidate_from_sdp

from toonstream.errors import InputError

__all__ = ["Fragment", "Offer", "candidate_count", "parse_fragment", "read_offer", "sending_codecs"]

_KINDS = ("audio", "video")
_CANDIDATE = "a=candidate:"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """An offer that looks like one.

    Attributes:
        sdp: with candidates left out that only name a host on the client's own link: the client finds us,
            and looking them up would make us ask the whole network.
        kinds: of its media sections, in order.
        sends: of these, what the client would send. receives: what it would take.
        ice_user: the client's ICE user fragment.
    """

    sdp: str
    kinds: tuple[str, ...]
    sends: tuple[str, ...]
    receives: tuple[str, ...]
    ice_user: str


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A trickled SDP fragment (RFC 8840).

    Attributes:
        ice_user: the user fragment that the candidates belong to, or None where it is not said.
        candidates: in order; None says that there are no more.
    """

    ice_user: str | None
    candidates: tuple[RTCIceCandidate | None, ...]


def read_offer(text: str, *, candidates: int) -> Offer:
    """Look at an offer before anything is spent on it.

    Args:
        text: the body of a request.
        candidates: how many it may name.

    Raises:
        InputError: it is no offer, or asks for more than one stream.
    """
    if not text.startswith("v=0"):
        raise InputError("the body is not SDP: it should begin with v=0")
    if "\x00" in text:
        raise InputError("the SDP has a zero byte in it")
    lines = [line for line in text.splitlines() if not _names_local_host(line)]  # as aiortc splits them
    named = candidate_count(text)
    text = "\r\n".join([*lines, ""])
    kinds = tuple(re.findall(r"^m=(\S*)", text, re.MULTILINE))
    unknown = [kind for kind in kinds if kind not in _KINDS]
    if unknown:
        raise InputError(f"the offer has a section {unknown[0][:40]!r}: send audio and video only")
    doubled = [kind for kind in _KINDS if kinds.count(kind) > 1]
    if doubled:
        raise InputError(f"the offer has several {doubled[0]} sections: send one of each")
    if not kinds:
        raise InputError("the offer has no media section")
    user = re.search(r"^a=ice-ufrag:(\S+)", text, re.MULTILINE)
    if user is None:
        raise InputError("the offer has no a=ice-ufrag: it is not one that WebRTC made")
    if named > candidates:
        raise InputError(f"the offer names more than {candidates} candidates")
    directions = _directions(text)
    return Offer(
        sdp=text,
        kinds=kinds,
        sends=tuple(kind for kind, direction in directions.items() if direction in ("sendrecv", "sendonly")),
        receives=tuple(
            kind for kind, direction in directions.items() if direction in ("sendrecv", "recvonly")
        ),
        ice_user=user[1],
    )


def _directions(text: str) -> dict[str, str]:
    """Kind → which way media of it would go; sections that are turned off are left out."""
    head, *sections = re.split(r"^(?=m=)", text, flags=re.MULTILINE)
    pattern = re.compile(r"^a=(sendrecv|sendonly|recvonly|inactive)\s*$", re.MULTILINE)
    usual = pattern.search(head)
    found = {}
    for section in sections:
        header = re.match(r"m=(\w+) (\d{1,5})\b", section)
        off = header is None or (
            int(header[2]) == 0 and not re.search(r"^a=bundle-only\s*$", section, re.MULTILINE)
        )
        if header is not None and not off:
            direction = pattern.search(section) or usual
            found[header[1]] = direction[1] if direction else "sendrecv"
    return found


def candidate_count(text: str) -> int:
    """How many candidates a description or a fragment names."""
    return sum(line.startswith(_CANDIDATE) for line in text.splitlines())


def _names_local_host(line: str) -> bool:
    """Whether a line is a candidate by a name that only the client's own link knows (mDNS)."""
    if not line.startswith(_CANDIDATE):
        return False
    words = line.removeprefix(_CANDIDATE).split()
    return len(words) > 4 and words[4].lower().endswith(".local")


def parse_fragment(text: str) -> Fragment:
    """Read a trickled fragment.

    Raises:
        InputError: it is nonsense.
    """
    user: str | None = None
    mid: str | None = None
    candidates: list[RTCIceCandidate | None] = []
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == "a=ice-ufrag":
            user = value.strip()
        elif name == "a=mid":
            mid = value.strip()
        elif line.strip() == "a=end-of-candidates":
            candidates.append(None)
        elif name == "a=candidate" and not _names_local_host(line):
            try:
                candidate = candidate_from_sdp(value)
            except (AssertionError, ValueError) as error:
                raise InputError(f"not an ICE candidate: {value.strip()[:80]!r}") from error
            candidate.sdpMid = mid
            if mid is None:
                candidate.sdpMLineIndex = 0
            candidates.append(candidate)
    if user is None and not candidates:
        raise InputError("the fragment names neither a candidate nor an a=ice-ufrag")
    return Fragment(ice_user=user, candidates=tuple(candidates))


def sending_codecs(answer: str) -> dict[str, str]:
    """Kind → the codec that our answer puts first, and that aiortc therefore sends, where it sends at all.

    A codec is named as in `a=rtpmap`, in lower case: `vp8`, `h264`, `opus`.
    """
    codecs = {}
    for section in re.split(r"^(?=m=)", answer, flags=re.MULTILINE)[1:]:
        header = section.split(None, 4)
        kind = header[0].removeprefix("m=")
        if kind not in ("audio", "video") or not re.search(r"^a=send(?:recv|only)", section, re.MULTILINE):
            continue
        first = header[3] if len(header) > 3 else ""
        name = re.search(rf"^a=rtpmap:{re.escape(first)} ([\w.-]+)/", section, re.MULTILINE)
        if name:
            codecs[kind] = name[1].lower()
    return codecs
