"""An ext4 with a journal in a file, mounted through a loop device: a file system as users have it, beside tmpfs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ADMIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextmanager
def ext4(directory: Path, size: int) -> Iterator[Path]:
    """Mount a new ext4 of ``size`` bytes, whose file is in ``directory``; unmount and remove it at the end.

    Raises:
        RuntimeError: this machine or user may not mount; the message holds the command's.
    """
    image, mounted = directory / "ext4.img", directory / "ext4"
    mounted.mkdir(exist_ok=True)
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    try:
        _do("mkfs.ext4", "-q", "-F", str(image))
        _do("mount", "-o", "loop", str(image), str(mounted))
        try:
            yield mounted
        finally:
            _do("umount", str(mounted))
    finally:
        image.unlink()
        mounted.rmdir()


def _do(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": _ADMIN})
    except OSError as error:
        raise RuntimeError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
