"""A network between two peers that loses, delays and disorders packets: the same ones every time.

Offer and answer are led through it, so that each peer knows the other by an address of the link.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

from aioice.ice import get_host_addresses

Address = tuple[str, int]


class End(asyncio.DatagramProtocol):
    """One end of a link: what comes in here goes out at the other end."""

    def __init__(self, came: Callable[[bytes], None]) -> None:
        self._came = came
        self.peer: Address | None = None  # who is spoken to from here
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """Pass a packet on."""
        self._came(data)

    def send(self, data: bytes) -> None:
        """Send a packet to whom is spoken to from here."""
        if self.peer is not None and self.transport is not None and not self.transport.is_closing():
            self.transport.sendto(data, self.peer)

    @property
    def address(self) -> Address:
        """Where it is."""
        assert self.transport is not None
        address: Address = self.transport.get_extra_info("sockname")
        return address


class Link:
    """The network between a client and the server.

    Attributes:
        loss: the part of packets that is lost, each way.
        delay: seconds that a packet is under way at least. jitter: seconds that it may take longer.
        deaf: whether nothing of what the server sends comes through.
        passed, lost: packets so far.
    """

    def __init__(self, *, loss: float = 0.0, delay: float = 0.0, jitter: float = 0.0) -> None:
        self.loss, self.delay, self.jitter = loss, delay, jitter
        self.deaf = False
        self.passed = self.lost = 0
        self._chance = random.Random(1)
        self._to_client = End(lambda data: self._carry(data, self._to_server))
        self._to_server = End(lambda data: self._carry(data, self._to_client))

    async def open(self) -> None:
        """Begin to carry packets."""
        host = get_host_addresses(use_ipv4=True, use_ipv6=False)[0]
        loop = asyncio.get_running_loop()
        for end in (self._to_client, self._to_server):
            await loop.create_datagram_endpoint(lambda end=end: end, local_addr=(host, 0))  # type: ignore[misc]

    def close(self) -> None:
        """Carry none any more."""
        for end in (self._to_client, self._to_server):
            if end.transport is not None:
                end.transport.close()

    def offered(self, offer: str) -> str:
        """The client's offer as the server is to see it."""
        return self._led(offer, self._to_client, self._to_server)

    def answered(self, answer: str) -> str:
        """The server's answer as the client is to see it."""
        return self._led(answer, self._to_server, self._to_client)

    def _led(self, sdp: str, near: End, far: End) -> str:
        host, port = far.address
        pattern = r"^a=candidate:\S+ 1 udp \d+ (\d+\.\d+\.\d+\.\d+) (\d+) typ host.*\r\n"
        first = re.search(pattern, sdp, re.MULTILINE | re.IGNORECASE)
        assert first, sdp
        near.peer = first[1], int(first[2])
        sdp = re.sub(r"^a=candidate:.*\r\n", "", sdp, flags=re.MULTILINE)
        candidate = f"a=candidate:1 1 udp 2130706431 {host} {port} typ host\r\n"
        return re.sub(r"^(?=a=ice-ufrag:)", candidate, sdp, flags=re.MULTILINE)

    def _carry(self, data: bytes, end: End) -> None:
        if self._chance.random() < self.loss or (self.deaf and end is self._to_client):
            self.lost += 1
            return
        self.passed += 1
        seconds = self.delay + self.jitter * self._chance.random()
        if seconds > 0.0:
            asyncio.get_running_loop().call_later(seconds, end.send, data)
        else:
            end.send(data)


@asynccontextmanager
async def link(*, loss: float = 0.0, delay: float = 0.0, jitter: float = 0.0) -> AsyncIterator[Link]:
    made = Link(loss=loss, delay=delay, jitter=jitter)
    await made.open()
    try:
        yield made
    finally:
        made.close()
