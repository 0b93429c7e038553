"""Messages survive their way in chunks, however it is cut."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toonstream.stream.rtmp.chunks import ChunkReader, Message, chunks

messages = st.builds(
    Message,
    kind=st.sampled_from([8, 9, 18, 20]),
    timestamp=st.integers(0, 2**32 - 1),
    stream=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=900),
)


@given(st.lists(messages, max_size=6), st.integers(1, 300), st.data())
def test_messages_survive_being_cut_anywhere(sent, size, data):
    wire = chunks(Message(kind=1, payload=struct.pack(">I", size)), chunk_stream=2, size=128) + b"".join(
        chunks(message, chunk_stream=4, size=size) for message in sent
    )
    reader, heard = ChunkReader(), []
    while wire:
        cut = data.draw(st.integers(1, len(wire)))
        heard += reader.feed(wire[:cut])
        wire = wire[cut:]
    assert heard[1:] == sent


def test_messages_of_several_streams_interleave():
    long = Message(kind=9, timestamp=5, stream=1, payload=bytes(200))
    wire = chunks(long, chunk_stream=6, size=128)
    short = Message(kind=8, timestamp=6, stream=1, payload=b"sound")
    begin = len(wire) - 73  # one chunk of pictures, the sound, the other chunk
    assert list(
        ChunkReader().feed(wire[:begin] + chunks(short, chunk_stream=4, size=128) + wire[begin:])
    ) == [
        short,
        long,
    ]


def test_shorter_headers_repeat_what_was_said_before():
    first = chunks(Message(kind=8, timestamp=5, stream=1, payload=b"abc"), chunk_stream=4, size=128)
    same_stream = bytes([0x44]) + b"\0\0\7" + b"\0\0\2" + bytes([8]) + b"de"
    same_length = bytes([0x84]) + b"\0\0\7" + b"fg"
    all_the_same = bytes([0xC4]) + b"hi"
    heard = list(ChunkReader().feed(first + same_stream + same_length + all_the_same))
    assert [message.payload for message in heard] == [b"abc", b"de", b"fg", b"hi"]
    assert [message.timestamp for message in heard] == [5, 12, 19, 26]  # all but the first are differences
    assert {(message.kind, message.stream) for message in heard} == {(8, 1)}


@pytest.mark.parametrize(
    "wire",
    [
        b"\xc4abc",
        bytes([4]) + bytes(3) + b"\xff\xff\xff" + bytes(5),
        b"".join(bytes([number, *bytes(3), 0, 0, 9, 8, *bytes(4), *bytes(9)]) for number in range(2, 40)),
        chunks(Message(kind=1, payload=b"\0\0\0\0"), chunk_stream=2, size=128),
    ],
    ids=["goes on where nothing began", "a message of 16 MB", "too many streams", "chunks of no size"],
)
def test_nonsense_is_left(wire):
    with pytest.raises(ValueError, match=r"chunk|message|streams"):
        list(ChunkReader().feed(wire))
