"""Who may do what: tokens, origins, host names, and how often."""

import hmac
from collections import OrderedDict
from collections.abc import Sequence
from urllib.parse import urlsplit

from toonstream.stream.clock import Clock, monotonic

__all__ = ["RateLimiter", "bearer", "host_allowed", "origin_allowed", "token_matches"]

_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def bearer(header: str | None) -> str | None:
    """The token in an `Authorization` header, or None."""
    scheme, _, token = (header or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def token_matches(given: str | None, wanted: str | None) -> bool:
    """Compare in a time that does not tell how much of it is right. Without a wanted one, all may pass."""
    if wanted is None:
        return True
    return given is not None and hmac.compare_digest(given.encode(), wanted.encode())


def origin_allowed(origin: str | None, host: str, allowed: Sequence[str]) -> bool:
    """Tell whether a page of `origin` may use the server that it reached as `host`.

    Clients that are no browsers send no origin.
    """
    if origin is None or "*" in allowed or origin in allowed:
        return True
    return urlsplit(origin).netloc.lower() == host.lower()


def host_allowed(host: str, listening: str) -> bool:
    """Tell whether `host`, as the client wrote it, is a name of a server that listens on loopback.

    Otherwise any site could have its own name resolve to 127.0.0.1, and talk to the server from there.
    """
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in (*_LOCAL_NAMES, listening)


class RateLimiter:
    """So many requests per second from one address, and a few more at once.

    Args:
        rate: requests per second in the long run.
        burst: requests that may come at once.
        clock: gives the time.
        addresses: remembered at most; the one not seen for longest is forgotten.
    """

    def __init__(self, rate: float, burst: float, *, clock: Clock = monotonic, addresses: int = 4096) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._clock = clock
        self._addresses = addresses
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address → (left, when)

    def take(self, address: str) -> float:
        """Count a request. Gives 0 where it is allowed, else the seconds until one is."""
        now = self._clock()
        left, when = self._left.pop(address, (self._burst, now))
        left = min(self._burst, left + (now - when) * self._rate)
        wait = 0.0 if left >= 1.0 else (1.0 - left) / self._rate
        self._left[address] = (left - 1.0 if left >= 1.0 else left, now)
        if len(self._left) > self._addresses:
            self._left.popitem(last=False)
        return wait
