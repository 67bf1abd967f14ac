"""Take over a blob that another program wrote beside the layout, without copying its bytes."""

from __future__ import annotations

import os
from pathlib import Path

from layerfarm.jobs.errors import DigestMismatch, SizeMismatch
from layerfarm.jobs.store.descriptor import Descriptor
from layerfarm.jobs.store.durable import explained, files_of, give_to_owner, make_directory, rename_durably
from layerfarm.jobs.store.layout import Layout
from layerfarm.jobs.store.verify import hasher

_CHUNK = 1 << 20


def adopt_blob(layout: Layout, path: Path, descriptor: Descriptor) -> bool:
    """Move the file at ``path``, in the layout's private directory, into the layout as the blob ``descriptor``.

    Its bytes are read and verified first. Nobody may write to it any more. If the layout holds the blob, the
    file is removed and its content not looked at. Returns whether the layout got a new blob.

    Raises:
        DigestMismatch, SizeMismatch: it is not the promised blob; the file stays where it is.
        StoreError: it is not there, or cannot be moved.
        UnsafePath: it is not a regular file.
    """
    if layout.claim(descriptor):
        path.unlink(missing_ok=True)
        return False
    target = layout.blob_path(descriptor.digest)
    with explained("blob cannot be taken over", path):
        fd = files_of(layout.path).open(path)
        try:
            _verify(fd, descriptor)
            os.fchmod(fd, 0o666 & ~_umask())
            give_to_owner(fd, layout.path)
            os.fsync(fd)
        finally:
            os.close(fd)
        make_directory(target.parent, layout.path)
        rename_durably(path, target, layout.path)
    return True


def _verify(fd: int, descriptor: Descriptor) -> None:
    found = os.fstat(fd)
    if found.st_size != descriptor.size:
        raise SizeMismatch(f"blob has {found.st_size} bytes, not {descriptor.size}", where=descriptor.digest)
    digest = hasher(descriptor.digest)
    while chunk := os.read(fd, _CHUNK):
        digest.update(chunk)
    if digest.hexdigest() != descriptor.digest.partition(":")[2]:
        raise DigestMismatch("blob does not have the promised digest", where=descriptor.digest)


def _umask() -> int:
    """This process's umask; the only way to read it without setting it (proc(5))."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o022
