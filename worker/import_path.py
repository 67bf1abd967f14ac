"""Order of the import path: first layerfarm's installation, then the caller's PYTHONPATH."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def ours_first() -> None:
    """Move the directories of PYTHONPATH behind all others.

    Another project's ``click`` or ``redis`` there does not replace the one that layerfarm was installed with; the
    user's own flows (``LAYERFARM_FLOWS``) are still found. Must be called before any other import.
    """
    callers = {str(Path(each).absolute()) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each}
    sys.path.sort(key=callers.__contains__)
