"""Times in OCI documents: RFC 3339, always given, never read from the clock here (DESIGN law 1)."""

from __future__ import annotations

import re
from calendar import isleap, monthrange
from datetime import UTC, datetime, timedelta
from typing import Final

from layerfarm.jobs.errors import RequestError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]+)?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)


SECONDS: Final = range(-62_135_596_800, 253_402_300_800)
"""Seconds since the epoch that RFC 3339 can write: the years 1 to 9999."""


def timestamp(seconds: int) -> str:
    """Seconds since the epoch as RFC 3339 in UTC.

    Raises:
        RequestError: the year would have more than four digits, or be before 1.
    """
    if seconds not in SECONDS:
        raise RequestError("time is out of range", where=str(seconds))
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def is_timestamp(text: str) -> bool:
    """Whether ``text`` is a time by the grammar of RFC 3339 5.6, the only one that image-spec config.md allows.

    As Go reads it, because builders and runtimes are written in Go and refuse the whole config otherwise: ``T`` and
    ``Z`` in capitals, no leap second, a day that its month has, a year from 0000.
    """
    found = _RFC3339.fullmatch(text)
    if found is None:
        return False
    year, month, day = (int(found[name]) for name in ("year", "month", "day"))
    # 2000 and 2001 stand for all leap years and all others: the year 0000 is one of Go's and none of Python's.
    return 1 <= month <= 12 and 1 <= day <= monthrange(2000 if isleap(year) else 2001, month)[1]


def check_timestamp(text: str) -> str:
    """``text`` if it is RFC 3339 (:func:`is_timestamp`).

    Raises:
        RequestError: it is not.
    """
    if not is_timestamp(text):
        raise RequestError("not an RFC 3339 time", where=text[:100], hint="write 2006-01-02T15:04:05Z")
    return text
