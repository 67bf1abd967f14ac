"""Blobs as files: written through an ingest file, verified while they are read (law 4, docs/architecture.md)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from layerfarm.jobs.errors import DigestMismatch, SizeMismatch, StoreError
from layerfarm.jobs.fs.mounts import filesystem_type
from layerfarm.jobs.store.atomic_file import (
    BLOBS,
    PRIVATE_DIRECTORY,
    create_file,
    explained,
    files_of,
    make_directory,
    rename_durably,
    write_all,
)
from layerfarm.jobs.store.descriptor import Descriptor
from layerfarm.jobs.store.leases import at_work, cover

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ALGORITHMS: Final = ("sha256", "sha512")
_BUFFER: Final = 1024 * 1024
_NETWORK: Final = ("nfs", "cifs", "smb3", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "9p", "afs", "ocfs2", "gfs2")
_LATE: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


# --- checking -------------------------------------------------------------------------------------


def hasher(digest: str) -> hashlib._Hash:
    """Return a hash object for the algorithm of ``digest``.

    Raises:
        StoreError: the algorithm is not supported.
    """
    algorithm = digest.partition(":")[0]
    if algorithm not in _ALGORITHMS:
        raise StoreError("digest algorithm is not supported", where=digest, hint="sha256 and sha512 are")
    return hashlib.new(algorithm)


def check_size(digest: str, expected: int, size: int) -> None:
    """Raise SizeMismatch unless a blob of ``size`` bytes has the expected size."""
    if size != expected:
        raise SizeMismatch(f"blob has {size} bytes, not {expected}", where=digest)


def check_hash(expected: str, found: hashlib._Hash) -> None:
    """Raise DigestMismatch unless the hash is the expected digest."""
    digest = f"{found.name}:{found.hexdigest()}"
    if digest != expected:
        raise DigestMismatch(f"blob has digest {digest}, not the expected one", where=expected)


def embedded_data(descriptor: Descriptor) -> bytes | None:
    """Return the content embedded in the descriptor, verified (descriptor.md "data"; umoci.md B2.8)."""
    if descriptor.data is None:
        return None
    try:
        content = base64.b64decode(descriptor.data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DigestMismatch("embedded data of the descriptor is not base64", where=descriptor.digest) from error
    check_size(descriptor.digest, descriptor.size, len(content))
    digest = hasher(descriptor.digest)
    digest.update(content)
    check_hash(descriptor.digest, digest)
    return content


# --- reading --------------------------------------------------------------------------------------


class VerifiedReader(io.BufferedReader):
    """An open blob. The read that reaches the end raises if size or digest are wrong.

    Leaving its ``with`` block without an error reads the rest, so that no part is used unverified.

    Raises (while reading):
        DigestMismatch, SizeMismatch: it is not the blob of the descriptor.
    """

    def __init__(self, fd: int, descriptor: Descriptor) -> None:
        super().__init__(_Checking(fd, descriptor), _BUFFER)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> Any:
        try:
            if kind is None and not self.closed:
                while self.read(_BUFFER):
                    pass
        finally:
            self.close()


class _Checking(io.RawIOBase):
    """Reads a blob file and checks its size and digest at the end."""

    def __init__(self, fd: int, descriptor: Descriptor) -> None:
        self._fd = fd
        self._descriptor = descriptor
        self._hash = hasher(descriptor.digest)
        self._left = descriptor.size

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        if not view.nbytes:
            return 0
        if not self._left:
            self._end()
            return 0
        count = os.readv(self._fd, [view[: self._left]])
        if not count:
            raise SizeMismatch(f"blob is {self._left} bytes too short", where=self._descriptor.digest)
        self._hash.update(view[:count])
        self._left -= count
        return count

    def _end(self) -> None:
        if os.read(self._fd, 1):
            raise SizeMismatch(f"blob is longer than {self._descriptor.size} bytes", where=self._descriptor.digest)
        check_hash(self._descriptor.digest, self._hash)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
            super().close()


def late_pauses(path: Path) -> tuple[float, ...]:
    """Return the seconds between attempts to open a file that another host may have created; none on local disks.

    An NFS client remembers for up to a minute that a name did not exist, unless mounted with
    ``lookupcache=positive`` (relayer.md 4.2, point 7).
    """
    try:
        return _LATE if filesystem_type(os.stat(path).st_dev).startswith(_NETWORK) else ()
    except OSError:
        return ()


# --- writing --------------------------------------------------------------------------------------


class Ingest:
    """A blob being written; a context manager. Left without :meth:`commit`, it leaves nothing behind."""

    def __init__(self, layout: Path, algorithm: str = "sha256") -> None:
        self._layout = layout
        self._hash = hashlib.new(algorithm)
        self.size = 0
        """Bytes written so far."""
        staging = layout / PRIVATE_DIRECTORY / "ingest"
        with explained("blob cannot be staged", staging):
            # The janitor keeps files named for a job that holds a lease.
            self._fd, self._path = create_file(staging, layout, at_work())

    def write(self, data: bytes | memoryview) -> int:
        """Append ``data``. Raises StoreError when the disk is full."""
        self.append(data)
        self.digest(data)
        return len(data)

    def append(self, data: bytes | memoryview) -> None:
        """Do half of :meth:`write`. The other half is :meth:`digest`, which another thread may do. Raises as write."""
        with explained("blob cannot be written", self._path):
            write_all(self._fd, data)
        self.size += len(data)

    def digest(self, data: bytes | memoryview) -> None:
        """Add ``data`` to the digest of the blob."""
        self._hash.update(data)

    def commit(self, expected: tuple[str, int] | None = None) -> tuple[str, int]:
        """Make the written bytes a blob of the layout, durably; return its digest and size in bytes.

        A blob that exists with the right size is kept and its mtime refreshed, as a sign of use to a garbage
        collector.

        Raises:
            DigestMismatch, SizeMismatch: it is not the ``expected`` (digest, size).
            StoreError: the file system reports an error.
        """
        if self._fd < 0:
            raise StoreError("blob is already committed or abandoned", where=self._path)
        if expected is not None:
            check_size(*expected, self.size)
            check_hash(expected[0], self._hash)
        digest = f"{self._hash.name}:{self._hash.hexdigest()}"
        cover(self._layout, digest)
        target = self._layout / BLOBS / self._hash.name / self._hash.hexdigest()
        with explained("blob cannot be stored", target):
            if not refresh(target, self.size):
                self._publish(target)
        self.abandon()
        return digest, self.size

    def _publish(self, target: Path) -> None:
        os.fsync(self._fd)
        if os.fstat(self._fd).st_size != self.size:
            raise StoreError("blob was changed by another process while it was written", where=self._path)
        make_directory(target.parent, self._layout)
        rename_durably(self._path, target, self._layout, unique=True)

    def abandon(self) -> None:
        """Remove the ingest file, if it still exists."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(FileNotFoundError):
                files_of(self._layout).unlink(self._path)

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.abandon()


def refresh(blob: Path | str, size: int) -> bool:
    """Mark the blob as just used; return False if it does not exist with this size.

    It is checked again after the mark: a garbage collector that moved it before saw the old time, one that moves it
    later sees the new one and restores it (:mod:`layerfarm.jobs.store.gc`). The blob of another user cannot be marked.
    It is protected by the lease of this thread's job, in which the caller has put it; without a job it counts as
    absent, so that the caller stores its own.
    """
    try:
        if os.stat(blob).st_size != size:
            return False
        try:
            os.utime(blob, follow_symlinks=False)  # a collector looks at the age of a link itself
        except PermissionError:
            return bool(at_work())
        return os.stat(blob).st_size == size
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
