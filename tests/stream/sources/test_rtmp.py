"""Whoever may publish is let in, whoever may not is sent away, and nobody can keep the others out.

FFmpeg as a publisher is in test_live.py; here it is this project's own, and some who are none.
"""

import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from toonstream.errors import InputError, OutputError
from toonstream.stream.rtmp.chunks import Message, chunks
from toonstream.stream.sinks.rtmp import RtmpPublisher
from toonstream.stream.sources import rtmp
from toonstream.stream.sources.rtmp import RtmpListener

HEADER = b"FLV\1\5\0\0\0\x09\0\0\0\0"
SECONDS = 10.0


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def tag(kind, time, data):
    return (
        bytes([kind])
        + len(data).to_bytes(3, "big")
        + (time & 0xFFFFFF).to_bytes(3, "big")
        + bytes([time >> 24, 0, 0, 0])
        + data
        + (11 + len(data)).to_bytes(4, "big")
    )


class Listening:
    """A listener on a thread of its own, which reads to the end."""

    def __init__(self, path="live/sesame", *, timeout=5.0):
        self.port, self.stop, self.read, self.error = free_port(), threading.Event(), bytearray(), None
        self.address = f"rtmp://127.0.0.1:{self.port}/{path}"
        self._listener = RtmpListener(self.address, timeout=timeout, stop=self.stop)
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with self._listener:
            publication = self._listener.accept()
        if publication is None:
            return
        try:
            while piece := publication.read(1000):
                self.read += piece
        except InputError as error:
            self.error = error
        finally:
            publication.close()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def publish(self, path="live/sesame"):
        return RtmpPublisher(f"rtmp://127.0.0.1:{self.port}/{path}", timeout=5.0)


def test_what_is_published_is_read():
    tags = [tag(18, 0, b"\2\0\nonMetaData\5"), tag(9, 40, b"picture" * 2000), tag(8, 0x2000001, b"sound")]
    with Listening() as listening:
        publisher = listening.publish()
        publisher.write(HEADER + b"".join(tags))
        publisher.close()
    assert listening.read == HEADER + b"".join(tags)
    assert listening.error is None


def test_so_much_that_it_must_be_acknowledged():
    with Listening() as listening:
        publisher = listening.publish()
        publisher.write(HEADER)
        for time in range(100):
            publisher.write(tag(9, time, bytes(60_000)))
        publisher.close()
    assert len(listening.read) == 13 + 100 * 60_015


@pytest.mark.parametrize("path", ["live/other", "live/sesam", "live/sesame2", "other/sesame"])
def test_another_key_or_application_is_refused_and_the_next_is_let_in(path):
    with Listening() as listening:
        with pytest.raises(OutputError, match="refuses the stream") as refused:
            listening.publish(path)
        listening.publish().close()
    assert "sesam" not in str(refused.value)
    assert listening.read == HEADER


@contextmanager
def caller(listening):
    with socket.create_connection(("127.0.0.1", listening.port), timeout=SECONDS) as connection:
        yield connection


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(2000),
        b"\3" + bytes(1536 * 2) + b"\xff" * 100,
        b"\3" + bytes(1536 * 2) + chunks(Message(kind=20, payload=b"\x55"), chunk_stream=3, size=128),
    ],
    ids=["another protocol", "nonsense in chunks", "nonsense in a command"],
)
def test_whoever_hangs_up_or_talks_nonsense_is_sent_away(words):
    with Listening() as listening:
        with caller(listening) as connection, suppress(OSError):
            connection.sendall(words)
            while connection.recv(65536):
                pass
        listening.publish().close()


def test_whoever_says_nothing_does_not_keep_the_others_out(monkeypatch):
    monkeypatch.setattr(rtmp, "_GREETING", 0.3)
    with Listening() as listening, caller(listening):
        listening.publish().close()


def test_whoever_says_it_byte_by_byte_does_not_keep_the_others_out(monkeypatch):
    monkeypatch.setattr(rtmp, "_GREETING", 0.5)
    with Listening() as listening, caller(listening) as connection:
        connection.settimeout(0.05)
        with suppress(ConnectionError):
            for _ in range(100):  # not nearly all that has to be said
                connection.sendall(b"\3")
                with suppress(TimeoutError):
                    if not connection.recv(1):
                        break
            else:
                listening.stop.set()
                pytest.fail("it is listened to for ever")
        listening.publish().close()


def test_a_publisher_who_falls_silent():
    with Listening(timeout=0.3) as listening:
        publisher = listening.publish()
        publisher.write(HEADER)
    assert str(listening.error) == "whoever publishes has sent nothing for 0.3 s"
    publisher.close()


def test_a_publisher_who_is_cut_off_is_the_end():
    with Listening() as listening:
        publisher = listening.publish()
        publisher.write(HEADER + tag(8, 0, b"sound"))
        publisher.abort()
    assert listening.read == HEADER + tag(8, 0, b"sound")
    assert listening.error is None
    publisher.close()


@pytest.mark.parametrize("when", ["before", "greeting", "reading"])
def test_a_stop_ends_waiting(when):
    with Listening() as listening:
        if when == "before":
            listening.stop.set()
        elif when == "greeting":
            with caller(listening):
                listening.stop.set()
        else:
            publisher = listening.publish()
            listening.stop.set()
    if when == "reading":
        publisher.close()


@pytest.mark.parametrize(
    "address", ["rtmp://127.0.0.1", "rtmp://127.0.0.1/live", "rtmp://127.0.0.1:x/live/key"]
)
def test_addresses_that_nobody_can_publish_to(address):
    with pytest.raises(InputError, match="write rtmp://HOST:PORT/APP/KEY"):
        RtmpListener(address, timeout=1.0, stop=threading.Event())


def test_an_address_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"rtmp://127.0.0.1:{taken.getsockname()[1]}/live/sesame"
        with pytest.raises(InputError, match=r"cannot listen at .*/live/\*\*\* \(.*\): take another"):
            RtmpListener(address, timeout=1.0, stop=threading.Event())
