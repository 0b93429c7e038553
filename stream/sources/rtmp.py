"""Waiting for somebody who publishes over RTMP, OBS for one, without a server in between.

FFmpeg can listen, too, but takes any key, and a caller who says nothing keeps everyone else out.
"""

import hmac
import math
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import closing, suppress
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from toonstream.errors import InputError
from toonstream.stream.address import shown
from toonstream.stream.rtmp import amf
from toonstream.stream.rtmp.chunks import HANDSHAKE, ChunkReader, Kind, Message, chunks

__all__ = ["Publication", "RtmpListener"]

_PORT = 1935
_TICK = 0.1  # seconds between two looks at whether to stop
_GREETING = 5.0  # seconds that a caller may take to say what it wants, and to take in an answer
_SHORTEST = 0.001  # seconds: a timeout of 0 means another thing to a socket
_CHUNK = 4096  # bytes of payload in one of ours
_WINDOW = 2_500_000  # bytes after which the other side wants to hear that they came
_HEADER = b"FLV\1\5\0\0\0\x09\0\0\0\0"  # of a file with sound and pictures
_MEDIA = (Kind.SOUND, Kind.PICTURE, Kind.DATA)
_SET_DATA_FRAME = amf.encode("@setDataFrame")


class _Refused(Exception):
    """The caller is not who is waited for."""


class RtmpListener:
    """Accepts one publisher. Callers with the wrong key, and with nothing to say, are sent away.

    Args:
        address: `rtmp://host:port/app/key`.
        timeout: seconds that a publisher may send nothing.
        stop: ends waiting and reading when it is set.
    """

    def __init__(self, address: str, *, timeout: float, stop: threading.Event) -> None:
        """Listen.

        Raises:
            InputError: the address is not one to listen at.
        """
        self._timeout = timeout
        self._stop = stop
        self._shown = shown(address)
        try:
            parts = urlsplit(address)
            host, port = parts.hostname or "", parts.port or _PORT
        except ValueError as error:
            raise InputError(f"{self._shown} names no port: write rtmp://HOST:PORT/APP/KEY") from error
        path = address.split("://", 1)[1].partition("/")[2]
        application, _, self._key = path.rpartition("/")
        self._application = unquote(application)
        if not self._application or not self._key:
            raise InputError(f"{self._shown} names no stream: write rtmp://HOST:PORT/APP/KEY")
        try:
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._socket = socket.create_server((str(place[0]), int(place[1])), family=family)
        except OSError as error:
            raise InputError(
                f"cannot listen at {self._shown} ({error.strerror}): take another address or port"
            ) from error
        self._socket.settimeout(_TICK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()

    def accept(self) -> "Publication | None":
        """Wait for a publisher; None if a stop came first. Nobody else is listened to from then on."""
        while not self._stop.is_set():
            with suppress(TimeoutError):
                connection, _ = self._socket.accept()
                publication = Publication(
                    connection, self._application, self._key, timeout=self._timeout, stop=self._stop
                )
                try:
                    publication.greet()
                except (_Refused, OSError, ValueError):
                    publication.close()
                else:
                    self.close()
                    return publication
        return None


class Publication:
    """What somebody publishes, as an FLV file to read from.

    Attributes:
        name: for PyAV.
    """

    name = "rtmp"

    def __init__(
        self,
        connection: socket.socket,
        application: str,
        key: str,
        *,
        timeout: float,
        stop: threading.Event,
    ) -> None:
        self._socket = connection
        self._application = application
        self._key = key
        self._timeout = timeout
        self._stop = stop
        self._deadline = math.inf  # on the monotonic clock: of the greeting, however it is spread
        self._reader = ChunkReader()
        self._messages: deque[Message] = deque()
        self._data = bytearray(_HEADER)
        self._received = self._acknowledged = 0
        self._chunk = 128
        self._over = False

    def greet(self) -> None:
        """Find out what the caller wants, and let it publish.

        Raises:
            _Refused: it wants something else, or has another key.
            OSError: it hung up, or takes too long.
            ValueError: it does not speak RTMP.
        """
        self._deadline = time.monotonic() + _GREETING
        hello = self._exactly(1 + HANDSHAKE)
        if hello[0] != 3:
            raise ValueError("another version")
        self._write(b"\3" + struct.pack(">II", 0, 0) + os.urandom(HANDSHAKE - 8) + hello[1:])
        self._exactly(HANDSHAKE)
        while not self._answered(self._message()):
            pass
        self._deadline = math.inf

    def read(self, size: int) -> bytes:
        """Give up to so many bytes, waiting for the first; none at the end.

        Raises:
            InputError: the publisher sends nothing any more, or nonsense.
        """
        try:
            while not self._data and not self._over:
                self._take(self._message())
        except TimeoutError as error:
            raise InputError(f"whoever publishes has sent nothing for {self._timeout:g} s") from error
        except (OSError, ValueError):
            self._over = True  # hung up, or as good as
        piece = bytes(self._data[:size])
        del self._data[:size]
        return piece

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _answered(self, message: Message) -> bool:
        """Answer a command; says whether the caller may publish now."""
        if message.kind not in (Kind.COMMAND, Kind.COMMAND_AMF3):
            return False
        words = amf.decode(message.payload[1:] if message.kind == Kind.COMMAND_AMF3 else message.payload)
        match words:
            case ["connect", float(number), Mapping() as wanted, *_]:
                self._connect(number, str(wanted.get("app", "")))
            case ["createStream", float(number), *_]:
                self._command("_result", number, None, 1.0)
            case ["publish", _, _, str(key), *_]:
                self._publish(key, message.stream)
                return True
            case ["releaseStream" | "FCPublish", float(number), *_]:
                self._command("_result", number, None, None)
            case _:
                pass
        return False

    def _connect(self, number: float, application: str) -> None:
        if application.strip("/").split("?")[0] != self._application:
            told = {
                "level": "error",
                "code": "NetConnection.Connect.InvalidApp",
                "description": "no such app",
            }
            self._command("_error", number, None, told)
            raise _Refused
        self._send(Message(kind=Kind.WINDOW, payload=struct.pack(">I", _WINDOW)))
        self._send(Message(kind=Kind.PEER_BANDWIDTH, payload=struct.pack(">IB", _WINDOW, 2)))
        self._send(Message(kind=Kind.SET_CHUNK_SIZE, payload=struct.pack(">I", _CHUNK)))
        self._chunk = _CHUNK
        told = {"level": "status", "code": "NetConnection.Connect.Success", "description": "welcome"}
        self._command("_result", number, {"fmsVer": "FMS/3,0,1,123", "capabilities": 31.0}, told)

    def _publish(self, key: str, stream: int) -> None:
        known = hmac.compare_digest(key.encode(), self._key.encode())
        told = (
            {"level": "status", "code": "NetStream.Publish.Start", "description": "go ahead"}
            if known
            else {"level": "error", "code": "NetStream.Publish.BadName", "description": "not this key"}
        )
        self._command("onStatus", 0.0, None, told, stream=stream)
        if not known:
            raise _Refused

    def _take(self, message: Message) -> None:
        """Turn a message into a tag of the file, or see that it was the last."""
        if message.kind in _MEDIA:
            payload = message.payload.removeprefix(_SET_DATA_FRAME)
            time = message.timestamp
            self._data += bytes([message.kind]) + len(payload).to_bytes(3, "big")
            self._data += (time & 0xFFFFFF).to_bytes(3, "big") + bytes([time >> 24]) + bytes(3)
            self._data += payload + (11 + len(payload)).to_bytes(4, "big")
        elif message.kind == Kind.COMMAND:
            words = amf.decode(message.payload)
            self._over = bool(words) and words[0] in ("deleteStream", "FCUnpublish", "closeStream")

    def _message(self) -> Message:
        while not self._messages:
            data = self._some()
            self._messages.extend(self._reader.feed(data))
            self._received += len(data)
            if self._received - self._acknowledged >= _WINDOW // 2:
                self._acknowledged = self._received
                payload = struct.pack(">I", self._received & 0xFFFFFFFF)
                self._send(Message(kind=Kind.ACKNOWLEDGEMENT, payload=payload))
        return self._messages.popleft()

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            data += self._some(count - len(data))
        return bytes(data)

    def _some(self, most: int = 65536) -> bytes:
        """What has come, waited for.

        Raises:
            ConnectionError: the other side hung up, or a stop came.
            TimeoutError: it says nothing, or not all that is to be said in time.
        """
        end = min(time.monotonic() + self._timeout, self._deadline)
        with closing(selectors.DefaultSelector()) as selector:
            selector.register(self._socket, selectors.EVENT_READ)
            while time.monotonic() <= end:
                if selector.select(_TICK):
                    break
                if self._stop.is_set():
                    raise ConnectionAbortedError("stopped")
            else:
                raise TimeoutError("it says nothing")
        data = self._socket.recv(most)
        if not data:
            raise ConnectionResetError("closed")
        return data

    def _command(self, *words: amf.Value, stream: int = 0) -> None:
        self._send(Message(kind=Kind.COMMAND, stream=stream, payload=amf.encode(*words)), chunk_stream=3)

    def _send(self, message: Message, *, chunk_stream: int = 2) -> None:
        self._write(chunks(message, chunk_stream=chunk_stream, size=self._chunk))

    def _write(self, data: bytes) -> None:
        left = min(_GREETING, self._deadline - time.monotonic())
        self._socket.settimeout(max(left, _SHORTEST))
        self._socket.sendall(data)
