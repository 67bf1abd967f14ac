"""Why a blob is kept: what a garbage collection goes by, told of one blob."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from layerfarm.jobs.errors import BlobNotFound
from layerfarm.jobs.store.descriptor import Descriptor
from layerfarm.jobs.store.layout import Layout
from layerfarm.jobs.store.leases import Leases
from layerfarm.jobs.store.orphans import living, subject_of
from layerfarm.jobs.store.reach import Read, reachable
from layerfarm.jobs.store.refs import name_of
from layerfarm.jobs.store.trash import Trash

MOST: Final = 100
"""Tags that are told."""


@dataclass(frozen=True)
class Reference:
    """An entry of the index that leads to the blob."""

    tag: str | None
    """None: it has none, as the proof or the signature of an image."""
    via: tuple[str, ...]
    """Digests of the manifests from the entry to the blob, without it; empty: the entry names the blob itself."""
    subject: str | None = None
    """Where the entry lives as long as another image: the digest of that."""


@dataclass(frozen=True)
class Reasons:
    """All that keeps a blob, and how old it is."""

    size: int
    """Bytes."""
    references: list[Reference]
    more: int
    """References beyond those that are told."""
    leases: dict[str, float]
    """The jobs that hold it, each with the seconds for which its lease holds unless it is touched."""
    age: float
    """Seconds since the blob was stored or used."""
    trashed: float | None = None
    """Seconds since it lies in the trash."""


def reasons(layout: Layout, digest: str) -> Reasons:
    """What keeps the blob.

    Raises:
        BlobNotFound: the layout does not hold it, not even in its trash.
        StoreError: it is no digest, or a manifest is missing or corrupt.
    """
    path, trashed = layout.blob_path(digest), None
    now = layout.now()
    if not path.is_file():
        found = next((blob for blob in Trash(layout.path).blobs() if blob.digest == digest), None)
        if found is None:
            raise BlobNotFound("store does not hold the blob", where=digest)
        path, trashed = found.path, max(0.0, now - found.since)
    about = path.stat()
    references = list(_references(layout, digest))
    held = {lease.holder: lease.expires - now for lease in Leases(layout.path).live(now) if digest in lease.digests}
    age = max(0.0, now - about.st_mtime)
    return Reasons(about.st_size, references[:MOST], len(references[MOST:]), held, age, trashed)


def _references(layout: Layout, digest: str) -> Iterator[Reference]:
    """The entries that lead to the blob, each by one of the ways that do."""
    read = Read()
    entries = living(layout, layout.index().manifests, read)
    for entry in entries:
        if digest in reachable(layout, [entry], read):
            yield Reference(name_of(entry), _way(layout, entry, digest, read), subject_of(entry))


def _way(layout: Layout, entry: Descriptor, digest: str, read: Read) -> tuple[str, ...]:
    """The manifests from the entry to the blob, fewest first."""
    ways: dict[str, tuple[str, ...]] = {entry.digest: ()}
    pending = [(entry, True)]
    while digest not in ways:
        descriptor, leads_on = pending.pop(0)
        if leads_on:
            for child, further in read.below(layout, descriptor):
                if child.digest not in ways:
                    ways[child.digest] = (*ways[descriptor.digest], descriptor.digest)
                    pending.append((child, further))
    return ways[digest]
