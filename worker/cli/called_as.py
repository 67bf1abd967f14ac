"""The name under which the command was called: some scripts cannot be changed, and call it umoci."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

UMOCI_VERSION: Final = "0.6.0"
"""The version of umoci whose commands and flags are supported; scripts require a minimum of it."""


def as_umoci() -> bool:
    """Return True if the program is a link, or a copy, named ``umoci``."""
    return Path(sys.argv[0]).name == "umoci"
