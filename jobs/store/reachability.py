"""Reachability of blobs, and the reasons why a blob is kept: the mark of a garbage collection.

Deliberately generous: everything in a manifest that looks like a descriptor is followed, also in formats that
layerfarm does not read (Docker's, artifacts). A blob too many costs space, one too few an image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError

from layerfarm.jobs.errors import BlobNotFound, MalformedDocument
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store.descriptor import (
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    SUBJECT,
    Descriptor,
    Index,
    name_of,
    subject_of,
)
from layerfarm.jobs.store.document import explain
from layerfarm.jobs.store.layout import Layout
from layerfarm.jobs.store.leases import Leases
from layerfarm.jobs.store.retention import Trash

INDEX_TYPES: Final = frozenset((MEDIA_TYPE_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"))
"""Manifests that name other manifests, which the layout need not hold."""
MANIFEST_TYPES: Final = INDEX_TYPES | {
    MEDIA_TYPE_MANIFEST,
    "application/vnd.oci.artifact.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
"""Media types of blobs that lead to others."""

_MOST_REFERENCES: Final = 100

Children = list[tuple[Descriptor, bool]]
"""The descriptors in a manifest, and for each whether it leads on."""


@dataclass
class ManifestCache:
    """Manifests that were already read; digests name them, so they stay valid."""

    leads_to: dict[str, Children] = field(default_factory=dict)
    """By digest. Excludes manifests that have a subject or absent children, which may appear or vanish."""
    absent: set[str] = field(default_factory=set)
    """Digests of manifests that indexes name but the layout did not hold."""

    def below(self, layout: Layout, descriptor: Descriptor) -> Children:
        """Return the children of a manifest. Raises StoreError: it is missing or corrupt.

        Children of an index that the layout does not hold (:meth:`~layerfarm.jobs.store.layout.Layout.lacks`) lead
        nowhere.
        """
        known = self.leads_to.get(descriptor.digest)
        if known is not None:
            return known
        document = _read(layout, descriptor)
        found = list(children(document, descriptor.digest, layout.has))
        absent: set[str] = set()
        if descriptor.media_type in INDEX_TYPES:
            absent = {child.digest for child, leads_on in found if leads_on and layout.lacks(child)}
            found = [(child, leads_on and child.digest not in absent) for child, leads_on in found]
            self.absent |= absent
        if "subject" not in document and not absent:
            self.leads_to[descriptor.digest] = found
        return found


def reachable(layout: Layout, roots: Iterable[Descriptor], cache: ManifestCache | None = None) -> set[str]:
    """Return the digests of the roots and of all that they lead to, through indexes, manifests and subjects.

    Each manifest is read and verified once; configs and layers are not read. The store need not hold a ``subject``
    (manifest.md) or a manifest of an index (image-layout.md); every other manifest must be there. ``cache`` is used
    and extended.

    Raises:
        StoreError: a manifest is missing or corrupt, or contains an invalid descriptor.
        LimitExceeded: a manifest is larger than any registry takes.
    """
    cache = cache or ManifestCache()
    found: set[str] = set()
    followed: set[str] = set()
    # An entry of index.json is a manifest, whatever its media type.
    pending = [(root, True) for root in roots]
    while pending:
        descriptor, leads_on = pending.pop()
        found.add(descriptor.digest)
        if leads_on and descriptor.digest not in followed:
            followed.add(descriptor.digest)
            pending += cache.below(layout, descriptor)
    return found


def children(
    document: dict[str, Any], where: str, is_held: Callable[[Descriptor], bool]
) -> Iterator[tuple[Descriptor, bool]]:
    """Return every descriptor in a manifest, and for each whether it leads on.

    Raises:
        MalformedDocument: an object with a digest is not a valid descriptor.
    """
    pending: list[tuple[str, Any]] = list(document.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, list):
            pending += [(name, item) for item in value]
        elif isinstance(value, dict):
            if "digest" in value and name != "annotations":
                try:
                    child = Descriptor.model_validate(value)
                except ValidationError as error:
                    raise MalformedDocument(f"not a valid descriptor, {explain(error)}", where=where) from error
                if name != "subject" or is_held(child):
                    yield child, name in ("manifests", "subject") or child.media_type in MANIFEST_TYPES
            else:
                pending += value.items()


def _read(layout: Layout, descriptor: Descriptor) -> dict[str, Any]:
    """Return a manifest as a JSON object; empty for an index entry that is not a manifest (a file, an archive)."""
    known = descriptor.media_type in MANIFEST_TYPES
    if not known and descriptor.size > limits().document_bytes and layout.has(descriptor):
        return {}
    raw = layout.read(descriptor)
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        if not known:
            return {}
        raise MalformedDocument("manifest is not a JSON document", where=descriptor.digest) from error
    if isinstance(value, dict):
        return value
    if known:
        raise MalformedDocument("manifest is not a JSON object", where=descriptor.digest)
    return {}


# --- dangling referrers ---------------------------------------------------------------------------


def without_dangling(
    layout: Layout, entries: Iterable[Descriptor], cache: ManifestCache | None = None
) -> list[Descriptor]:
    """Return the entries without dangling referrers: those whose subject no other entry leads to.

    Raises:
        StoreError: a manifest is missing or corrupt.
    """
    kept: list[Descriptor] = []
    waiting: list[Descriptor] = []
    for entry in entries:
        (kept if subject_of(entry) is None else waiting).append(entry)
    if not waiting:
        return kept
    reached = reachable(layout, kept, cache)
    while True:
        # A referrer may be the subject of another one.
        alive = [entry for entry in waiting if subject_of(entry) in reached]
        if not alive:
            return kept
        kept += alive
        waiting = [entry for entry in waiting if subject_of(entry) not in reached]
        reached |= reachable(layout, alive, cache)


def drop_dangling(layout: Layout, oldest: float) -> None:
    """Remove dangling referrers from index.json if their manifest was last used before ``oldest``.

    ``oldest``: seconds on the store's clock; a proof is entered before its image is tagged.

    Raises:
        StoreError: a manifest is missing or corrupt; then nothing is removed.
    """
    if not layout.index_text().mentions(SUBJECT):
        return

    def is_young(entry: Descriptor) -> bool:
        try:
            return layout.blob_path(entry.digest).stat().st_mtime > oldest
        except FileNotFoundError:
            return False

    def change(index: Index) -> Index:
        alive = {entry.digest for entry in without_dangling(layout, index.manifests)}
        kept = [entry for entry in index.manifests if entry.digest in alive or is_young(entry)]
        return index.model_copy(update={"manifests": kept})

    layout.update_index(change)


# --- why one blob is kept -------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """An entry of index.json that leads to the blob."""

    tag: str | None
    """None: the entry has no tag, as that of a proof or a signature."""
    via: tuple[str, ...]
    """Digests of the manifests between the entry and the blob; empty: the entry names the blob itself."""
    subject: str | None = None
    """Digest of the image that the entry refers to, and with which it is removed."""


@dataclass(frozen=True)
class Reasons:
    """Everything that keeps a blob, and its age."""

    size: int
    """Bytes."""
    references: list[Reference]
    more: int
    """Number of references beyond those listed."""
    leases: dict[str, float]
    """By job, the seconds until its lease of the blob expires unless touched."""
    age: float
    """Seconds since the blob was stored or used."""
    trashed: float | None = None
    """Seconds since it was moved into the trash."""


def explain_blob(layout: Layout, digest: str) -> Reasons:
    """Explain why a garbage collection keeps the blob.

    Raises:
        BlobNotFound: the layout does not hold it, not even in its trash.
        StoreError: it is not a digest, or a manifest is missing or corrupt.
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
    leases = {lease.holder: lease.expires - now for lease in Leases(layout.path).live(now) if digest in lease.digests}
    age = max(0.0, now - about.st_mtime)
    return Reasons(
        about.st_size, references[:_MOST_REFERENCES], len(references[_MOST_REFERENCES:]), leases, age, trashed
    )


def _references(layout: Layout, digest: str) -> Iterator[Reference]:
    cache = ManifestCache()
    for entry in without_dangling(layout, layout.index().manifests, cache):
        if digest in reachable(layout, [entry], cache):
            yield Reference(name_of(entry), _shortest_path(layout, entry, digest, cache), subject_of(entry))


def _shortest_path(layout: Layout, entry: Descriptor, digest: str, cache: ManifestCache) -> tuple[str, ...]:
    """Return the fewest manifests that lead from the entry to the blob."""
    paths: dict[str, tuple[str, ...]] = {entry.digest: ()}
    pending = [(entry, True)]
    while digest not in paths:
        descriptor, leads_on = pending.pop(0)
        if leads_on:
            for child, further in cache.below(layout, descriptor):
                if child.digest not in paths:
                    paths[child.digest] = (*paths[descriptor.digest], descriptor.digest)
                    pending.append((child, further))
    return paths[digest]
