"""Order of the import path: first where layerfarm is installed, then the caller's PYTHONPATH."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def ours_first() -> None:
    """Put the directories of PYTHONPATH behind all others.

    Another project's ``click`` or ``redis`` there does not take the place of the one that layerfarm was installed
    with; flows of one's own (``LAYERFARM_FLOWS``) are still found. To be called before anything else is imported.
    """
    callers = {str(Path(each).absolute()) for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each}
    sys.path.sort(key=callers.__contains__)
