"""The times of a server of catalogs, in seconds."""

from __future__ import annotations

from typing import Final, NamedTuple

_LONGEST_WAIT: Final = 3600.0


class Times(NamedTuple):
    """Waits and time limits of one server."""

    settle: float = 5.0
    """A run begins when nothing was pushed for this time, or after ten times that."""
    first_wait: float = 10.0
    """Between a failed attempt and the next one; doubled each time, up to an hour."""
    body: float = 10.0
    """A client must send the body of a request within this time."""
    connection: float = 30.0
    """A connection is closed after this time, whatever it does."""

    def wait_after(self, failures: int) -> float:
        """Return the time to wait after a failure that follows ``failures`` others."""
        return min(self.first_wait * 2.0 ** min(failures, 20), _LONGEST_WAIT)
