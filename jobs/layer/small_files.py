"""Small files, written by threads while the next ones are read from the layer.

On a disk, creating a file waits for the journal or the network. Several threads wait at the same time, and Python's
lock is free meanwhile. In memory nothing waits, and handing files over costs more than it saves.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import Final, NamedTuple

from layerfarm.jobs.errors import RootfsError
from layerfarm.jobs.fs.mounts import filesystem_type
from layerfarm.jobs.layer.apply import explained
from layerfarm.jobs.layer.metadata import MetadataWriter
from layerfarm.jobs.layer.nodes import Directory, Metadata

CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_MEMORY: Final = frozenset(("tmpfs", "ramfs"))
_THREADS: Final = 4
_BATCH: Final = 32
"""Files that are handed over at once: a hand-over costs as much as writing a small file in memory."""
_WAITING: Final = 8
"""Batches that may wait; then the caller waits, so memory stays constant: a piece of the layer, 1 MiB, for each."""


class SmallFile(NamedTuple):
    """A file to be created."""

    node: Directory
    directory: int
    """Descriptor of ``node``, which stays open until the file is written."""
    base: bytes
    mode: int
    """Mode to create it with."""
    metadata: Metadata | None
    """Owner and mode to apply; None: it is created with them."""
    times: tuple[int, int]
    """atime and mtime in nanoseconds."""
    content: memoryview


class SmallFiles:
    """Creates files, in no particular order, in threads that the first one starts."""

    def __init__(self, metadata: MetadataWriter, threads: int) -> None:
        self._metadata = metadata
        self._count = threads
        self._batch: list[SmallFile] = []
        self._piece: object = None
        self._queue: queue.Queue[list[SmallFile] | None] = queue.Queue(_WAITING)
        self._threads: list[threading.Thread] = []
        self._error: BaseException | None = None
        self._pending = False
        self._stopped = False

    def put(self, file: SmallFile) -> None:
        """Queue a file; its name must be free.

        Raises:
            RootfsError: an earlier file could not be written.
        """
        if file.content and file.content.obj is not self._piece:
            # The files of a batch hold one piece of the layer in memory, not one each.
            if self._batch:
                self._hand_over()
            self._piece = file.content.obj
        self._pending = True
        self._batch.append(file)
        if len(self._batch) == _BATCH:
            self._hand_over()
        if self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Return when all files are written. Raises as :meth:`put`."""
        if not self._pending:
            return
        self._hand_over()
        self._queue.join()
        self._pending = False
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the threads; files that were not waited for may be missing."""
        self._batch = []
        self._pending = False
        self._stopped = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _hand_over(self) -> None:
        if not self._threads:
            self._threads = [threading.Thread(target=self._run, name="write", daemon=True) for _ in range(self._count)]
            for thread in self._threads:
                thread.start()
        self._queue.put(self._batch)
        self._batch = []

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None:
            try:
                for file in batch:
                    if self._error is None and not self._stopped:
                        self._write(file)
            except BaseException as error:  # kept for wait(): this thread has no caller
                self._error = error
            self._queue.task_done()

    def _write(self, file: SmallFile) -> None:
        node, directory, base, mode, metadata, times, content = file
        try:
            fd = os.open(base, CREATE, mode, dir_fd=directory)
            try:
                write(fd, content)
                if metadata is None:
                    os.utime(fd, ns=times)
                else:
                    self._metadata.apply_fd(fd, metadata)
            finally:
                os.close(fd)
        except OSError as error:
            raise explained(error, node.path(base)) from error
        except RootfsError as error:
            raise RootfsError(error.what, where=node.path(base), hint=error.hint) from error


def threads_for(fd: int) -> int:
    """Return the number of threads for a directory's file system; 0: files are best written at once."""
    try:
        return 0 if filesystem_type(os.fstat(fd).st_dev) in _IN_MEMORY else _THREADS
    except OSError:
        return 0


def write(fd: int, piece: memoryview) -> None:
    """Write all of ``piece``."""
    while piece:
        piece = piece[os.write(fd, piece) :]
