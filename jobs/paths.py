"""The operator's own paths, as a request names them; ``layerfarm.jobs.fs`` is for paths inside a root."""

from __future__ import annotations

import errno
import stat
from pathlib import Path


def is_directory(path: Path) -> bool:
    """Whether there is a directory, links followed.

    ``Path.is_dir`` takes a path that may not be looked at for one that does not exist, since Python 3.14.

    Raises:
        PermissionError, OSError: it cannot be told.
    """
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise
