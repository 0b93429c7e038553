"""What the operator of a server may set, checked once."""

import ipaddress
import json
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from toonstream.errors import SettingError

__all__ = ["TOKEN_VARIABLE", "Codec", "IceServer", "Limits", "ServerSettings", "read_ice_servers"]

TOKEN_VARIABLE = "TOONSTREAM_TOKEN"

Codec = Literal["vp8", "h264"]

MIN_TOKEN = 16  # characters; shorter ones are guessed
MIN_BITRATE = 100_000  # bits per second
MAX_BITRATE = 50_000_000
MIN_LATENCY = 0.05  # seconds
MAX_LATENCY = 30.0


@dataclass(frozen=True, kw_only=True)
class IceServer:
    """A STUN or TURN server.

    Attributes:
        url: `stun:HOST[:PORT]`, `turn:HOST[:PORT][?transport=udp|tcp]` or `turns:…`.
        username, credential: for TURN.
    """

    url: str
    username: str | None = None
    credential: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(?:stuns?|turns?):[\w.\-\[\]:]+(?:\?transport=(?:udp|tcp))?", self.url):
            raise SettingError(
                f"ICE server {self.url!r}: write stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT"
            )
        if self.url.startswith("turn") and not (self.username and self.credential):
            raise SettingError(f"ICE server {self.url}: a TURN server needs a user and a password")

    @classmethod
    def parse(cls, text: str) -> "IceServer":
        """Read `stun:HOST:PORT` or `turn:USER:PASSWORD@HOST:PORT?transport=udp`.

        Raises:
            SettingError: it is neither. The password is not repeated.
        """
        scheme, colon, rest = text.partition(":")
        account, _, place = rest.rpartition("@")
        user, _, password = account.partition(":")
        return cls(url=f"{scheme}{colon}{place}", username=user or None, credential=password or None)


def read_ice_servers(path: Path) -> tuple[IceServer, ...]:
    """Read a JSON file as browsers have it: `[{"urls": "turn:…", "username": "…", "credential": "…"}]`.

    Raises:
        SettingError: it cannot be read, or is something else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise SettingError(f"cannot read the ICE servers in {path}: {reason}") from error
    servers: list[IceServer] = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not set(entry) <= {"urls", "username", "credential"}:
            raise SettingError(f"{path}: each ICE server is an object of urls, username and credential")
        urls = entry.get("urls", ())
        servers += [
            IceServer(url=str(url), username=entry.get("username"), credential=entry.get("credential"))
            for url in ([urls] if isinstance(urls, str) else urls)
        ]
    return tuple(servers)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one client may cost.

    Attributes:
        sdp_bytes: of an offer or a trickled fragment.
        candidates: ICE candidates that a client may name.
        frame_side: pixels of the longer side of a published picture.
        body_seconds: that the body of a request may take.
        offers_per_minute: offers from one address.
        changes_per_second: other requests from one address.
        connect_seconds: from the answer to the connection.
        silence_seconds: without a picture, until a publisher's session ends.
        return_seconds: that watchers of a publisher who was cut off are kept, in case it comes back.
    """

    sdp_bytes: int = 65_536
    candidates: int = 64
    frame_side: int = 2_048
    body_seconds: float = 10.0
    offers_per_minute: float = 60.0
    changes_per_second: float = 20.0
    connect_seconds: float = 30.0
    silence_seconds: float = 15.0
    return_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What the operator asks for.

    Attributes:
        host: address to listen on. Anything but loopback needs a token.
        port: 0 lets the system choose.
        token: what clients show as `Authorization: Bearer …`, or None.
        tls_cert, tls_key: PEM files, both or none.
        ice_servers: STUN and TURN servers, for us and for clients.
        origins: other sites whose pages may use the server; `*` is all.
        max_sessions: publishers at a time.
        max_watchers: watchers at a time, of all sessions together.
        latency: promised, in seconds.
        codec: sent where the client has it; the other one where not.
        bitrate: of each video, in bits per second.
        grace: seconds that a shutdown may take.
        limits: what one client may cost.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ice_servers: tuple[IceServer, ...] = ()
    origins: Sequence[str] = ()
    max_sessions: int = 2
    max_watchers: int = 50
    latency: float = 0.4
    codec: Codec = "vp8"
    bitrate: int = 2_500_000
    grace: float = 5.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise SettingError(f"port {self.port}: take one from 1 to 65535, or 0 for any that is free")
        if self.token is None and not self.loopback:
            raise SettingError(
                f"host {self.host} can be reached from outside: set a token with --token or TOONSTREAM_TOKEN"
            )
        if self.token is not None and (len(self.token) < MIN_TOKEN or not self.token.isascii()):
            raise SettingError(f"the token is too short: take at least {MIN_TOKEN} ASCII characters")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise SettingError("TLS needs both --tls-cert and --tls-key")
        if self.max_sessions < 1:
            raise SettingError(f"max sessions {self.max_sessions}: take at least 1")
        if self.max_watchers < 0:
            raise SettingError(f"max watchers {self.max_watchers}: take 0 or more")
        if not MIN_LATENCY <= self.latency <= MAX_LATENCY:
            raise SettingError(f"latency {self.latency:g} s: take {MIN_LATENCY:g} to {MAX_LATENCY:g} s")
        if self.codec not in get_args(Codec):
            raise SettingError(f"codec {self.codec!r}: take one of {', '.join(get_args(Codec))}")
        if not MIN_BITRATE <= self.bitrate <= MAX_BITRATE:
            raise SettingError(f"bitrate {self.bitrate}: take {MIN_BITRATE} to {MAX_BITRATE} bits per second")
        if not 0.0 <= self.grace <= 600.0:
            raise SettingError(f"grace {self.grace:g} s: take 0 to 600 s")
        for origin in self.origins:
            parts = urlsplit(origin)
            if origin != "*" and (parts.scheme not in ("http", "https") or parts.path or not parts.netloc):
                raise SettingError(f"origin {origin!r}: write it as https://example.org, or *")

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """Where a browser on this machine finds it, with `port` as set."""
        unspecified = self.host in ("0.0.0.0", "::", "")
        host = "localhost" if unspecified else f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls_cert else 'http'}://{host}:{self.port}/"

    def ssl_context(self) -> ssl.SSLContext | None:
        """Make the TLS context.

        Raises:
            SettingError: certificate or key cannot be read, or do not belong together.
        """
        if self.tls_cert is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise SettingError(f"cannot use {self.tls_cert} and {self.tls_key} for TLS: {error}") from error
        return context
