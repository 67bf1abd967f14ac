"""How bytes become a blob: ingest file, fsync, check, rename, fsync (DESIGN law 4)."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from layerfarm.jobs.errors import DigestMismatch, SizeMismatch, StoreError
from layerfarm.jobs.store.durable import create_file, explained, files_of, make_directory, rename_durably, write_all
from layerfarm.jobs.store.leases import at_work, cover


class Ingest:
    """A blob being written; a context manager. Left without :meth:`commit`, it leaves nothing behind."""

    def __init__(self, layout: Path, staging: Path, algorithm: str = "sha256") -> None:
        self._layout = layout
        self._hash = hashlib.new(algorithm)
        self.size = 0
        """Bytes written so far."""
        with explained("blob cannot be staged", staging):
            make_directory(staging, layout)
            # By its name the janitor sees whose it is, should it stay untouched for long.
            self._fd, self._path = create_file(staging, layout, at_work())

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data``. Raises StoreError when the disk is full."""
        with explained("blob cannot be written", self._path):
            write_all(self._fd, data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def commit(self, expected: tuple[str, int] | None = None) -> tuple[str, int]:
        """Make what was written a blob of the layout, durably; returns its digest and size in bytes.

        A blob that is there already, with the right size, is kept and its mtime refreshed, so that a
        garbage collector with a grace period sees that it is in use.

        Raises:
            DigestMismatch, SizeMismatch: it is not the ``expected`` (digest, size).
            StoreError: the filesystem refuses.
        """
        if self._fd < 0:
            raise StoreError("blob is committed or given up already", where=self._path)
        digest = f"{self._hash.name}:{self._hash.hexdigest()}"
        if expected is not None:
            if expected[1] != self.size:
                raise SizeMismatch(f"blob has {self.size} bytes, not {expected[1]}", where=expected[0])
            if expected[0] != digest:
                raise DigestMismatch(f"blob has digest {digest}, not the promised one", where=expected[0])
        cover(self._layout, digest)
        target = self._layout / "blobs" / self._hash.name / self._hash.hexdigest()
        with explained("blob cannot be stored", target):
            if not refresh(target, self.size):
                self._publish(target)
        self.abandon()
        return digest, self.size

    def _publish(self, target: Path) -> None:
        os.fsync(self._fd)
        if os.fstat(self._fd).st_size != self.size:
            raise StoreError("blob was changed by somebody while it was written", where=self._path)
        make_directory(target.parent, self._layout)
        rename_durably(self._path, target, self._layout)

    def abandon(self) -> None:
        """Remove the ingest file, if it is still one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(FileNotFoundError):
                files_of(self._layout).unlink(self._path)

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.abandon()


def refresh(blob: Path, size: int) -> bool:
    """True if the blob is there with this size and is now marked as just used.

    It is looked for once more after the mark: a garbage collector that took it away before saw the old
    time, one that takes it away afterwards sees the new one and puts it back (:mod:`layerfarm.jobs.store.gc`).
    """
    try:
        if blob.stat().st_size != size:
            return False
        os.utime(blob, follow_symlinks=False)  # the age of a link is its own to a garbage collector
        return blob.stat().st_size == size
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
