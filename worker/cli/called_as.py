"""The name that the command was called by: some scripts cannot be changed, and find it under umoci's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

UMOCI_VERSION: Final = "0.6.0"
"""The version of umoci whose commands and flags are here; scripts look for a minimum of it."""


def as_umoci() -> bool:
    """Whether the program is a link, or a copy, named ``umoci``."""
    return Path(sys.argv[0]).name == "umoci"
