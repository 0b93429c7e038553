"""Publishing to an RTMP server, over a socket of our own.

FFmpeg can do it too, but PyAV opens and closes outputs with the interpreter's lock held and no limit on time:
a server that accepts and then says nothing would stop every thread there is. And of a refused key FFmpeg says
no more than "Input/output error".
"""

import os
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from toonstream.errors import OutputError
from toonstream.stream.address import HIDDEN, shown
from toonstream.stream.rtmp import amf
from toonstream.stream.rtmp.chunks import HANDSHAKE, ChunkReader, Kind, Message, chunks

__all__ = ["FlvTags", "RtmpPublisher", "RtmpTarget"]

_PORTS = {"rtmp": 1935, "rtmps": 443}
_CHUNK = 4096  # bytes of payload in one; what others send
_FAREWELL = 1.0  # seconds that the server may take to read the rest
_EARLY = 2.0  # seconds; some servers look at the key only once they have accepted it

_PING, _PONG = 6, 7
_CONTROL_STREAM, _COMMAND_STREAM = 2, 3
_CHUNK_STREAMS = {Kind.SOUND: 4, Kind.PICTURE: 6, Kind.DATA: 5}  # of sound, pictures and data


@dataclass(frozen=True, kw_only=True)
class RtmpTarget:
    """The parts of `rtmp://host:port/app/key`."""

    scheme: str
    host: str
    port: int
    application: str
    key: str = field(repr=False)

    @classmethod
    def parse(cls, address: str) -> "RtmpTarget":
        """Take an address apart.

        The application is the first part of the path, or of a longer path the first two, as FFmpeg has it.

        Raises:
            OutputError: something is missing.
        """
        try:
            parts = urlsplit(address)
            port = parts.port or _PORTS.get(parts.scheme.lower(), 0)
        except ValueError:
            parts, port = urlsplit(""), 0
        path = re.sub(r"^[A-Za-z+]+://[^/]*/?", "", address)
        words = path.split("?", 1)[0].split("/")
        depth = 2 if len(words) > 2 else 1
        application = "/".join(words[:depth])
        key = path[len(application) + 1 :]
        if not (parts.hostname and port and application and key):
            raise OutputError(f"{shown(address)} names no stream: write rtmp://HOST/APPLICATION/KEY")
        if parts.username is not None:
            raise OutputError(
                f"{shown(address)}: RTMP with user and password is not supported: give a stream key"
            )
        return cls(
            scheme=parts.scheme.lower(),
            host=parts.hostname,
            port=port,
            application=unquote(application),
            key=key,
        )


class FlvTags:
    """Cuts what an FLV muxer writes into its tags: (kind, milliseconds, payload)."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Take bytes; give the tags that are complete."""
        self._waiting += data
        if not self._begun:
            if len(self._waiting) < 13:  # the file's header, and the size of no tag before the first
                return
            del self._waiting[:13]
            self._begun = True
        while len(self._waiting) >= 11:
            size = int.from_bytes(self._waiting[1:4], "big")
            if len(self._waiting) < 11 + size + 4:
                return
            time = int.from_bytes(self._waiting[4:7], "big") | self._waiting[7] << 24
            tag = self._waiting[0] & 0x1F, time, bytes(self._waiting[11 : 11 + size])
            del self._waiting[: 11 + size + 4]
            yield tag


class RtmpPublisher:
    """A file to write FLV into, which goes to an RTMP server.

    Args:
        address: `rtmp://host/app/key` or `rtmps://…`.
        timeout: seconds that the server may take for anything.
    """

    def __init__(self, address: str, *, timeout: float) -> None:
        """Connect, and ask to publish.

        Raises:
            OutputError: nobody answers, or the answer is no; one line says which.
        """
        self._target = RtmpTarget.parse(address)
        self._shown = shown(address)
        self._timeout = timeout
        self._reader = ChunkReader()
        self._tags = FlvTags()
        self._chunk = 128
        self._received = self._acknowledged = 0
        self._window = 2_500_000
        self._stream = 0
        self._began = 0.0
        self._inbox: list[Message] = []
        self._socket = self._connect()
        try:
            self._handshake()
            self._ask()
        except BaseException as error:
            self._socket.close()
            if isinstance(error, OutputError):
                raise
            if isinstance(error, OSError):
                raise self._lost(error, during="the greeting") from error
            if isinstance(error, ValueError):
                raise OutputError(
                    f"{self._shown} does not speak RTMP: check the address and the port"
                ) from error
            raise

    def write(self, data: bytes) -> int:
        """Take a piece of an FLV file; send the tags that are complete, and read what the server says.

        Raises:
            OutputError: the server went away, or takes nothing any more.
        """
        try:
            for kind, time, payload in self._tags.feed(data):
                if kind == Kind.DATA:
                    payload = amf.encode("@setDataFrame") + payload
                self._send(
                    Message(kind=kind, timestamp=time, stream=self._stream, payload=payload),
                    chunk_stream=_CHUNK_STREAMS[kind],
                )
            self._listen()
        except OutputError:
            raise
        except OSError as error:
            raise self._lost(error, during="the stream") from error
        except ValueError as error:
            raise OutputError(f"{self._shown} answers what is not RTMP: it is left") from error
        return len(data)

    def abort(self) -> None:
        """Wake up whoever writes, from any thread; the connection is of no more use."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Say goodbye, as far as the server listens, and hang up. Once is enough, more does no harm."""
        with suppress(OSError):
            self._command("FCUnpublish", 6.0, None, self._target.key)
            self._command("deleteStream", 7.0, None, float(self._stream))
            self._socket.shutdown(socket.SHUT_WR)
            # Closing with something unread would make the other side lose what it has not read itself.
            self._socket.settimeout(min(self._timeout, _FAREWELL))
            while self._socket.recv(65536):
                pass
        self._socket.close()

    def _connect(self) -> socket.socket:
        target = self._target
        try:
            plain = socket.create_connection((target.host, target.port), timeout=self._timeout)
        except socket.gaierror as error:
            raise OutputError(f"{self._shown}: there is no host of that name: check the address") from error
        except TimeoutError as error:
            raise OutputError(
                f"{self._shown} does not answer within {self._timeout:g} s: check the address and the network"
            ) from error
        except OSError as error:
            raise OutputError(
                f"nobody answers at {self._shown} ({error.strerror or error}): start the server there, or"
                " check the address"
            ) from error
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target.scheme != "rtmps":
            return plain
        try:
            return ssl.create_default_context().wrap_socket(plain, server_hostname=target.host)
        except ssl.SSLError as error:
            plain.close()
            reason = getattr(error, "verify_message", None) or error.reason or "TLS fails"
            raise OutputError(f"{self._shown} is not to be trusted ({reason}): check the address") from error
        except OSError as error:
            plain.close()
            raise self._lost(error, during="the greeting") from error

    def _handshake(self) -> None:
        hello = struct.pack(">II", 0, 0) + os.urandom(HANDSHAKE - 8)
        self._socket.sendall(b"\x03" + hello)
        version = self._exactly(1)
        if version != b"\x03":
            raise ValueError("another version")
        theirs = self._exactly(HANDSHAKE)
        self._socket.sendall(theirs)
        self._exactly(HANDSHAKE)

    def _ask(self) -> None:
        target = self._target
        self._send(
            Message(kind=Kind.SET_CHUNK_SIZE, payload=struct.pack(">I", _CHUNK)), chunk_stream=_CONTROL_STREAM
        )
        self._chunk = _CHUNK
        port = "" if target.port == _PORTS[target.scheme] else f":{target.port}"
        host = f"[{target.host}]" if ":" in target.host else target.host
        self._command(
            "connect",
            1.0,
            {
                "app": target.application,
                "type": "nonprivate",
                "flashVer": "FMLE/3.0 (compatible; toonstream)",
                "tcUrl": f"{target.scheme}://{host}{port}/{target.application}",
            },
        )
        self._answer(1.0)
        self._command("releaseStream", 2.0, None, target.key)
        self._command("FCPublish", 3.0, None, target.key)
        self._command("createStream", 4.0, None)
        made = self._answer(4.0)
        match made:
            case [_, _, _, float(number), *_]:
                self._stream = int(number)
            case _:
                raise ValueError("a stream without a number")
        self._command("publish", 5.0, None, target.key, "live", stream=self._stream)
        self._answer(None)
        self._began = time.monotonic()

    def _answer(self, number: float | None) -> list[amf.Value]:
        """Wait for the answer to a command, or for word on the stream (None).

        Raises:
            OutputError: the answer is no.
        """
        while True:
            for words in self._commands():
                name = words[0] if words else None
                if name == "onStatus" or (name == "_error" and words[1:2] == [number]):
                    self._check(words)
                if (name == "onStatus" and number is None) or (
                    name == "_result" and words[1:2] == [number] and number is not None
                ):
                    return words

    def _commands(self) -> Iterator[list[amf.Value]]:
        if not self._inbox:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("closed")
            self._take(data)
        while self._inbox:
            message = self._inbox.pop(0)
            yield amf.decode(message.payload[message.kind == Kind.COMMAND_AMF3 :])

    def _check(self, words: list[amf.Value]) -> None:
        """Pass over good news; raise bad."""
        told = words[3] if len(words) > 3 else None
        told = told if isinstance(told, Mapping) else {}
        if words[0] != "_error" and told.get("level") != "error":
            return
        reason = told.get("description") or told.get("code") or "it does not say why"
        plain = " ".join(str(reason).replace(self._target.key, HIDDEN).split())[:200]
        raise OutputError(f"{self._shown} refuses the stream ({plain}): check the application and the key")

    def _listen(self) -> None:
        """Read what has come from the server, without waiting for it."""
        try:
            while True:
                self._socket.settimeout(0)
                data = self._socket.recv(65536)
                if not data:
                    raise ConnectionResetError("closed")
                self._take(data)
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        finally:
            self._socket.settimeout(self._timeout)
        for words in self._commands() if self._inbox else ():
            if words and words[0] in ("onStatus", "_error"):
                self._check(words)

    def _take(self, data: bytes) -> None:
        """Sort what came: the protocol's own business is done here, commands wait."""
        self._received += len(data)
        for message in self._reader.feed(data):
            if message.kind in (Kind.COMMAND, Kind.COMMAND_AMF3):
                self._inbox.append(message)
            elif message.kind == Kind.WINDOW and len(message.payload) >= 4:
                self._window = max(1, int.from_bytes(message.payload[:4], "big"))
            elif message.kind == Kind.USER_CONTROL and message.payload[:2] == struct.pack(">H", _PING):
                self._send(
                    Message(kind=Kind.USER_CONTROL, payload=struct.pack(">H", _PONG) + message.payload[2:6]),
                    chunk_stream=_CONTROL_STREAM,
                )
        if self._received - self._acknowledged >= self._window:
            self._acknowledged = self._received
            payload = struct.pack(">I", self._received & 0xFFFFFFFF)
            self._send(Message(kind=Kind.ACKNOWLEDGEMENT, payload=payload), chunk_stream=_CONTROL_STREAM)

    def _command(self, *words: amf.Value, stream: int = 0) -> None:
        self._send(
            Message(kind=Kind.COMMAND, stream=stream, payload=amf.encode(*words)),
            chunk_stream=_COMMAND_STREAM,
        )

    def _send(self, message: Message, *, chunk_stream: int) -> None:
        self._socket.settimeout(self._timeout)
        self._socket.sendall(chunks(message, chunk_stream=chunk_stream, size=self._chunk))

    def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self._socket.recv(count - len(data))
            if not piece:
                raise ConnectionResetError("closed")
            data += piece
        return bytes(data)

    def _lost(self, error: OSError, *, during: str) -> OutputError:
        if isinstance(error, TimeoutError) and during == "the greeting":
            return OutputError(
                f"{self._shown} does not answer within {self._timeout:g} s: check that RTMP is spoken there"
            )
        if isinstance(error, TimeoutError):
            return OutputError(
                f"{self._shown} takes nothing for {self._timeout:g} s: check the network, or lower --bitrate"
            )
        if during == "the greeting":
            return OutputError(
                f"{self._shown} hung up on the greeting: check the application, the key, and rtmp or rtmps"
            )
        if time.monotonic() - self._began < _EARLY:
            return OutputError(f"{self._shown} hung up as soon as the stream began: check the key")
        return OutputError(f"{self._shown} hung up in the middle of the stream: check the server")
