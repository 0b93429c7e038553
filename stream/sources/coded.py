"""How large the pictures of an encoded stream say they are, for limits that hold before anything is decoded.

Decoders allocate whole pictures by what a header of a few bytes claims, libvpx whatever limit it is given.
"""

import re

__all__ = ["H264_ALIGNMENT", "claimed_size"]

H264_ALIGNMENT = 32  # pixels: sides are coded in steps of 16, heights of interlaced pictures in steps of 32

_SEQUENCE = re.compile(rb"\x00\x00\x01[\x07\x27\x47\x67]")  # where a sequence parameter set begins
_SETS = 32  # that there may be at a time
_SET_BYTES = 512  # of one that are read: what comes before the size is shorter
_PLAIN = (66, 77, 88)  # profiles: Baseline, Main, Extended
_HIGH = (44, 100, 110, 122, 244)  # those that say more of colours, before the size
_MACROBLOCK = 16  # pixels a side
_CYCLE = 255  # frames at most in a cycle of display order


def claimed_size(codec: str, data: bytes) -> tuple[int, int] | None:
    """The (width, height) that a packet claims for pictures from now on; None where it says nothing of it.

    Of several, the one with the longest side. Those of H.264 are those that are coded, before cropping.

    Args:
        codec: FFmpeg's name: `h264` and `vp8` are known, of others nothing is said.
        data: a packet, or a decoder's extra data; H.264 with start codes, or as MP4's configuration record.

    Raises:
        ValueError: it has a header that cannot be read.
    """
    if codec == "vp8":
        return _vp8(data)
    if codec == "h264":
        return max(map(_h264, _sequences(data)), key=max, default=None)
    return None


def _vp8(data: bytes) -> tuple[int, int] | None:
    """RFC 6386, 9.1."""
    if not data or data[0] & 1:  # no key frame
        return None
    if len(data) < 10:
        raise ValueError("a key frame without a header")
    width, height = (int.from_bytes(data[place : place + 2], "little") & 0x3FFF for place in (6, 8))
    return width, height


def _sequences(data: bytes) -> list[bytes]:
    """The sequence parameter sets, each as it may be read: libavcodec tries bytes left as they are, too."""
    if data[:1] == b"\1":  # no start code: MP4's configuration record
        data = _with_start_codes(data)
    found: set[bytes] = set()
    for match in _SEQUENCE.finditer(data):
        begin = match.end()
        end = data.find(b"\0\0\1", begin, begin + _SET_BYTES)
        raw = data[begin : begin + _SET_BYTES if end < 0 else end]
        found |= {raw, raw.replace(b"\0\0\3", b"\0\0")}
        if len(found) > 2 * _SETS:
            raise ValueError("more sequence parameter sets than there can be")
    return list(found)


def _with_start_codes(record: bytes) -> bytes:
    """The sequence parameter sets of a configuration record (ISO 14496-15, 5.3.3)."""
    sets, place = b"", 6
    for _ in range(record[5] & 31 if len(record) > 5 else 0):
        length = int.from_bytes(record[place : place + 2], "big")
        sets += b"\0\0\1" + record[place + 2 : place + 2 + length]
        place += 2 + length
    return sets


def _h264(sequence: bytes) -> tuple[int, int]:
    """ITU-T H.264, 7.3.2.1.1, as far as the size."""
    bits = _Bits(sequence)
    profile = bits.take(8)
    bits.take(16)  # constraints, level
    bits.number()  # which set it is
    if profile in _HIGH:
        _skip_colours(bits)
    elif profile not in _PLAIN:
        raise ValueError(f"a profile that is not known: {profile}")
    bits.number()  # digits of a frame's number
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.take(1)
        bits.number()
        bits.number()
        cycle = bits.number()
        if cycle > _CYCLE:
            raise ValueError("a cycle that is too long")
        for _ in range(cycle):
            bits.number()
    bits.number()  # frames referred to
    bits.take(1)
    columns, rows = bits.number() + 1, bits.number() + 1
    fields = 2 - bits.take(1)
    return _MACROBLOCK * columns, _MACROBLOCK * rows * fields


def _skip_colours(bits: "_Bits") -> None:
    chroma = bits.number()
    if chroma == 3:
        bits.take(1)
    bits.number()  # bits of brightness, of colour
    bits.number()
    bits.take(1)
    if not bits.take(1):
        return
    for which in range(12 if chroma == 3 else 8):  # scaling lists
        if bits.take(1):
            before, after = 8, 8
            for _ in range(16 if which < 6 else 64):
                after = (before + bits.signed()) % 256
                if after == 0:
                    break
                before = after


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits."""
        if count > self._left:
            raise ValueError("a header that is cut off")
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def number(self) -> int:
        """A number in Exponential-Golomb code, ue(v)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """The same with a sign, se(v)."""
        number = self.number()
        return (number + 1) // 2 if number % 2 else -(number // 2)
