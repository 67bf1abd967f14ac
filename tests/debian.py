"""Debians of debootstrap: a tree is whole or not there, and what makes it ends with whoever has started it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Final

ALONE: Final = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
"""Before a command that mounts and starts programs in a tree: when it is killed, by a time limit too, none is left."""


def bootstrap(suite: str, tree: Path, *options: str, archive: tuple[str, ...] = ()) -> None:
    """Make ``tree`` a minbase of ``suite``, from ``archive``: its address, and a script if debootstrap has none."""
    unfinished = tree.with_name(f"{tree.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [*ALONE, "debootstrap", "--variant=minbase", *options, suite, str(unfinished), *archive]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    unfinished.rename(tree)
