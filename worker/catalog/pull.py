"""Bring images into the catalog's store and out of it; each blob is fetched, and lies there, once.

skopeo writes into a layout of its own beside the store, in which what the store holds already is linked; it
fetches the rest. Then the new blobs are verified and moved over, and the tag is given: so that nobody but
``layerfarm.jobs.store`` writes into the store, and two pulls cannot lose each other's tags (skopeo #1018).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from layerfarm.jobs.errors import MalformedDocument, TagNotFound
from layerfarm.jobs.relayer.referrer_copy import Carrier
from layerfarm.jobs.store import PRIVATE_DIRECTORY, Descriptor, Layout, parse_document
from layerfarm.jobs.store.atomic_file import make_directory
from layerfarm.jobs.store.document import Document
from layerfarm.jobs.store.reachability import INDEX_TYPES, MANIFEST_TYPES, children
from layerfarm.jobs.store.transfer import copy_blob, import_blob
from layerfarm.worker.catalog.registry import Skopeo

_TAG: Final = "image"


@dataclass(frozen=True)
class Offer:
    """What an origin holds under a reference right now."""

    digest: str
    """Of its manifest or index as the origin has it; Docker's formats get another one when they become OCI's."""
    manifests: tuple[str, ...]
    """Digests of that and of all manifests below it."""
    blobs: tuple[Descriptor, ...]
    """Everything that it leads to but the manifests themselves."""


def look(skopeo: Skopeo, reference: str) -> Offer:
    """What ``docker://HOST/REPOSITORY:TAG`` names.

    Raises:
        RegistryError, RegistryBusy: as :class:`~layerfarm.worker.catalog.registry.Skopeo`.
        MalformedDocument: it is no manifest.
    """
    raw = skopeo.raw_manifest(reference)
    top = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    manifests = {top: None}
    blobs: dict[str, Descriptor] = {}
    pending = [raw]
    repository = reference.rpartition(":")[0]
    while pending:
        document = _parsed(pending.pop(), reference)
        for child, leads_on in children(document, reference, lambda _: False):
            if leads_on:
                manifests[child.digest] = None
                pending.append(skopeo.raw_manifest(f"{repository}@{child.digest}"))
            else:
                blobs[child.digest] = child
    return Offer(top, tuple(manifests), tuple(blobs.values()))


def look_in(layout: Layout, tag: str) -> Offer:
    """What a tag of a layout names.

    Raises:
        TagNotFound: the layout has no such tag.
        StoreError: a manifest is not whole.
    """
    top = named(layout, tag)
    below = [blob.digest for blob in reachable_blobs(layout, top) if blob.media_type in MANIFEST_TYPES]
    return Offer(top.digest, tuple(below), ())


def pull(skopeo: Skopeo, reference: str, offer: Offer, store: Layout, tag: str) -> Descriptor:
    """Bring the image into ``store`` as ``tag``; returns what the tag names then.

    Raises:
        RegistryError, RegistryBusy: the registry does not give it.
        StoreError: it is not whole, or the store cannot be written; the tag is as before.
    """
    with staging_beside(store) as staging:
        for blob in offer.blobs:
            _link(store, staging, blob)
        skopeo.pull(reference, staging.path, _TAG)
        (top,) = staging.find(_TAG)
        top = top.model_copy(update={"annotations": None})
        blobs = reachable_blobs(staging, top)
        for blob in blobs:
            import_blob(store, staging.blob_path(blob.digest), blob)
        store.tag(tag, top, needs=blobs)
    return top


def copy_in(source: Layout, tag: str, store: Layout, new_tag: str) -> Descriptor:
    """Bring an image of another layout into ``store``, with all that speaks of it; returns what the tag names then.

    Raises:
        TagNotFound: the layout has no such tag.
        StoreError: the image, or what speaks of it, is not whole.
    """
    top = named(source, tag)
    blobs = reachable_blobs(source, top)
    for blob in blobs:
        copy_blob(source, store, blob, lambda _: None)
    carrier = Carrier(source, store, same_tree=True, choice="carry")
    for blob in blobs:
        if blob.media_type in MANIFEST_TYPES:
            carrier.referrers(blob, blob)
    store.tag(new_tag, top, needs=blobs)
    return top


def push(skopeo: Skopeo, store: Layout, descriptor: Descriptor, reference: str, *, exact: bool = True) -> None:
    """Copy what the descriptor leads to from ``store`` to a registry, digests unchanged if ``exact``.

    Raises:
        RegistryError, RegistryBusy: the registry does not take it.
    """
    with staging_beside(store) as staging:
        staging.tag(_TAG, descriptor.model_copy(update={"annotations": None}))
        skopeo.push(staging.path, _TAG, store.path / "blobs", reference, exact=exact)


def named(layout: Layout, tag: str) -> Descriptor:
    """The one thing that the tag names, without what the index says of it."""
    found = layout.find(tag)
    if not found:
        raise TagNotFound(f"tag {tag!r} not found", where=layout.path)
    return found[0].model_copy(update={"annotations": None})


def reachable_blobs(layout: Layout, top: Descriptor) -> list[Descriptor]:
    """All that a manifest or index leads to, itself last; each blob after those that it names.

    Without the manifests of an index that the layout does not hold.

    Raises:
        StoreError: a manifest is missing, corrupt, or names what is no descriptor.
    """
    found: dict[str, Descriptor] = {}

    def visit(descriptor: Descriptor) -> None:
        if descriptor.digest in found:
            return
        if descriptor.media_type in MANIFEST_TYPES:
            document = _parsed(layout.read(descriptor), descriptor.digest)
            for child, leads_on in children(document, descriptor.digest, layout.has):
                if not leads_on:
                    found.setdefault(child.digest, child)
                elif descriptor.media_type not in INDEX_TYPES or not layout.lacks(child):
                    visit(child)
        found[descriptor.digest] = descriptor

    visit(top)
    return list(found.values())


@contextmanager
def staging_beside(store: Layout) -> Iterator[Layout]:
    """An empty layout on the store's filesystem, among the things that the janitor knows."""
    path = store.path / PRIVATE_DIRECTORY / "work" / f"transfer-{os.getpid()}-{os.urandom(6).hex()}"
    make_directory(path.parent, store.path)
    layout = Layout.create(path)
    try:
        yield layout
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Any(Document):
    """A JSON object of whatever kind."""


def _parsed(raw: bytes, where: str) -> dict[str, Any]:
    document = parse_document(_Any, raw, where).model_dump(by_alias=True)
    if "schemaVersion" not in document or document.get("schemaVersion") == 1:
        raise MalformedDocument("not an image manifest that layerfarm reads (Docker's schema 1?)", where=where)
    return document


def _link(store: Layout, staging: Layout, blob: Descriptor) -> None:
    """What the store holds need not be fetched."""
    if store.claim(blob):
        target = staging.blob_path(blob.digest)
        Path(target.parent).mkdir(parents=True, exist_ok=True)
        try:
            os.link(store.blob_path(blob.digest), target)
        except OSError:
            # Gone a moment ago, or a filesystem without links: then it is fetched again.
            return
