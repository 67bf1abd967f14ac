"""Times in OCI documents: RFC 3339, always given, never read from the clock here (DESIGN law 1)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from layerfarm.jobs.errors import RequestError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(seconds: int) -> str:
    """Seconds since the epoch as RFC 3339 in UTC.

    Raises:
        RequestError: the year would have more than four digits, or be before 1.
    """
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError as error:
        raise RequestError("time is out of range", where=str(seconds)) from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def check_timestamp(text: str) -> str:
    """``text`` if it is RFC 3339, as ``date --iso-8601=seconds`` prints it, or a date alone.

    Raises:
        RequestError: it is not.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError("not an ISO 8601 time", where=text[:100], hint="write 2006-01-02T15:04:05Z") from error
    if moment.tzinfo is None:
        # A time without a zone would mean another moment on another machine.
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")
    return text.replace(" ", "T", 1)
