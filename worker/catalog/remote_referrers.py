"""What speaks of an image where that comes from, and how it is brought along: referrers, and what cosign tagged.

skopeo, through which registries are used, knows no referrers API. So what speaks of an image is looked for where
registries without that API have it, and clients put it that want to be found everywhere: behind the tag
``sha256-HEX`` (distribution-spec "Referrers Tag Schema"), and behind those that have an ending more, as cosign's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from layerfarm.jobs.errors import DigestMismatch, LayerfarmError, MalformedDocument, NotInRegistry, RegistryBusy
from layerfarm.jobs.relayer.referrers import attach, fallback_tag, read_artifact, tags_beside
from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, Descriptor, Index, Layout, parse_document
from layerfarm.jobs.store.transfer import import_blob
from layerfarm.worker.catalog.pull import reachable_blobs, staging_beside
from layerfarm.worker.catalog.registry import Skopeo

_TAG = "statement"


@dataclass(frozen=True)
class Statement:
    """A manifest that speaks of another one."""

    subject: str
    """Digest of that."""
    digest: str
    tag: str | None = None
    """The tag with an ending that it stands behind; None: it says itself of what it speaks."""

    def __str__(self) -> str:
        return f"{self.tag or fallback_tag(self.subject)} {self.digest}"


def in_layout(spoken: Mapping[str, Sequence[str]], manifests: Iterable[str]) -> list[Statement]:
    """The statements about these manifests, and about those statements; ``spoken`` is what
    :func:`layerfarm.jobs.relayer.referrers.spoken` gives."""
    return _all(manifests, lambda subject: [Statement(subject, each) for each in spoken.get(fallback_tag(subject), ())])


def in_registry(skopeo: Skopeo, repository: str, tags: Sequence[str], manifests: Iterable[str]) -> list[Statement]:
    """The same of ``docker://HOST/REPOSITORY``, whose ``tags`` of this kind are given sorted.

    Raises:
        RegistryError, RegistryBusy: as :class:`~layerfarm.worker.catalog.registry.Skopeo`.
    """

    def of(subject: str) -> list[Statement]:
        found = referred(skopeo, repository, subject) if fallback_tag(subject) in tags else []
        for tag in tags_beside(tags, subject):
            raw = skopeo.raw_manifest(f"{repository}:{tag}")
            found.append(Statement(subject, _digest(raw), tag))
        return found

    return _all(manifests, of)


def referred(skopeo: Skopeo, repository: str, subject: str) -> list[Statement]:
    """What the repository lists under the tag of the fallback for ``subject``. Raises as :func:`in_registry`.

    If that tag names something else, it is taken for a referrer, and :func:`bring` says that it is none.
    """
    reference = f"{repository}:{fallback_tag(subject)}"
    try:
        raw = skopeo.raw_manifest(reference)
    except NotInRegistry:
        return []
    try:
        index = parse_document(Index, raw, reference)
    except MalformedDocument:
        return [Statement(subject, _digest(raw))]
    return [Statement(subject, entry.digest) for entry in index.manifests]


def _digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def bring(
    skopeo: Skopeo, repository: str, statements: Iterable[Statement], held: Iterable[str], store: Layout
) -> list[str]:
    """Bring statements into ``store``, which holds the manifests ``held`` that they speak of.

    Returns, for people, which could not be brought, and why. One that cannot does not keep an image from being had.

    Raises:
        RegistryBusy: the registry is away; another time they may be had.
    """
    left = []
    known = set(held)
    for one in statements:
        if one.subject not in known:
            left.append(f"not brought along: {one}, it is of Docker's format of the image, which is OCI's here")
            continue
        try:
            _bring(skopeo, repository, one, store)
        except RegistryBusy:
            raise
        except LayerfarmError as error:
            left.append(f"not brought along: {one}, {error}")
        else:
            known.add(one.digest)
    return left


def _bring(skopeo: Skopeo, repository: str, one: Statement, store: Layout) -> None:
    with staging_beside(store) as staging:
        skopeo.pull(f"{repository}@{one.digest}", staging.path, _TAG)
        (top,) = staging.find(_TAG)
        top = top.model_copy(update={"annotations": None})
        if top.digest != one.digest:
            raise DigestMismatch("it is in a format that skopeo changes", where=one.digest)
        if one.tag is None:
            top = _referrer(staging, top, one.subject)
        blobs = reachable_blobs(staging, top)
        for blob in blobs:
            import_blob(store, staging.blob_path(blob.digest), blob)
        if one.tag is None:
            attach(store, top, one.subject)
        else:
            store.tag(one.tag, top, needs=blobs)


def _referrer(layout: Layout, top: Descriptor, subject: str) -> Descriptor:
    """The entry for a referrer, which has to be one."""
    if top.media_type != MEDIA_TYPE_MANIFEST:
        raise MalformedDocument(f"a referrer is no {top.media_type}", where=top.digest)
    artifact = read_artifact(layout, top)
    if artifact.subject is None or artifact.subject.digest != subject:
        raise MalformedDocument(f"it is listed as a referrer of {subject}, and is not", where=top.digest)
    return top.model_copy(update={"artifact_type": artifact.kind, "annotations": artifact.annotations})


def _all(manifests: Iterable[str], of: Callable[[str], list[Statement]]) -> list[Statement]:
    """The statements on the manifests, then those on these statements, and so on."""
    found: list[Statement] = []
    pending = sorted(set(manifests))
    seen = set(pending)
    for subject in pending:  # grows meanwhile
        for statement in of(subject):
            found.append(statement)
            if statement.digest not in seen:
                seen.add(statement.digest)
                pending.append(statement.digest)
    return found
