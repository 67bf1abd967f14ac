"""Removes what crashed jobs left in a layout (DESIGN law 8)."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from jobs.store.layout import PRIVATE_DIRECTORY

_LEFTOVERS = ("ingest", "work", "unpack")


def janitor(layout: Path, max_age: float) -> list[Path]:
    """Remove ingest files and work directories that nothing has touched for ``max_age`` seconds.

    A job that is alive writes to what it staged, so ``max_age`` need only be longer than the longest
    pause of a job; a day is safe. Returns what was removed.
    """
    removed = []
    oldest = time.time() - max_age
    for kind in _LEFTOVERS:
        directory = layout / PRIVATE_DIRECTORY / kind
        if not directory.is_dir():
            continue
        for path in sorted(directory.iterdir()):
            try:
                if _last_touched(path) >= oldest:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:
                continue  # its job, or another janitor, was quicker
            removed.append(path)
    return removed


def _last_touched(path: Path) -> float:
    """The newest mtime of the path and of what lies directly in it."""
    newest = os.lstat(path).st_mtime
    if path.is_dir() and not path.is_symlink():
        with os.scandir(path) as entries:
            newest = max([newest, *(entry.stat(follow_symlinks=False).st_mtime for entry in entries)])
    return newest
