"""Which blobs of a layout something still leads to: the mark of a garbage collection.

Deliberately generous: whatever in a manifest looks like a descriptor is followed, of formats that layerfarm
does not read (Docker's, artifacts) too. A blob too many costs space, one too few an image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from layerfarm.jobs.errors import MalformedDocument
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store.descriptor import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor
from layerfarm.jobs.store.document import explain
from layerfarm.jobs.store.layout import Layout

MANIFEST_TYPES = frozenset(
    (
        MEDIA_TYPE_INDEX,
        MEDIA_TYPE_MANIFEST,
        "application/vnd.oci.artifact.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
"""Blobs that lead to others."""


INDEX_TYPES = frozenset((MEDIA_TYPE_INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"))
"""Manifests that name others, of which the layout need not hold all."""


@dataclass
class Read:
    """What was read of manifests already: they are named by their content, so it stays true."""

    leads_to: dict[str, list[tuple[Descriptor, bool]]] = field(default_factory=dict)
    """For each manifest whose children are all there and that has no subject, which may come or go, what it names."""
    absent: set[str] = field(default_factory=set)
    """Digests of manifests that indexes name and the layout did not hold."""

    def below(self, layout: Layout, descriptor: Descriptor) -> list[tuple[Descriptor, bool]]:
        """What the manifest names, and whether that leads on. Raises StoreError: it is missing or corrupt.

        An index may name what the layout does not hold (:meth:`~layerfarm.jobs.store.layout.Layout.lacks`): that
        leads nowhere.
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


def reachable(layout: Layout, roots: Iterable[Descriptor], known: Read | None = None) -> set[str]:
    """The digests of the roots and of all that they lead to, through indexes, manifests and subjects.

    Each manifest is read, and verified, once; configs and layers are not read. A ``subject`` that the store
    does not hold is nothing to follow (manifest.md allows it), nor is a manifest of an index (image-layout.md);
    every other manifest must be there.

    ``known``: what an earlier call read, and this one adds to.

    Raises:
        StoreError: a manifest is missing or corrupt, or leads to something that is no descriptor.
        LimitExceeded: a manifest is larger than any registry takes.
    """
    known = known or Read()
    found: set[str] = set()
    followed: set[str] = set()
    # What index.json names is a manifest, whatever it calls itself.
    pending = [(root, True) for root in roots]
    while pending:
        descriptor, leads_on = pending.pop()
        found.add(descriptor.digest)
        if leads_on and descriptor.digest not in followed:
            followed.add(descriptor.digest)
            pending += known.below(layout, descriptor)
    return found


def children(
    document: dict[str, Any], where: str, is_held: Callable[[Descriptor], bool]
) -> Iterator[tuple[Descriptor, bool]]:
    """Every descriptor in a manifest, and whether it leads on.

    Raises:
        MalformedDocument: something has a digest and is no descriptor.
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
    """A manifest as a JSON object; an entry of an index that is none (a file, an archive) leads nowhere."""
    known = descriptor.media_type in MANIFEST_TYPES
    if not known and descriptor.size > limits().document_bytes and layout.has(descriptor):
        return {}
    raw = layout.read(descriptor)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        if not known:
            return {}
        raise MalformedDocument("manifest is not a JSON document", where=descriptor.digest) from error
    if isinstance(value, dict):
        return value
    if known:
        raise MalformedDocument("manifest is not a JSON object", where=descriptor.digest)
    return {}
