"""Files to write into whose other end is on the network. None of them ever waits without a limit."""

import socket
from contextlib import suppress
from typing import Protocol
from urllib.parse import urlsplit

from toonstream.errors import OutputError
from toonstream.stream.address import scheme, shown

__all__ = ["TcpWriter", "UdpWriter", "Writer", "host_and_port"]

_PACKETS = 7 * 188  # bytes of MPEG-TS that fit an Ethernet frame


class Writer(Protocol):
    """What a muxer writes into."""

    def write(self, data: bytes) -> int:
        """Take a piece of the stream."""
        ...

    def abort(self) -> None:
        """Wake up whoever writes, from any thread; nothing more will be taken."""
        ...

    def close(self) -> None:
        """Let go. Once is enough, more does no harm."""
        ...


class UdpWriter:
    """Sends MPEG-TS in datagrams; whether anybody listens is not known."""

    def __init__(self, address: str) -> None:
        """Find the host.

        Raises:
            OutputError: there is none of that name.
        """
        host, port = host_and_port(address)
        self._shown = shown(address)
        try:
            family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise OutputError(f"{self._shown}: there is no host of that name: check the address") from error
        self._target = (str(target[0]), int(target[1]))
        self._socket = socket.socket(family, kind, protocol)
        self._waiting = bytearray()

    def write(self, data: bytes) -> int:
        """Send what fills a datagram."""
        self._waiting += data
        while len(self._waiting) >= _PACKETS:
            self._send(bytes(self._waiting[:_PACKETS]))
            del self._waiting[:_PACKETS]
        return len(data)

    def abort(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Send the rest."""
        with suppress(OSError):
            if self._waiting:
                self._send(bytes(self._waiting))
        self._waiting.clear()
        self._socket.close()

    def _send(self, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, self._target)
        except ConnectionRefusedError:  # nobody listens yet
            pass
        except OSError as error:
            raise OutputError(
                f"{self._shown} cannot be sent to ({error.strerror}): check the network"
            ) from error


class TcpWriter:
    """Sends a byte stream to whoever accepts it.

    Args:
        address: `tcp://host:port`.
        timeout: seconds that the other side may take for anything.
    """

    def __init__(self, address: str, *, timeout: float) -> None:
        """Connect.

        Raises:
            OutputError: nobody answers.
        """
        self._shown = shown(address)
        try:
            self._socket = socket.create_connection(host_and_port(address), timeout=timeout)
        except OSError as error:
            raise OutputError(
                f"nobody answers at {self._shown} ({error.strerror or error}): start the receiver there, or"
                " check the address"
            ) from error

    def write(self, data: bytes) -> int:
        """Send it."""
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise OutputError(
                f"{self._shown} takes nothing any more ({error.strerror or error}): check the receiver"
            ) from error
        return len(data)

    def abort(self) -> None:
        """Hang up, from any thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


def host_and_port(address: str) -> tuple[str, int]:
    """Read both off `scheme://host:port`.

    Raises:
        OutputError: one is missing.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise OutputError(f"{shown(address)} names no host and port: write {scheme(address)}://HOST:PORT")
    return host, port
