"""The values of the global options, for every subcommand."""

from __future__ import annotations

from typing import NamedTuple


class Session(NamedTuple):
    """One run of the command line."""

    farm: str | None
    """Redis URL of the farm, or None: run in this process."""
    level: str | None = None
    """Level of ``--log`` or ``--verbose``; None: neither was given."""
    limits_of_file: frozenset[str] = frozenset()
    """The limits that the settings file set."""

    def farm_at(self, url: str | None) -> str | None:
        """Return the farm for a command with ``--farm URL``: none if it is empty; without it, the session's."""
        return (self.farm if url is None else url) or None
