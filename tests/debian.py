"""Create Debian trees with debootstrap, atomically; its processes end with their caller."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

ALONE: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
"""Prefix of a command that mounts and runs programs in a tree: killing it, by a timeout too, kills all of them."""


def bootstrap(suite: str, tree: Path, *options: str, archive: tuple[str, ...] = ()) -> None:
    """Create ``tree``, a minbase of ``suite``.

    Parameters:
        options: further ones of debootstrap.
        archive: address of the mirror, and the script for a suite that debootstrap does not know.
    """
    unfinished = tree.with_name(f"{tree.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [*ALONE, "debootstrap", "--variant=minbase", *options, suite, str(unfinished), *archive]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    unfinished.rename(tree)
