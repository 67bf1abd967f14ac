"""The fields of one tar header block, as Go's archive/tar reads them (its ``reader.go`` and ``strconv.go``).

Builders and runtimes are Go programs: a header must not be read differently here.
"""

from __future__ import annotations

from typing import Final
from zlib import adler32

from layerfarm.jobs.errors import MalformedLayer

_PADDING: Final = b" \0"
_USTAR: Final = b"ustar\0"
_GNU: Final = b"ustar  \0"
_STAR_TRAILER: Final = b"tar\0"
_HIGHEST: Final = (1 << 63) - 1


def text(field: bytes) -> bytes:
    """Return a string field, up to its first NUL."""
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def number(field: bytes) -> int:
    """Return a number field: octal text or, with the highest bit set, base-256, which may be negative.

    Octal text may have spaces and NULs on both sides; an empty field is 0.

    Raises:
        MalformedLayer: it is not a number, or does not fit into 64 bits.
    """
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        # Bit 6 of the first byte is the sign.
        if field[0] & 0x40:
            value -= 1 << bits
        if not -_HIGHEST - 1 <= value <= _HIGHEST:
            raise MalformedLayer("number in a tar header does not fit into 64 bits", where=field)
        return value
    return _octal(field)


def is_gnu(block: bytes) -> bool:
    """Return True if the block is in GNU tar's own format, with a sparse map and without a prefix."""
    return block[257:265] == _GNU


def has_devices(block: bytes) -> bool:
    """Return True if the block has device numbers; the format of Unix v7 has none."""
    return block[257:263] == _USTAR or is_gnu(block)


def prefix_and_atime(block: bytes) -> tuple[bytes, int | None]:
    """Return the directory part of the name, empty if there is none, and the access time in seconds.

    Before 1.8, Go (and so Docker) wrote a prefix into blocks of the GNU format, where the access and change times are.
    The prefix is read if those two are not numbers and it is ASCII (golang.org/issue/12594).

    Raises:
        MalformedLayer: a time of the star format is not a number.
    """
    if block[257:263] == _USTAR:
        if block[508:512] != _STAR_TRAILER:
            return text(block[345:500]), None
        number(block[488:500])
        return text(block[345:476]), number(block[476:488])
    if not is_gnu(block):
        return b"", None
    try:
        atime = number(block[345:357]) if block[345] else None
        if block[357]:
            number(block[357:369])
    except MalformedLayer:
        prefix = text(block[345:500])
        return prefix if prefix.isascii() else b"", None
    return b"", atime


def check_sum(block: bytes) -> None:
    """Raise MalformedLayer if the block's checksum is wrong."""
    field = block[148:156]
    # adler32's low half is 1 + the sum of the bytes while that is below 65521: exact for 256 of them,
    # and 20 times faster than sum() over 512.
    total = (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2 - sum(field) + 8 * 0x20
    # As nearly all writers have it; that is 0.3 us faster than to parse it.
    if b"%06o\0 " % total == field:
        return
    try:
        expected = _octal(field)
    except MalformedLayer:
        expected = None
    if total == expected:
        return
    # Very old writers summed signed bytes (POSIX ustar tells readers to take both).
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:]) + 8 * 0x20
    if signed != expected:
        raise MalformedLayer("tar header has a wrong checksum: the stream is damaged or not a tar")


def _octal(field: bytes) -> int:
    digits = text(field.strip(_PADDING))
    if not digits:
        return 0
    # isdigit: int() alone would also take "1_0" and "+7".
    if not digits.isdigit():
        raise MalformedLayer("tar header field is not a number", where=field)
    try:
        return int(digits, 8)
    except ValueError as error:
        raise MalformedLayer("tar header field is not a number", where=field) from error
