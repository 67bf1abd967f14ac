"""PAX extended headers: records ``length key=value\\n`` before the entry they belong to (POSIX pax)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import ROUND_FLOOR, Context
from typing import Final

from layerfarm.jobs.errors import MalformedLayer

XATTR: Final = b"SCHILY.xattr."
HOLDS_NO_NUL: Final = frozenset((b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"))
_LENGTH_DIGITS = 10
_TIME = re.compile(rb"-?[0-9]{1,20}(?:\.[0-9]{0,40})?(?:e[+-]?[0-9]{1,2})?")
_EXACT = Context(prec=200)


def encode_records(records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The body of a PAX header, in the order given."""
    return b"".join(_encode(key, value) for key, value in records)


def _encode(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3  # the space, the equals sign, the newline
    length = rest + len(str(rest))
    # The length counts its own digits: adding them may add one more.
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)


def decode_records(body: bytes) -> list[tuple[bytes, bytes]]:
    """The records of a PAX header in their order; a value may hold any byte.

    Raises:
        MalformedLayer: a record breaks the format, or a name holds a NUL.
    """
    records: list[tuple[bytes, bytes]] = []
    at, end = 0, len(body)
    while at < end:
        space = body.find(b" ", at, at + _LENGTH_DIGITS + 1)
        digits = body[at:space]
        # isdigit: int() alone would also take "+5", " 5" and "1_0".
        if space < 0 or not digits.isdigit():
            # Some writers pad the header's body with NULs; they are no record and end the list.
            if not body[at:].strip(b"\0"):
                break
            raise MalformedLayer("PAX record has no length")
        stop = at + int(digits)
        equals = body.find(b"=", space + 1, stop)
        if stop > end or equals < 0 or body[stop - 1] != 0x0A or equals == space + 1:
            raise MalformedLayer("PAX record breaks the format")
        key, value = body[space + 1 : equals], body[equals + 1 : stop - 1]
        if b"\0" in key or (key in HOLDS_NO_NUL and b"\0" in value):
            raise MalformedLayer("PAX record holds a NUL", where=key)
        records.append((key, value))
        at = stop
    return records


def encode_time(seconds: int, nanoseconds: int) -> bytes:
    """A PAX time; ``nanoseconds`` are counted from the second on, before 1970 too."""
    total = seconds * 10**9 + nanoseconds
    whole, fraction = divmod(abs(total), 10**9)
    text = b"%d.%09d" % (whole, fraction) if fraction else b"%d" % whole
    return (b"-" if total < 0 else b"") + (text.rstrip(b"0") if fraction else text)


def parse_time(value: bytes) -> int:
    """A PAX time as nanoseconds, digits beyond the ninth cut off towards the past.

    Python's tarfile writes very small and very large times with an exponent; that is read too.

    Raises:
        MalformedLayer: not a decimal number.
    """
    found = _TIME.fullmatch(value)
    if found is None:
        raise MalformedLayer("PAX time is not a number", where=value[:100])
    whole, _, fraction = value.partition(b".")
    if b"e" not in value and len(fraction) <= 9 and not value.startswith(b"-"):
        return int(whole) * 10**9 + int(fraction.ljust(9, b"0"))
    # Decimal: a float would lose nanoseconds. 200 digits hold whatever the pattern lets through.
    return int(_EXACT.scaleb(_EXACT.create_decimal(value.decode()), 9).to_integral_value(ROUND_FLOOR))


def parse_number(key: bytes, value: bytes) -> int:
    """A PAX decimal number that is not negative.

    Raises:
        MalformedLayer: it is something else.
    """
    if not value.isdigit() or len(value) > 20:
        raise MalformedLayer(f"PAX record {key.decode('ascii', 'replace')} is not a number", where=value[:100])
    return int(value)
