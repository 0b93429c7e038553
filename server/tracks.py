"""What we send to a peer: a track whose packets come from a lane."""

from collections.abc import Callable
from typing import Any

from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av.packet import Packet

from toonstream.server.encode import Encoded
from toonstream.server.fanout import AnyLane, Subscription

__all__ = ["LaneTrack"]

_WRAP = 2**32  # RTP timestamps begin anew


def _unknown() -> int | None:
    """Nobody said."""
    return None


class LaneTrack(MediaStreamTrack):
    """Gives a lane's packets, from the moment it is read.

    Which lane that is, is said by `watch` once the codec has been negotiated.

    Args:
        kind: `video` or `audio`.

    Attributes:
        sent: packets given so far.
        timestamp: gives the RTP timestamp of the packet that was sent last, if it is known.
        zero: the RTP timestamp of what has the time 0, once it is known.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self._lane: AnyLane | None = None
        self._subscription: Subscription | None = None
        self._last: int | None = None  # the time of the packet that was given last
        self.sent = 0
        self.timestamp: Callable[[], int | None] = _unknown
        self.zero: int | None = None

    def watch(self, lane: AnyLane) -> None:
        """Say where the packets come from."""
        self._lane = lane

    @property
    def waiting(self) -> int:
        """Packets that wait for this peer."""
        return self._subscription.waiting if self._subscription else 0

    def want_key(self) -> None:
        """The peer has lost a picture."""
        if self._lane is not None:
            self._lane.want_key()

    async def recv(self) -> "Packet[Any]":
        """Wait for the next packet.

        Raises:
            MediaStreamError: the stream has ended.
        """
        if self.readyState != "live" or self._lane is None:
            raise MediaStreamError
        if self._subscription is None:
            self._subscription = self._lane.subscribe()
        if self.zero is None and self._last is not None:  # whoever asks for more has sent that one
            timestamp = self.timestamp()
            self.zero = None if timestamp is None else (timestamp - self._last) % _WRAP
        encoded: Encoded | None = await self._subscription.next()
        if encoded is None:
            self.stop()
            raise MediaStreamError
        self.sent += 1
        self._last = encoded.packet.pts
        return encoded.packet

    def stop(self) -> None:
        """Stop watching."""
        super().stop()
        if self._lane is not None and self._subscription is not None:
            self._lane.unsubscribe(self._subscription)
