"""The operator's own paths, as a request names them; ``layerfarm.jobs.fs`` is for paths inside a root."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def is_directory(path: Path) -> bool:
    """Return True if a directory is there, links followed.

    Since Python 3.14 ``Path.is_dir`` returns False for an inaccessible path.

    Raises:
        PermissionError, OSError: the path is inaccessible.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
