"""Check whether a filesystem can hold a shared layout: locks, renames, durability, free space.

The checks use a small file in a separate directory below ``.layerfarm``; blobs and index are not touched.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerfarm.jobs.store.atomic_file import BLOBS, PRIVATE_DIRECTORY, make_directory, new_file
from layerfarm.jobs.store.locks import exclusive

_RENAMES: Final = 200
_SIZE: Final = 64
"""Bytes of the probe file."""
_TRY_LOCK: Final = (
    "import fcntl, sys\n"
    "try: fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    "except (BlockingIOError, PermissionError): sys.exit(3)\n"  # EAGAIN or EACCES, as fcntl(2) allows
)


@dataclass(frozen=True)
class Room:
    """Free space for this user, and the total, in bytes and inodes."""

    bytes: int
    bytes_of: int
    inodes: int
    inodes_of: int
    """0: the filesystem does not count inodes."""


@contextmanager
def probe_file(store: Path) -> Iterator[Path]:
    """Yield a file of ``_SIZE`` random bytes in the store; it is removed afterwards, with its directories.

    ``store``: a layout, or a directory for layouts.

    Raises:
        OSError: the store cannot be written, or does not exist.
    """
    directory = store / PRIVATE_DIRECTORY / "doctor"
    is_layout = (store / BLOBS).is_dir()
    if is_layout:
        make_directory(directory, store)
    else:
        for path in (directory.parent, directory):
            path.mkdir(exist_ok=True)
    try:
        path = new_file(directory, store, os.urandom(_SIZE))
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
    finally:
        with suppress(OSError):
            directory.rmdir()
            if not is_layout:
                directory.parent.rmdir()


def locks_exclude(path: Path) -> bool:
    """Return True if a held lock excludes a second process, and a released one does not."""
    with exclusive(path, path.parent):
        kept_out = _second_process(path) == 3
    return kept_out and _second_process(path) == 0


def _second_process(path: Path) -> int:
    return subprocess.run([sys.executable, "-I", "-c", _TRY_LOCK, path], check=False, capture_output=True).returncode


def rename_fault(path: Path) -> str:
    """Return what a reader saw instead of a whole file while ``path`` was replaced repeatedly; empty: nothing."""
    faults: list[str] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                content = path.read_bytes()
            except OSError as error:
                # ESTALE: a file server's, and readers open the path again.
                if error.errno != errno.ESTALE:
                    faults.append(str(error.strerror))
            else:
                if len(content) != _SIZE or len(set(content)) != 1:
                    faults.append("an incomplete file")

    path.write_bytes(b"a" * _SIZE)
    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(_RENAMES):
            other = path.with_suffix(".new")
            other.write_bytes((b"a", b"b")[number % 2] * _SIZE)
            other.rename(path)
    finally:
        over.set()
        reader.join()
    return faults[0] if faults else ""


def sync_seconds(path: Path) -> float:
    """Return the time that it takes to make a file and its directory durable.

    Raises:
        OSError: one of them cannot be synced.
    """
    begun = time.monotonic()
    with path.open("r+b") as file:
        file.write(b"durable")
        file.flush()
        os.fsync(file.fileno())
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return time.monotonic() - begun


def clock_offset(path: Path) -> float:
    """Return the seconds by which the store's clock is ahead of this machine's."""
    os.utime(path)
    return path.stat().st_mtime - time.time()


def room(store: Path) -> Room:
    found = os.statvfs(store)
    return Room(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, found.f_favail, found.f_files)
