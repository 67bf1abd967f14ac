"""A walk in a separate process, while the caller works on the same tree.

A thread would not help: a walk and the writing of a manifest both need the interpreter nearly all the time. A fork is
impossible: the caller may be a worker with threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from layerfarm.jobs.errors import RootfsError
from layerfarm.jobs.mtree.clock import Clock
from layerfarm.jobs.mtree.walk import Walk
from layerfarm.jobs.mtree.walkers import walk_tree

WORTH_IT = 30_000
"""Entries from which a process pays off: it takes some 80 ms to start, a walk 4 ms for 1,000 entries."""
_REFUSED = 3


@contextmanager
def walking(root: Path, walk_file: Path, clock: Clock, *, entries: int) -> Iterator[Callable[[], Walk | None]]:
    """Walk ``root`` into the new file ``walk_file``, as :func:`walk_tree` does, beside the caller.

    Yield a function that waits for the end and returns the walk, None if the tree cannot be read. For few ``entries``
    the function itself walks. Leaving without a call ends the walk.

    The function raises:
        RootfsError: the process failed.
        FileExistsError: something is at ``walk_file``.
    """
    if entries < WORTH_IT or not sys.executable:
        yield lambda: _walk(root, walk_file, clock)
        return
    # -P: no module is taken from the working directory.
    command = [sys.executable, "-P", "-m", __name__, str(root), str(walk_file), str(clock.now)]
    with subprocess.Popen(
        [*command, *map(str, clock.devices)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield lambda: _result(process, root)
        finally:
            process.kill()


def _result(process: subprocess.Popen[bytes], root: Path) -> Walk | None:
    out, _ = process.communicate()
    if process.returncode == _REFUSED:
        return None
    if process.returncode:
        raise RootfsError(f"the process that walks the tree ended with status {process.returncode}", where=root)
    return Walk(*json.loads(out))


def _walk(root: Path, walk_file: Path, clock: Clock) -> Walk | None:
    with walk_file.open("x+b", buffering=1 << 20) as out:
        try:
            return walk_tree(root, out, clock)
        except RootfsError:
            return None


def _main(root: str, walk_file: str, now: str, *devices: str) -> int:
    walk = _walk(Path(root), Path(walk_file), Clock(int(now), frozenset(map(int, devices))))
    if walk is None:
        return _REFUSED
    os.write(1, json.dumps(walk).encode())
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
