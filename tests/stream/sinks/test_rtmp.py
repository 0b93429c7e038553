"""What goes over the wire of RTMP, without a server; tests/e2e/test_rtmp.py has a real one."""

import socket
import ssl
import struct
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from time import monotonic

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from toonstream.errors import OutputError
from toonstream.stream.rtmp import amf
from toonstream.stream.rtmp.chunks import ChunkReader, Message, chunks
from toonstream.stream.sinks.rtmp import FlvTags, RtmpPublisher, RtmpTarget


@given(
    st.lists(st.tuples(st.sampled_from([8, 9, 18]), st.integers(0, 2**31), st.binary(max_size=40))), st.data()
)
def test_tags_survive_being_cut_anywhere(tags, data):
    wire = b"FLV\1\5\0\0\0\x09" + bytes(4)
    for kind, time, payload in tags:
        head = bytes([kind]) + len(payload).to_bytes(3, "big") + (time & 0xFFFFFF).to_bytes(3, "big")
        wire += head + bytes([time >> 24]) + bytes(3) + payload + struct.pack(">I", 11 + len(payload))
    reader, read = FlvTags(), []
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        read += reader.feed(wire[:cut])
        wire = wire[cut:]
    assert read == tags


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("rtmp://h/app/key", ("h", 1935, "app", "key")),
        ("rtmps://h/app/key?a=b/c", ("h", 443, "app", "key?a=b/c")),
        ("rtmp://h:99/app/instance/key", ("h", 99, "app/instance", "key")),
        ("rtmp://[::1]:99/app/key", ("::1", 99, "app", "key")),
    ],
)
def test_addresses(address, parts):
    target = RtmpTarget.parse(address)
    assert (target.host, target.port, target.application, target.key) == parts
    assert target.key not in repr(target)


@pytest.mark.parametrize("address", ["rtmp://h", "rtmp://h/app", "rtmp:///app/key", "rtmp://h:x/app/key"])
def test_addresses_that_name_no_stream(address):
    with pytest.raises(OutputError, match="write rtmp://HOST/APPLICATION/KEY"):
        RtmpTarget.parse(address)


def test_a_password_is_not_quietly_left_out():
    with pytest.raises(OutputError, match="give a stream key") as refused:
        RtmpTarget.parse("rtmp://me:sesame@h/app/key")
    assert "sesame" not in str(refused.value)


@contextmanager
def server(answer):
    """Accepts one connection and hands it to `answer`, on a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join()


def until_hung_up(connection):
    with suppress(ConnectionResetError):
        while connection.recv(65536):
            pass


def test_a_server_that_says_nothing_is_not_waited_for():
    with server(until_hung_up) as host, pytest.raises(OutputError, match=r"does not answer within 0\.2 s"):
        RtmpPublisher(f"rtmp://{host}/app/key", timeout=0.2)


def test_a_server_that_hangs_up():
    with server(lambda connection: connection.recv(1)) as host, pytest.raises(OutputError, match="hung up"):
        RtmpPublisher(f"rtmp://{host}/app/key", timeout=5.0)


def test_a_server_of_another_kind():
    def answer(connection):
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        until_hung_up(connection)

    with server(answer) as host, pytest.raises(OutputError, match="does not speak RTMP"):
        RtmpPublisher(f"rtmp://{host}/app/key", timeout=5.0)


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OutputError, match=r"nobody answers at rtmp://127.0.0.1:\d+/app/\*\*\*"):
        RtmpPublisher(f"rtmp://127.0.0.1:{port}/app/key", timeout=5.0)


def test_no_such_host():
    with pytest.raises(OutputError, match="no host of that name"):
        RtmpPublisher("rtmp://no-such-host.invalid/app/key", timeout=5.0)


class Peer:
    """The server's side of the greeting, as a script."""

    def __init__(self, connection):
        self._connection = connection
        self._reader = ChunkReader()
        self._messages = []
        hello = self._exactly(1537)
        connection.sendall(b"\3" + bytes(1536) + hello[1:])
        self._exactly(1536)

    def _exactly(self, count):
        data = b""
        while len(data) < count:
            data += self._connection.recv(count - len(data))
        return data

    def message(self):
        while not self._messages:
            data = self._connection.recv(65536)
            if not data:
                return None
            self._messages += self._reader.feed(data)
        return self._messages.pop(0)

    def command(self, name):
        while (message := self.message()) is not None:
            if message.kind == 20 and (words := amf.decode(message.payload))[0] == name:
                return words
        return None

    def say(self, *words, kind=20, stream=0):
        payload = amf.encode(*words) if kind == 20 else words[0]
        self._connection.sendall(
            chunks(Message(kind=kind, stream=stream, payload=payload), chunk_stream=3, size=128)
        )

    def accept(self):
        self.command("connect")
        self.say(struct.pack(">I", 1000), kind=5)
        self.say("_result", 1.0, {}, {"code": "NetConnection.Connect.Success", "level": "status"})
        self.command("createStream")
        self.say("_result", 4.0, None, 7.0)
        publish = self.command("publish")
        self.say("onStatus", 0.0, None, {"level": "status", "code": "NetStream.Publish.Start"}, stream=7)
        return publish


def test_what_is_published_arrives_and_pings_are_answered():
    seen = {}

    def answer(connection):
        peer = Peer(connection)
        seen["publish"] = peer.accept()
        peer.say(struct.pack(">HI", 6, 1234), kind=4)  # a ping
        peer.say(bytes(3000), kind=99)  # more than its window: it wants to hear of it
        while (message := peer.message()) is not None:
            seen.setdefault(message.kind, []).append(message)

    payload = amf.encode("onMetaData", {"width": 2.0})
    with server(answer) as host:
        publisher = RtmpPublisher(f"rtmp://{host}/app/key?x=y", timeout=5.0)
        tag = lambda kind, time, data: (  # noqa: E731
            bytes([kind])
            + len(data).to_bytes(3, "big")
            + time.to_bytes(3, "big")
            + bytes(4)
            + data
            + bytes(4)
        )
        publisher.write(b"FLV\1\5\0\0\0\x09" + bytes(4) + tag(18, 0, payload) + tag(9, 40, b"picture"))
        end = monotonic() + 20.0
        while not {3, 4} <= set(seen) and monotonic() < end:  # whoever writes reads, too
            publisher.write(tag(8, 80, b"sound"))
        publisher.close()
        publisher.close()
    assert seen["publish"][3:] == ["key?x=y", "live"]
    assert amf.decode(seen[18][0].payload) == ["@setDataFrame", "onMetaData", {"width": 2.0}]
    assert (seen[9][0].payload, seen[9][0].timestamp, seen[9][0].stream) == (b"picture", 40, 7)
    assert seen[4][0].payload == struct.pack(">HI", 7, 1234)
    assert seen[3]
    assert [amf.decode(message.payload)[0] for message in seen[20]] == ["FCUnpublish", "deleteStream"]


def test_a_refused_key_is_said_without_the_key():
    def answer(connection):
        peer = Peer(connection)
        peer.command("connect")
        peer.say("_result", 1.0, {}, {})
        peer.command("createStream")
        peer.say("_result", 4.0, None, 1.0)
        key = peer.command("publish")[3]
        told = {"level": "error", "code": "NetStream.Publish.BadName", "description": f"{key} is\nnot known"}
        peer.say("onStatus", 0.0, None, told, stream=1)
        until_hung_up(connection)

    with (
        server(answer) as host,
        pytest.raises(OutputError, match=r"refuses the stream \(\*\*\* is not known\)") as no,
    ):
        RtmpPublisher(f"rtmp://{host}/app/sesame", timeout=5.0)
    assert "sesame" not in str(no.value)


def test_a_refused_application():
    def answer(connection):
        peer = Peer(connection)
        peer.command("connect")
        peer.say("_error", 1.0, None, {"level": "error", "code": "NetConnection.Connect.InvalidApp"})
        until_hung_up(connection)

    with server(answer) as host, pytest.raises(OutputError, match=r"refuses the stream \(NetConnection"):
        RtmpPublisher(f"rtmp://{host}/app/key", timeout=5.0)


def test_a_server_that_takes_nothing_any_more_is_left():
    done = threading.Event()

    def answer(connection):
        Peer(connection).accept()
        done.wait(10)

    with server(answer) as host:
        publisher = RtmpPublisher(f"rtmp://{host}/app/key", timeout=0.2)
        publisher.write(b"FLV\1\5\0\0\0\x09" + bytes(4))
        data = bytes(1 << 23)
        picture = bytes([9]) + len(data).to_bytes(3, "big") + bytes(7) + data + bytes(4)
        with pytest.raises(OutputError, match=r"takes nothing for 0\.2 s"):
            publisher.write(picture)
        done.set()
        publisher.close()


@pytest.fixture
def certificate(tmp_path):
    """A file with a certificate of 127.0.0.1, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        made.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


def encrypted(certificate, answer):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def wrapped(connection):
        with context.wrap_socket(connection, server_side=True) as secret:
            answer(secret)

    return wrapped


def test_rtmps(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    told = []

    def answer(connection):
        peer = Peer(connection)
        told.append(peer.accept()[3])
        while (message := peer.message()) is not None:
            told.append(message.payload)

    with server(encrypted(certificate, answer)) as host:
        publisher = RtmpPublisher(f"rtmps://{host}/app/key", timeout=5.0)
        publisher.write(b"FLV\1\5\0\0\0\x09" + bytes(4) + bytes([9, 0, 0, 3]) + bytes(7) + b"abc" + bytes(4))
        publisher.close()
    assert told[:2] == ["key", b"abc"]


def test_a_certificate_that_is_not_trusted(certificate):
    def answer(connection):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            encrypted(certificate, until_hung_up)(connection)

    with server(answer) as host, pytest.raises(OutputError, match="is not to be trusted"):
        RtmpPublisher(f"rtmps://{host}/app/key", timeout=5.0)
