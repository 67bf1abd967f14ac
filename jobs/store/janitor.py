"""Remove the files that crashed jobs left in a layout (law 8, docs/architecture.md)."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.store.atomic_file import PRIVATE_DIRECTORY, files_of

_LEFTOVERS: Final = ("ingest", "work", "doomed")


def janitor(
    layout: Path,
    max_age: float,
    *,
    now: float | None = None,
    dry_run: bool = False,
    holders: Collection[str] = (),
) -> list[tuple[Path, int]]:
    """Remove ingest files and work directories not touched for ``max_age`` seconds; return them and their bytes.

    Those of ``holders``, jobs with a lease, stay: they may be queued for any time. ``now``: seconds on the store's
    clock, by default on this machine's.

    Raises:
        UnsafePath: one of their directories is a link.
    """
    removed = []
    files = files_of(layout)
    oldest = (time.time() if now is None else now) - max_age
    for kind in _LEFTOVERS:
        directory = layout / PRIVATE_DIRECTORY / kind
        for path in (directory / name for name in sorted(files.names(directory))):
            if path.name.partition(".")[0] in holders:
                continue
            try:
                if _last_touched(files, path) > oldest:
                    continue
                size = files.size(path)
                if not dry_run:
                    files.remove(path)
            except FileNotFoundError:
                continue  # its job, or another janitor, was faster
            removed.append((path, size))
    return removed


def umoci_leftovers(layout: Path, oldest: float, *, dry_run: bool = False) -> list[tuple[Path, int]]:
    """Remove the temporary directories of umoci processes that ended; return them and their bytes.

    A running umoci holds a flock on its directory (umoci.md B7), but takes it late: only directories touched before
    ``oldest``, in seconds, are removed.
    """
    removed = []
    for path in sorted(layout.glob(".umoci-*")):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # not umoci's directory, or gone
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_mtime <= oldest:
                removed.append((path, files_of(layout).size(path)))
                if not dry_run:
                    files_of(layout).remove(path)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
    return removed


def _last_touched(files: Beneath, path: Path) -> float:
    """Return the newest mtime of the path and of the entries directly in it."""
    found = files.lstat(path)
    inside = files.names(path) if stat.S_ISDIR(found.st_mode) else []
    return max([found.st_mtime, *(files.lstat(path / name).st_mtime for name in inside)])
