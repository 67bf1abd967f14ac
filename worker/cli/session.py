"""What the global options say, for every subcommand to see."""

from __future__ import annotations

from typing import NamedTuple


class Session(NamedTuple):
    """One run of the command line."""

    farm: str | None
    """Redis URL of the farm, or None: run in this process."""
    level: str | None = None
    """What ``--log`` or ``--verbose`` asked for; None: neither was given."""
    limits_of_file: frozenset[str] = frozenset()
    """The limits that the settings file set."""
