"""Add blobs to a layout: copied from another one, or imported from a file beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from layerfarm.jobs.fs import umask
from layerfarm.jobs.store.atomic_file import explained, files_of, give_to_owner, make_directory, rename_durably
from layerfarm.jobs.store.blob import check_hash, check_size, hasher
from layerfarm.jobs.store.descriptor import Descriptor
from layerfarm.jobs.store.layout import Layout

_CHUNK: Final = 1 << 20


def copy_blob(
    source: Layout, target: Layout, descriptor: Descriptor, advanced: Callable[[int], None] = lambda nbytes: None
) -> None:
    """Copy the blob unless ``target`` holds it; ``advanced`` is called with the bytes as they are written.

    Raises:
        BlobNotFound, DigestMismatch, SizeMismatch: the source is incomplete or corrupt.
        StoreError: the target cannot be written.
    """
    if target.claim(descriptor):
        return
    with source.open_blob(descriptor) as stream, target.ingest() as blob:
        while chunk := stream.read(_CHUNK):
            advanced(blob.write(chunk))
        blob.commit((descriptor.digest, descriptor.size))


def import_blob(layout: Layout, path: Path, descriptor: Descriptor) -> bool:
    """Move the file at ``path``, in the layout's private directory, into the layout as the blob ``descriptor``.

    Its bytes are verified first; no process may write to it any more. If the layout holds the blob, the file is removed
    unread. Returns True if the layout got a new blob.

    Raises:
        DigestMismatch, SizeMismatch: it is not that blob; the file stays where it is.
        StoreError: it does not exist, or cannot be moved.
        UnsafePath: it is not a regular file.
    """
    if layout.claim(descriptor):
        path.unlink(missing_ok=True)
        return False
    target = layout.blob_path(descriptor.digest)
    with explained("blob cannot be imported", path):
        fd = files_of(layout.path).open(path)
        try:
            check_size(descriptor.digest, descriptor.size, os.fstat(fd).st_size)
            digest = hasher(descriptor.digest)
            while chunk := os.read(fd, _CHUNK):
                digest.update(chunk)
            check_hash(descriptor.digest, digest)
            os.fchmod(fd, 0o666 & ~_umask())
            give_to_owner(fd, layout.path)
            os.fsync(fd)
        finally:
            os.close(fd)
        make_directory(target.parent, layout.path)
        rename_durably(path, target, layout.path, unique=True)
    return True


def _umask() -> int:
    known = umask()
    if known is None:
        known = os.umask(0o077)
        os.umask(known)
    return known
