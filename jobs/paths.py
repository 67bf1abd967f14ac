"""The operator's own paths, as a request names them; ``layerfarm.jobs.fs`` is for paths inside a root."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def is_directory(path: Path) -> bool:
    """Return True if a directory is there, links followed.

    Since Python 3.14 ``Path.is_dir`` and ``Path.is_file`` return False for an inaccessible path.

    Raises:
        PermissionError, OSError: the path is inaccessible.
    """
    return stat.S_ISDIR(_mode(path))


def is_file(path: Path) -> bool:
    """Return True if a regular file is there, links followed. Raises as :func:`is_directory`."""
    return stat.S_ISREG(_mode(path))


def _mode(path: Path) -> int:
    """Return the type and mode of a file; 0 if nothing is there."""
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return 0
        raise
