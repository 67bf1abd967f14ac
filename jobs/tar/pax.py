"""PAX extended headers: records ``length key=value\\n`` before their entry (POSIX pax)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_FLOOR, Context
from typing import Final

from layerfarm.jobs.errors import MalformedLayer

XATTR: Final = b"SCHILY.xattr."
Records = dict[bytes, bytes]

HOLDS_NO_NUL: Final = frozenset((b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"))
_SHORTEST: Final = 5
_HIGHEST: Final = (1 << 63) - 1
_HIGHEST_DIGITS: Final = 19
_SPARSE_PAIR: Final = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_TIME_WITH_EXPONENT = re.compile(rb"-?[0-9]{1,20}(?:\.[0-9]{0,40})?e[+-]?[0-9]{1,2}")
_EXACT = Context(prec=200)


def encode_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the body of a PAX header, in the order given."""
    return b"".join(_encode(key, value) for key, value in records)


def _encode(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3  # the space, the equals sign, the newline
    length = rest + len(str(rest))
    # The length counts its own digits: adding them may add one more.
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def decode_records(body: bytes) -> list[tuple[bytes, bytes]]:
    """Return the records of a PAX header in their order; a value may hold any byte.

    Raises:
        MalformedLayer: a record breaks the format, or a name holds a NUL.
    """
    records: list[tuple[bytes, bytes]] = []
    at, end = 0, len(body)
    while at < end:
        space = body.find(b" ", at)
        length = None if space < 0 else _integer(body[at:space])
        if length is None:
            # Some writers pad the header's body with NULs, which end the list.
            if not body[at:].strip(b"\0"):
                break
            raise MalformedLayer("PAX record has no length")
        stop = at + length
        equals = body.find(b"=", space + 1, stop) if length >= _SHORTEST else -1
        if stop > end or equals < 0 or body[stop - 1] != 0x0A or equals == space + 1:
            raise MalformedLayer("PAX record breaks the format")
        key, value = body[space + 1 : equals], body[equals + 1 : stop - 1]
        if b"\0" in key or (key in HOLDS_NO_NUL and b"\0" in value):
            raise MalformedLayer("PAX record holds a NUL", where=key)
        records.append((key, value))
        at = stop
    return records


def read_records(body: bytes) -> Records:
    """Return the records of a PAX header by key; the last one of a key counts.

    The map of a sparse file of version 0.0, in which two keys repeat, is converted to version 0.1, as in Go.

    Raises:
        MalformedLayer: as :func:`decode_records`, or such a map is out of order.
    """
    records = decode_records(body)
    found = dict(records)
    if _SPARSE_PAIR[0] in found or _SPARSE_PAIR[1] in found:
        pairs = [(key, value) for key, value in records if key in _SPARSE_PAIR]
        if any(key != _SPARSE_PAIR[at % 2] or b"," in value for at, (key, value) in enumerate(pairs)):
            raise MalformedLayer("sparse map is out of order")
        found[b"GNU.sparse.map"] = b",".join(value for _, value in pairs)
    return found


def encode_time(seconds: int, nanoseconds: int) -> bytes:
    """Return a PAX time; ``nanoseconds`` are added to the second, before 1970 too."""
    total = seconds * 10**9 + nanoseconds
    whole, fraction = divmod(abs(total), 10**9)
    text = b"%d.%09d" % (whole, fraction) if fraction else b"%d" % whole
    return (b"-" if total < 0 else b"") + (text.rstrip(b"0") if fraction else text)


def parse_time(value: bytes) -> int:
    """Return a PAX time as nanoseconds, digits beyond the ninth cut off as Go does, before 1970 too.

    Python's tarfile writes very small and very large times with an exponent; that is read too.

    Raises:
        MalformedLayer: not a decimal number.
    """
    whole, _, fraction = value.partition(b".")
    seconds = _integer(whole)
    if seconds is not None and (not fraction or fraction.isdigit()):
        nanoseconds = int(fraction[:9].ljust(9, b"0"))
        return seconds * 10**9 + (-nanoseconds if whole[0] == 0x2D else nanoseconds)
    if _TIME_WITH_EXPONENT.fullmatch(value) is None:
        raise MalformedLayer("PAX time is not a number", where=value[:100])
    # Decimal: a float would lose nanoseconds. 200 digits hold all that the pattern accepts.
    return int(_EXACT.scaleb(_EXACT.create_decimal(value.decode()), 9).to_integral_value(ROUND_FLOOR))


def parse_number(key: bytes, value: bytes) -> int:
    """Return a PAX decimal number that is not negative.

    Raises:
        MalformedLayer: it is not a number, is negative, or does not fit into 64 bits.
    """
    number = parse_signed(key, value)
    if number < 0:
        raise MalformedLayer(f"PAX record {key.decode('ascii', 'replace')} is a negative number", where=value[:100])
    return number


def parse_signed(key: bytes, value: bytes) -> int:
    """Return a PAX decimal number.

    Raises:
        MalformedLayer: it is not a number, or does not fit into 64 bits.
    """
    number = _integer(value)
    if number is None:
        raise MalformedLayer(f"PAX record {key.decode('ascii', 'replace')} is not a number", where=value[:100])
    return number


def _integer(text: bytes) -> int | None:
    """Return a decimal number of 64 bits with or without a sign, as Go's strconv.ParseInt reads it; else None."""
    digits = text[1:] if text[:1] in (b"+", b"-") else text
    # isdigit: int() alone would also take " 5" and "1_0".
    if not digits.isdigit():
        return None
    # int() refuses thousands of digits, even zeros.
    digits = digits.lstrip(b"0")
    if len(digits) > _HIGHEST_DIGITS:
        return None
    value = int(digits or b"0")
    if text[0] == 0x2D:
        value = -value
    return value if -_HIGHEST - 1 <= value <= _HIGHEST else None
