"""Remove what was unpacked, of whatever depth and whatever is in it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from layerfarm.jobs.fs.remove import remove


def remove_tree(path: Path) -> None:
    """Remove ``path`` and all that is below it; fine if it is gone already. No link is followed.

    shutil.rmtree calls itself for each level, and gives up on an image that is nested a thousand deep.

    Raises:
        OSError: something cannot be removed.
    """
    with suppress(FileNotFoundError):
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            remove(parent, os.fsencode(path.name))
        finally:
            os.close(parent)
