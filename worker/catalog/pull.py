"""Copy images and their referrers between registries, layouts and the catalog's store; each blob is fetched once.

skopeo writes into a layout of its own beside the store, in which the blobs that the store holds are linked, and fetches
the rest. Then the new blobs are verified and moved, and the tag is set: only ``layerfarm.jobs.store`` writes into the
store, and two pulls cannot lose each other's tags (skopeo #1018).

skopeo has no referrers API. So referrers in a registry are looked up where clients put them for registries without
that API: behind the tag ``sha256-HEX`` (distribution-spec "Referrers Tag Schema"), and behind such tags with a suffix,
like cosign's.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import (
    DigestMismatch,
    LayerfarmError,
    MalformedDocument,
    NotInRegistry,
    RegistryBusy,
)
from layerfarm.jobs.relayer.referrers import Carrier, attach, fallback_tag, names_image, read_artifact, tags_beside
from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, PRIVATE_DIRECTORY, Descriptor, Index, Layout, parse_document
from layerfarm.jobs.store.atomic_file import make_directory
from layerfarm.jobs.store.reachability import INDEX_TYPES, MANIFEST_TYPES, children
from layerfarm.jobs.store.transfer import copy_blob, import_blob
from layerfarm.worker.catalog.offers import Offer, find, look_at, parsed, tagged
from layerfarm.worker.catalog.places import repository_in
from layerfarm.worker.catalog.registry import ImageReader, Skopeo, digest_of

_TAG: Final = "image"


def pull(skopeo: Skopeo, reference: str, offer: Offer, store: Layout, tag: str, *, exact: bool = True) -> Descriptor:
    """Pull the image into ``store`` as ``tag``; return its descriptor.

    ``exact``: every byte stays. Otherwise Docker's formats are converted to OCI's, which changes their digests.

    Raises:
        RegistryError, RegistryBusy: the registry does not deliver it.
        StoreError: it is incomplete, or the store cannot be written; the tag is unchanged.
    """
    repository = repository_in(reference)
    with staging_beside(store) as staging:
        for blob in offer.blobs:
            link_blob(store, staging, blob)
        if exact or not offer.is_docker or offer.full:
            top, needs = offer.top, _unchanged(skopeo, repository, offer, staging, store)
            if offer.is_docker and not exact:
                # skopeo cannot select several platforms.
                return convert_in(skopeo, store, offer, store, tag)
        else:
            skopeo.pull(f"{repository}@{offer.digest}", staging.path, _TAG)
            top = tagged(staging, _TAG)
            needs = _imported(staging, top, store)
        store.tag(tag, top, needs=needs)
    return top


def _unchanged(skopeo: Skopeo, repository: str, offer: Offer, staging: Layout, store: Layout) -> list[Descriptor]:
    """Fetch the blobs of ``offer``, and write its manifests beside them into ``store``; returns all.

    skopeo converts what it writes into a layout to OCI's formats. Layers stay the same, but manifests and
    configurations of Docker's formats do not: these are requested again.
    """
    fetch_blobs(skopeo, repository, offer, staging)
    for blob in offer.blobs:
        if not staging.lacks(blob):
            import_blob(store, staging.blob_path(blob.digest), blob)
    for each in reversed(offer.manifests):
        if each.config is not None and not store.claim(each.config):
            _put(store, each.config, skopeo.raw_config(f"{repository}@{each.descriptor.digest}", each.config.digest))
        _put(store, each.descriptor, each.raw)
    return [*offer.blobs, *(each.descriptor for each in offer.manifests)]


def fetch_blobs(skopeo: Skopeo, repository: str, offer: Offer, staging: Layout) -> None:
    """Fetch into ``staging`` the blobs of an offer that it does not hold, image by image.

    skopeo refuses an index in an index. The configuration of an image in Docker's formats comes in OCI's.

    Raises:
        RegistryError, RegistryBusy: the registry does not serve them.
    """
    for each in offer.leaves:
        if any(staging.lacks(blob) for blob in each.blobs):
            skopeo.pull(f"{repository}@{each.descriptor.digest}", staging.path, _TAG)


def _put(store: Layout, descriptor: Descriptor, content: bytes) -> None:
    with store.ingest() as blob:
        blob.write(content)
        blob.commit((descriptor.digest, descriptor.size))


def _imported(staging: Layout, top: Descriptor, store: Layout) -> list[Descriptor]:
    """Move everything that ``top`` leads to into ``store``; return it."""
    blobs = reachable_blobs(staging, top)
    for blob in blobs:
        import_blob(store, staging.blob_path(blob.digest), blob)
    return blobs


def copy_in(source: Layout, name: str, store: Layout, new_tag: str) -> Descriptor:
    """Copy an image of another layout into ``store``, with its referrers, byte for byte; return its descriptor.

    ``name``: as in :func:`~layerfarm.worker.catalog.offers.names_in`.

    Raises:
        TagNotFound, AmbiguousReference: the layout has no such image, or several.
        StoreError: the image, or a referrer, is incomplete.
    """
    top = find(source, name)
    return _copied(source, top, reachable_blobs(source, top), store, new_tag)


def copy_platforms(source: Layout, offer: Offer, store: Layout, new_tag: str) -> Descriptor:
    """Do as :func:`copy_in` with the offer of an image, whose indexes may name fewer platforms than in ``source``."""
    manifests = [each.descriptor for each in reversed(offer.manifests)]
    for each in offer.manifests:
        if not source.has(each.descriptor):
            _put(store, each.descriptor, each.raw)
    return _copied(source, offer.top, [*offer.blobs, *manifests], store, new_tag)


def _copied(source: Layout, top: Descriptor, blobs: Sequence[Descriptor], store: Layout, new_tag: str) -> Descriptor:
    for blob in blobs:
        copy_blob(source, store, blob)
    carrier = Carrier(source, store, same_tree=True, choice="carry")
    with source.steady():
        for blob in blobs:
            if blob.media_type in MANIFEST_TYPES:
                carrier.referrers(blob, blob)
    store.tag(new_tag, top, needs=blobs)
    return top


def convert_in(skopeo: Skopeo, source: Layout, offer: Offer, store: Layout, new_tag: str) -> Descriptor:
    """Copy an image in Docker's formats of a layout into ``store``, converted to OCI's; returns its descriptor.

    Raises:
        RegistryError: skopeo cannot convert it.
        StoreError: the image is incomplete.
    """
    with staging_beside(store) as staging, staging_beside(store) as converted:
        for blob in offer.blobs:
            link_blob(store, converted, blob)
        staging.tag(_TAG, offer.top)
        skopeo.convert(staging.path, source.path / "blobs", converted.path, _TAG)
        top = tagged(converted, _TAG)
        store.tag(new_tag, top, needs=_imported(converted, top, store))
    return top


def push(skopeo: Skopeo, store: Layout, descriptor: Descriptor, reference: str, *, exact: bool = True) -> None:
    """Push an image from ``store`` to a registry, byte for byte; unless ``exact`` an index may lose unknown fields.

    All manifests below an index go before it. skopeo would copy it with them, but not one in another; and 1.18 marks
    zstd layers in it, which changes it.

    Raises:
        RegistryError, RegistryBusy: the registry does not accept it.
        StoreError: the store does not hold it.
    """
    offer, repository = look_at(store, descriptor), repository_in(reference)
    for each in (*offer.leaves, *(each for each in reversed(offer.manifests) if each.is_index)):
        is_top = each.descriptor.digest == descriptor.digest
        where = reference if is_top else f"{repository}@{each.descriptor.digest}"
        with staging_beside(store) as staging:
            staging.tag(_TAG, each.descriptor.model_copy(update={"annotations": None, "platform": None}))
            skopeo.push(staging.path, store.path / "blobs", where, exact=exact or not is_top)


def reachable_blobs(layout: Layout, top: Descriptor) -> list[Descriptor]:
    """Return all that a manifest or index leads to, itself last; each blob after those that it names.

    Absent manifests of an index, and absent external layers (``urls``), are left out.

    Raises:
        StoreError: a manifest is missing or corrupt, or contains an invalid descriptor.
    """
    found: dict[str, Descriptor] = {}

    def visit(descriptor: Descriptor) -> None:
        if descriptor.digest in found:
            return
        if descriptor.media_type in MANIFEST_TYPES:
            document = parsed(layout.read(descriptor), descriptor.digest)
            for child, leads_on in children(document, descriptor.digest, layout.has):
                if not leads_on:
                    if not child.urls or layout.has(child):
                        found.setdefault(child.digest, child)
                elif descriptor.media_type not in INDEX_TYPES or not layout.lacks(child):
                    visit(child)
        found[descriptor.digest] = descriptor

    visit(top)
    return list(found.values())


@contextmanager
def staging_beside(store: Layout) -> Iterator[Layout]:
    """Yield an empty layout on the store's filesystem, which the janitor removes after a crash."""
    path = store.path / PRIVATE_DIRECTORY / "work" / f"transfer-{os.getpid()}-{os.urandom(6).hex()}"
    make_directory(path.parent, store.path)
    layout = Layout.create(path)
    try:
        yield layout
    finally:
        shutil.rmtree(path, ignore_errors=True)


def link_blob(store: Layout, staging: Layout, blob: Descriptor) -> None:
    """Link a blob that the store holds into ``staging``, so that it is not fetched."""
    if store.claim(blob):
        target = staging.blob_path(blob.digest)
        Path(target.parent).mkdir(parents=True, exist_ok=True)
        try:
            os.link(store.blob_path(blob.digest), target)
        except OSError:
            # Just removed, or a filesystem without links: it is fetched again.
            return


# --- referrers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Referrer:
    """A referrer of a manifest, in a registry or layout."""

    subject: str
    """Digest of the manifest that it refers to."""
    digest: str
    tag: str | None = None
    """The tag with a suffix that names it; None: the ``subject`` names it."""

    def __str__(self) -> str:
        return f"{self.tag or fallback_tag(self.subject)} {self.digest}"


def referrers_in_layout(spoken: Mapping[str, Sequence[str]], manifests: Iterable[str]) -> list[Referrer]:
    """Return the referrers of these manifests, and of those referrers.

    ``spoken``: the result of :func:`layerfarm.jobs.relayer.referrers.spoken`.
    """
    return _all(manifests, lambda subject: [Referrer(subject, each) for each in spoken.get(fallback_tag(subject), ())])


def referrers_in_registry(
    reader: ImageReader, repository: str, tags: Sequence[str], manifests: Iterable[str]
) -> list[Referrer]:
    """Return the referrers in ``docker://HOST/REPOSITORY``; ``tags``: its tags of this kind, sorted.

    Raises:
        RegistryError, RegistryBusy: as :class:`~layerfarm.worker.catalog.registry.Skopeo`.
    """

    def of(subject: str) -> list[Referrer]:
        found = (referred(reader, repository, subject) or []) if fallback_tag(subject) in tags else []
        for tag in tags_beside(tags, subject):
            raw = reader.raw_manifest(f"{repository}:{tag}")
            found.append(Referrer(subject, digest_of(raw), tag))
        return found

    return _all(manifests, of)


def referred(reader: ImageReader, repository: str, subject: str) -> list[Referrer] | None:
    """Return the referrers of ``subject`` in the index behind its fallback tag; None if that names an image.

    Raises as :func:`referrers_in_registry`.
    """
    tag = fallback_tag(subject)
    try:
        index = referrers_behind(reader, repository, tag)
    except NotInRegistry:
        return []
    return None if index is None else [Referrer(subject, entry.digest) for entry in index.manifests]


def referrers_behind(reader: ImageReader, repository: str, tag: str) -> Index | None:
    """Return the index of referrers behind a fallback tag; None if it names an image.

    Raises as :func:`referrers_in_registry`.
    """
    reference = f"{repository}:{tag}"
    raw = reader.raw_manifest(reference)
    try:
        index = parse_document(Index, raw, reference)
    except MalformedDocument:
        return None
    return None if names_image(tag, digest_of(raw), index) else index


def bring(
    skopeo: Skopeo, repository: str, referrers: Iterable[Referrer], held: Iterable[str], store: Layout
) -> list[str]:
    """Pull referrers into ``store``, which holds the manifests ``held``.

    Return messages on those that cannot be pulled; the image is usable without them.

    Raises:
        RegistryBusy: the registry does not answer now.
    """
    left = []
    known = set(held)
    for one in referrers:
        if one.subject not in known:
            left.append(_left(one))
            continue
        try:
            _pull_one(skopeo, repository, one, store)
        except RegistryBusy:
            raise
        except LayerfarmError as error:
            left.append(f"not copied: {one}, {error}")
        else:
            known.add(one.digest)
    return left


def left_behind(referrers: Iterable[Referrer], held: Iterable[str]) -> list[str]:
    """Return messages on the referrers of manifests that are not among those ``held``, nor referrers of these."""
    known, left = set(held), []
    for one in referrers:
        if one.subject in known:
            known.add(one.digest)
        else:
            left.append(_left(one))
    return left


def _left(one: Referrer) -> str:
    """Return the message on a referrer of a manifest that is not held: it refers to other bytes."""
    return (
        f"not copied: {one}, it refers to other bytes: the image was converted from Docker's format to OCI's, or"
        " platforms were removed from its index"
    )


def _pull_one(skopeo: Skopeo, repository: str, one: Referrer, store: Layout) -> None:
    with staging_beside(store) as staging:
        skopeo.pull(f"{repository}@{one.digest}", staging.path, _TAG)
        top = tagged(staging, _TAG)
        if top.digest != one.digest:
            raise DigestMismatch("it is in a format that skopeo changes", where=one.digest)
        if one.tag is None:
            top = _referrer(staging, top, one.subject)
        blobs = _imported(staging, top, store)
        if one.tag is None:
            attach(store, top, one.subject)
        else:
            store.tag(one.tag, top, needs=blobs)


def _referrer(layout: Layout, top: Descriptor, subject: str) -> Descriptor:
    """Return the index entry of a referrer; raise MalformedDocument unless it refers to ``subject``."""
    if top.media_type != MEDIA_TYPE_MANIFEST:
        raise MalformedDocument(f"not a referrer but {top.media_type}", where=top.digest)
    artifact = read_artifact(layout, top)
    if artifact.subject is None or artifact.subject.digest != subject:
        raise MalformedDocument(f"listed as a referrer of {subject}, but does not refer to it", where=top.digest)
    return top.model_copy(update={"artifact_type": artifact.kind, "annotations": artifact.annotations})


def _all(manifests: Iterable[str], of: Callable[[str], list[Referrer]]) -> list[Referrer]:
    """Yield the referrers of the manifests, then of these referrers, and so on."""
    found: list[Referrer] = []
    pending = sorted(set(manifests))
    seen = set(pending)
    for subject in pending:  # grows
        for referrer in of(subject):
            found.append(referrer)
            if referrer.digest not in seen:
                seen.add(referrer.digest)
                pending.append(referrer.digest)
    return found
