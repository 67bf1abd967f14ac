"""Bring a blob from one layout into another."""

from __future__ import annotations

from collections.abc import Callable

from layerfarm.jobs.store.descriptor import Descriptor
from layerfarm.jobs.store.layout import Layout

_CHUNK = 1 << 20


def copy_blob(source: Layout, target: Layout, descriptor: Descriptor, advanced: Callable[[int], None]) -> None:
    """Copy the blob unless ``target`` holds it; ``advanced`` is told the bytes as they are written.

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
