"""RTMP messages, and the chunks that they travel in."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["HANDSHAKE", "ChunkReader", "Kind", "Message", "chunks"]

HANDSHAKE = 1536
"""Bytes that either side sends, and has sent back, before anything else."""

_MAX_MESSAGE = 1 << 23  # bytes of one; the largest picture that anybody sends is smaller
_MAX_STREAMS = 32  # at a time; whoever publishes needs five
_EXTENDED = 0xFFFFFF  # in place of a timestamp: the real one follows


class Kind:
    """What a message is."""

    SET_CHUNK_SIZE = 1
    ACKNOWLEDGEMENT = 3
    USER_CONTROL = 4
    WINDOW = 5
    PEER_BANDWIDTH = 6
    SOUND = 8
    PICTURE = 9
    COMMAND_AMF3 = 17
    DATA = 18
    COMMAND = 20


@dataclass(frozen=True, kw_only=True)
class Message:
    """One RTMP message.

    Attributes:
        kind: its type.
        timestamp: in milliseconds, modulo 2^32.
        stream: the message stream it belongs to.
        payload: what it says.
    """

    kind: int
    timestamp: int = 0
    stream: int = 0
    payload: bytes


def chunks(message: Message, *, chunk_stream: int, size: int) -> bytes:
    """A message as it goes over the wire, cut into chunks of `size` bytes."""
    timestamp = message.timestamp & 0xFFFFFFFF
    extended = struct.pack(">I", timestamp) if timestamp >= _EXTENDED else b""
    head = (
        bytes([chunk_stream])
        + min(timestamp, _EXTENDED).to_bytes(3, "big")
        + len(message.payload).to_bytes(3, "big")
        + bytes([message.kind])
        + message.stream.to_bytes(4, "little")
        + extended
    )
    following = bytes([0xC0 | chunk_stream]) + extended
    pieces = [message.payload[at : at + size] for at in range(0, len(message.payload), size)] or [b""]
    return head + following.join(pieces)


@dataclass(kw_only=True)
class _Incoming:
    timestamp: int = 0
    step: int = 0
    length: int = 0
    kind: int = 0
    stream: int = 0
    extended: bool = False
    payload: bytearray = field(default_factory=bytearray)


class ChunkReader:
    """Puts messages together again. Takes bytes as they come and keeps what is not a whole chunk yet."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._streams: dict[int, _Incoming] = {}
        self._size = 128  # bytes of payload in a chunk, until the other side says otherwise

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take bytes; give the messages that are complete.

        Raises:
            ValueError: this is not RTMP, or longer than anyone has to say.
        """
        self._waiting += data
        while True:
            message, used = self._chunk(bytes(self._waiting[: self._size + 18]))
            if not used:
                return
            del self._waiting[:used]
            if message is None:
                continue
            if message.kind == Kind.SET_CHUNK_SIZE and len(message.payload) >= 4:
                self._size = int.from_bytes(message.payload[:4], "big") & 0x7FFFFFFF
                if not 1 <= self._size <= _MAX_MESSAGE:
                    raise ValueError(f"chunks of {self._size} bytes")
            yield message

    def _chunk(self, data: bytes) -> tuple[Message | None, int]:
        """Read one chunk; gives the message it completes, and the bytes used: 0 if there are too few."""
        if not data:
            return None, 0
        form, number, at = data[0] >> 6, data[0] & 0x3F, 1
        if number < 2:  # the number is in the next byte, or the next two
            at = 2 + number
            if len(data) < at:
                return None, 0
            number = 64 + int.from_bytes(data[1:at], "little")
        length = (11, 7, 3, 0)[form]
        head, at = data[at : at + length], at + length
        if len(head) < length:
            return None, 0
        known = self._streams.get(number)
        if known is None:
            if form == 3:
                raise ValueError("a chunk that goes on where nothing began")
            if len(self._streams) == _MAX_STREAMS:
                raise ValueError("more streams than anyone needs")
            known = _Incoming()
        timestamp, step, size, kind, stream = (
            known.timestamp,
            known.step,
            known.length,
            known.kind,
            known.stream,
        )
        extended = known.extended
        if length:
            step = int.from_bytes(head[:3], "big")
            extended = step == _EXTENDED
        if length >= 7:
            size, kind = int.from_bytes(head[3:6], "big"), head[6]
        if length == 11:
            stream = int.from_bytes(head[7:11], "little")
        if extended:
            if len(data) < at + 4:
                return None, 0
            step, at = int.from_bytes(data[at : at + 4], "big"), at + 4
        if form == 0:
            timestamp = step
        elif not known.payload:  # otherwise the chunk goes on with a message that has its time
            timestamp = (timestamp + step) & 0xFFFFFFFF
        if size > _MAX_MESSAGE:
            raise ValueError(f"a message of {size} bytes")
        piece = data[at : at + min(self._size, size - len(known.payload))]
        if len(piece) < min(self._size, size - len(known.payload)):
            return None, 0
        known.timestamp, known.step, known.length = timestamp, step, size
        known.kind, known.stream = kind, stream
        known.extended = extended
        known.payload += piece
        self._streams[number] = known
        if len(known.payload) < size:
            return None, at + len(piece)
        message = Message(kind=kind, timestamp=timestamp, stream=stream, payload=bytes(known.payload))
        known.payload.clear()
        return message, at + len(piece)
