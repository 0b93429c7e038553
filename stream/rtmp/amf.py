"""AMF0, the notation of RTMP's commands, as much of it as publishing takes."""

import struct
from collections.abc import Mapping
from typing import TypeAlias, Union

__all__ = ["Value", "decode", "encode"]

Value: TypeAlias = Union[float, bool, str, Mapping[str, "Value"], list["Value"], None]  # noqa: UP007

_NUMBER, _BOOLEAN, _STRING, _OBJECT, _NULL, _UNDEFINED, _ECMA_ARRAY, _END, _STRICT_ARRAY, _DATE, _LONG = (
    *range(4),
    *range(5, 7),
    *range(8, 13),
)
_MAX_DEPTH = 16  # of objects in objects; a server that sends more is not answered to


def encode(*values: Value) -> bytes:
    """Write values one after the other."""
    return b"".join(_encode(value) for value in values)


def decode(data: bytes) -> list[Value]:
    """Read the values of a message.

    Raises:
        ValueError: it is not AMF0, or a part of it that no server sends to a publisher.
    """
    values: list[Value] = []
    position = 0
    try:
        while position < len(data):
            value, position = _decode(data, position, _MAX_DEPTH)
            values.append(value)
    except (struct.error, IndexError) as error:
        raise ValueError("the message ends too early") from error
    return values


def _encode(value: Value) -> bytes:
    if value is None:
        return bytes([_NULL])
    if isinstance(value, bool):
        return bytes([_BOOLEAN, value])
    if isinstance(value, float | int):
        return struct.pack(">Bd", _NUMBER, value)
    if isinstance(value, str):
        return bytes([_STRING]) + _name(value)
    if isinstance(value, list):
        return struct.pack(">BI", _STRICT_ARRAY, len(value)) + encode(*value)
    members = b"".join(_name(name) + _encode(member) for name, member in value.items())
    return bytes([_OBJECT]) + members + _name("") + bytes([_END])


def _name(text: str) -> bytes:
    data = text.encode()
    if len(data) > 0xFFFF:
        raise ValueError(f"{len(data)} bytes are too long for a name")
    return struct.pack(">H", len(data)) + data


def _decode(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    if depth == 0:
        raise ValueError("objects in objects in objects")
    kind, at = data[at], at + 1
    if kind == _NUMBER:
        return struct.unpack_from(">d", data, at)[0], at + 8
    if kind == _BOOLEAN:
        return bool(data[at]), at + 1
    if kind == _STRING:
        return _text(data, at, 2)
    if kind == _LONG:
        return _text(data, at, 4)
    if kind in (_NULL, _UNDEFINED):
        return None, at
    if kind == _DATE:
        return struct.unpack_from(">d", data, at)[0], at + 10
    if kind == _STRICT_ARRAY:
        (count,) = struct.unpack_from(">I", data, at)
        at += 4
        values: list[Value] = []
        for _ in range(count):
            value, at = _decode(data, at, depth - 1)
            values.append(value)
        return values, at
    if kind in (_OBJECT, _ECMA_ARRAY):
        at += 4 if kind == _ECMA_ARRAY else 0
        members: dict[str, Value] = {}
        while True:
            name, at = _text(data, at, 2)
            if not name and data[at] == _END:
                return members, at + 1
            members[name], at = _decode(data, at, depth - 1)
    raise ValueError(f"a value of kind {kind}")


def _text(data: bytes, at: int, width: int) -> tuple[str, int]:
    begin = at + width
    end = begin + int.from_bytes(data[at:begin], "big")
    if end > len(data):
        raise ValueError("the message ends too early")
    return data[begin:end].decode(errors="replace"), end
