"""Which source an address means: `rtmp://…`, `https://….m3u8`, `webcam:0`, `screen:`, a file."""

from dataclasses import replace
from pathlib import Path

from toonstream.errors import InputError
from toonstream.stream.address import scheme, shown
from toonstream.stream.sources.clip import FORMATS
from toonstream.stream.sources.device import screen, webcam
from toonstream.stream.sources.live import Opening

__all__ = ["open_source"]

_WEB = "http,https,httpproxy,tcp,tls,crypto"
# What each may fetch on top of itself: a playlist from the network names no file of this machine.
_MAY_FETCH = {
    "rtmp": "rtmp,rtmpt,rtmps,http,tcp,tls",
    "rtsp": "rtsp,rtsps,rtp,udp,tcp,tls,http,https",
    "http": _WEB,
    "https": _WEB,
    "udp": "udp,rtp",
    "rtp": "udp,rtp",
    "tcp": "tcp",
}
_MPEGTS = ("udp", "tcp")  # nothing else is sent over these
_ANALYSIS = {"analyzeduration": "2000000", "probesize": "2000000"}  # microseconds, bytes: begin soon
_AHEAD_FILE, _AHEAD_WEB = 86_400.0, 10.0  # seconds
_WEB_TIMEOUT = 30.0  # seconds; a playlist grows by several at a time


def open_source(address: str, *, listen: bool = False) -> Opening:
    """Read an address. Nothing is opened yet.

    Args:
        address: as the user wrote it.
        listen: whether to wait there for somebody who publishes.

    Raises:
        InputError: there is no source of that kind, or it is not there.
    """
    kind, name = scheme(address), shown(address)
    if listen and kind not in ("rtmp", "rtsp"):
        raise InputError(f"--listen waits at rtmp://HOST:PORT/APP/KEY (or rtsp://), not at {name}")
    if kind == "webcam":
        return webcam(address.partition(":")[2])
    if kind == "screen":
        return screen(address.partition(":")[2])
    if kind in ("", "file"):
        return _file(address, kind)
    family = kind[:4] if kind.startswith(("rtmp", "rtsp")) else kind
    opening = Opening(
        url=address,
        shown=name,
        format="mpegts" if kind in _MPEGTS else None,
        options=_ANALYSIS | ({"protocol_whitelist": _MAY_FETCH[family]} if family in _MAY_FETCH else {}),
        listens=listen,
    )
    if family == "rtsp":
        flags = {"rtsp_flags": "listen", "listen_timeout": "60"} if listen else {"rtsp_flags": "prefer_tcp"}
        return replace(opening, options=opening.options | flags)
    if listen:
        return replace(opening, format="flv")
    if family in ("http", "https"):
        return replace(opening, ahead=_AHEAD_WEB, read_timeout=_WEB_TIMEOUT)
    return opening


def _file(address: str, kind: str) -> Opening:
    text = address.partition(":")[2] if kind else address
    path = Path(text.removeprefix("//") if kind else text).expanduser()
    if not path.is_file():
        raise InputError(f"{path} does not exist: check the name of the clip")
    return Opening(
        url=f"file:{path}",
        shown=str(path),
        options={"protocol_whitelist": "file,crypto", "format_whitelist": f"{FORMATS},hls"},
        paced=True,
        ends=True,
        ahead=_AHEAD_FILE,
    )
