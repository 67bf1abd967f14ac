"""tar-split data: all bytes of a tar that are not the content of a file, from which a client makes the tar again.

One JSON document a line, as vbatts/tar-split writes them: the bytes before each content (type 2), and the name, size
and CRC-64 of each content (type 1). Podman computes the diff_id of a layer that it pulled in part from it.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Final

FILE: Final = 1
SEGMENT: Final = 2

_ONES: Final = (1 << 64) - 1
_STEP: Final = 64 << 10
"""Bytes that are folded at a time: a few integers of that size stay in a processor's cache."""


class TarSplitWriter:
    """Writes the lines of a layer, in the order of its bytes."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._position = 0

    def segment(self, data: bytes) -> None:
        """Bytes of headers and padding. A header and the extended headers before it are in one segment."""
        self._line(b'"type":%d,"payload":"%b"' % (SEGMENT, b64encode(data)))

    def file(self, name: str, size: int, crc: int | None) -> None:
        """Write an entry of the tar; ``crc`` is that of its content, None without content."""
        text = json.dumps(name, ensure_ascii=False).encode()
        sized = b',"size":%d' % size if size else b""
        payload = b"null" if crc is None else b'"%b"' % b64encode(crc.to_bytes(8, "big"))
        self._line(b'"type":%d,"name":%b%b,"payload":%b' % (FILE, text, sized, payload))

    def _line(self, fields: bytes) -> None:
        self._write(b'{%b,"position":%d}\n' % (fields, self._position))
        self._position += 1


class Crc64:
    """CRC-64 of ISO 3309, which Go's ``hash/crc64`` calls ISO.

    Python has none, and a loop over bytes takes 60 ns each. Its polynomial, x^64 + x^4 + x^3 + x + 1, has five terms,
    and so has it with all exponents times a power of two. So a long integer is folded onto its second half with a few
    shifts: ``h x^(64 q)`` is ``h (x^(4 q) + x^(3 q) + x^q + 1)``. That takes 4 to 6 ns a byte.
    """

    def __init__(self) -> None:
        self._state = _ONES

    @property
    def value(self) -> int:
        return self._state ^ _ONES

    def update(self, data: bytes) -> None:
        for at in range(0, len(data), _STEP):
            self._update(data[at : at + _STEP])

    def _update(self, data: bytes) -> None:
        size = len(data)
        if size < 16:
            self._state = _folded(int.from_bytes(data, "little") ^ self._state, 8 * size + 64)
            return
        # The first fold, which costs most, needs no shift to cut the integer in two.
        q = 1
        while 16 * q <= size:
            q *= 2
        first = min(size + 8 - 8 * q, 15 * q // 2)
        head = (int.from_bytes(data[:first], "little") ^ self._state) << (60 * q - 8 * first)
        tail = int.from_bytes(data[first:], "little")
        self._state = _folded(tail ^ _times(head, q), 8 * (size + 8 - first))


def _folded(value: int, bits: int) -> int:
    """Return the remainder of a polynomial; its highest power is the lowest bit, as the CRC is reflected."""
    q = 1
    while 128 * q < bits:
        q *= 2
    while bits > 64:
        while 64 * q >= bits:
            q //= 2
        low = min(bits - 64 * q, 60 * q)
        head = (value & ((1 << low) - 1)) << (60 * q - low)
        value = (value >> low) ^ _times(head, q)
        bits -= low
    return value


def _times(value: int, q: int) -> int:
    """``value`` times ``x^(4 q) + x^(3 q) + x^q + 1``, which is ``(x^q + 1) (x^(3 q) + 1)``."""
    value ^= value << q
    return value ^ value << 3 * q
