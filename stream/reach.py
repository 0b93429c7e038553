"""Whether anybody is there at all, found out before the networks are loaded, which takes a while."""

import socket
from urllib.parse import urlsplit

from toonstream.errors import ToonstreamError
from toonstream.stream.address import scheme, shown

__all__ = ["reach"]

# Schemes whose servers accept connections, and the usual ports.
_PORTS = {"rtmp": 1935, "rtmps": 443, "rtsp": 554, "rtsps": 322, "http": 80, "https": 443, "tcp": 0}


def reach(address: str, failure: type[ToonstreamError], *, timeout: float = 5.0) -> None:
    """Connect to the host of an address and hang up. Addresses of other kinds are passed over.

    Args:
        address: as the user wrote it.
        failure: the error to raise.
        timeout: seconds that the host may take.

    Raises:
        ToonstreamError: nobody is there; one line says so.
    """
    kind, name = scheme(address), shown(address)
    if kind not in _PORTS:
        return
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or _PORTS[kind]
    except ValueError:
        host = None
    if not host or not port:
        raise failure(f"{name} names no host: check the address")
    try:
        socket.create_connection((host, port), timeout=timeout).close()
    except socket.gaierror as error:
        raise failure(f"{name}: there is no host of that name: check the address") from error
    except TimeoutError as error:
        raise failure(
            f"{name} does not answer within {timeout:g} s: check the address and network"
        ) from error
    except OSError as error:
        raise failure(
            f"nobody answers at {name} ({error.strerror}): start the server there, or check the address"
        ) from error
