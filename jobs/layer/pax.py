"""PAX extended headers: records ``length key=value\\n`` before the entry they belong to (POSIX pax)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from jobs.errors import MalformedLayer

XATTR: Final = b"SCHILY.xattr."
HOLDS_NO_NUL: Final = frozenset((b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"))
_LENGTH_DIGITS = 10


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


def parse_time(value: bytes) -> int:
    """A PAX time as nanoseconds, digits beyond the ninth cut off towards the past.

    Raises:
        MalformedLayer: not a decimal number.
    """
    negative = value.startswith(b"-")
    whole, _, fraction = value.lstrip(b"-").partition(b".") if negative else value.partition(b".")
    if not whole.isdigit() or len(whole) > 20 or (fraction and not fraction.isdigit()) or value.startswith(b"--"):
        raise MalformedLayer("PAX time is not a number", where=value[:100])
    ns = int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0") or b"0")
    if not negative:
        return ns
    return -ns - (1 if fraction[9:].strip(b"0") else 0)


def parse_number(key: bytes, value: bytes) -> int:
    """A PAX decimal number that is not negative.

    Raises:
        MalformedLayer: it is something else.
    """
    if not value.isdigit() or len(value) > 20:
        raise MalformedLayer(f"PAX record {key.decode('ascii', 'replace')} is not a number", where=value[:100])
    return int(value)
