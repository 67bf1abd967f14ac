"""Manifests that speak of another one by their ``subject``: signatures, SBOMs, our own proofs.

Where they lie: distribution-spec lists referrers at an API that a layout has not. Two ways are in use, and
both are read here: the ``sha256-HEX`` tag of the spec's fallback (regclient), and entries of index.json
without a tag (oras). Ours are written the second way. A tag would be one more name in ``layerfarm ls`` and
in every script that lists tags, and adding to the index behind it means rewriting that; an entry is
appended, and a garbage collection lets it live as long as its subject (:mod:`layerfarm.jobs.store.reachability`). Who
pushes to a registry without the API makes the tag from them (:func:`fallback_index`).
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from pydantic import Field

from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, REF_NAME, Descriptor, Document, Index, Layout
from layerfarm.jobs.store import parse_document as parse
from layerfarm.jobs.store.descriptor import StringMap
from layerfarm.jobs.store.reachability import SUBJECT, subject_of

MEDIA_TYPE_EMPTY: Final = "application/vnd.oci.empty.v1+json"
_NO_TAG: Final = re.compile("[^A-Za-z0-9._-]")
_SPEAKS: Final = re.compile(r"sha(?:256|512)-[0-9a-f]{64}(?:\..+)?")


class Artifact(Document):
    """A manifest of anything (manifest.md "Guidelines for Artifact Usage")."""

    schema_version: int = Field(default=2, alias="schemaVersion")
    media_type: str | None = Field(default=None, alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType")
    config: Descriptor
    layers: list[Descriptor] = []
    subject: Descriptor | None = None
    annotations: StringMap | None = None

    @property
    def kind(self) -> str:
        """The artifact's type: the field's, else that of its config."""
        return self.artifact_type or self.config.media_type


class _Subject(Document):
    """What can be said of any manifest."""

    subject: Descriptor | None = None


def referrers(layout: Layout, subject: str) -> list[Descriptor]:
    """The manifests of the layout that have this digest as their subject, each once, with their types.

    Raises:
        MalformedDocument, BlobNotFound, DigestMismatch, SizeMismatch: one cannot be read.
    """
    found = _found(layout, layout.index(), subject)
    return [entry.model_copy(update={"artifact_type": artifact.kind}) for entry, artifact in found]


def attach(layout: Layout, descriptor: Descriptor, subject: str) -> Descriptor:
    """Enter a manifest that is in the store as a referrer of ``subject``; doing it twice changes nothing.

    Returns the entry of index.json.
    """
    annotations = {**(descriptor.annotations or {}), SUBJECT: subject}
    annotations.pop(REF_NAME, None)
    entry = descriptor.model_copy(update={"annotations": annotations})

    def change(index: Index) -> Index:
        if any(other.digest == entry.digest and subject_of(other) == subject for other in index.manifests):
            return index
        return index.model_copy(update={"manifests": [*index.manifests, entry]})

    layout.update_index(change)
    return entry


def put_artifact(layout: Layout, artifact: Artifact) -> Descriptor:
    """Store the manifest of an artifact whose blobs are there; returns its descriptor."""
    return layout.put_document(artifact, MEDIA_TYPE_MANIFEST, artifactType=artifact.kind)


def read_artifact(layout: Layout, descriptor: Descriptor) -> Artifact:
    """The manifest. Raises StoreError: it is missing, corrupt or none."""
    return parse(Artifact, layout.read(descriptor), descriptor.digest)


def fallback_tag(subject: str) -> str:
    """The tag under which registries without a referrers API have them (distribution-spec "Referrers Tag Schema")."""
    algorithm, _, encoded = subject.partition(":")
    return f"{_NO_TAG.sub('-', algorithm)[:32]}-{encoded[:64]}"


def speaks_of_another(tag: str) -> bool:
    """True for a tag that is no image's: the fallback's, or one with an ending, as cosign's ``sha256-HEX.sig``.

    Behind such an ending is one manifest, which speaks of the subject without naming it.
    """
    return _SPEAKS.fullmatch(tag) is not None


def tags_beside(tags: Sequence[str], subject: str) -> list[str]:
    """Those of ``tags``, which are sorted, that hang an ending on the fallback tag of ``subject``."""
    begin = f"{fallback_tag(subject)}."
    return list(itertools.takewhile(lambda tag: tag.startswith(begin), tags[bisect_left(tags, begin) :]))


def spoken(layout: Layout) -> dict[str, list[str]]:
    """All that speaks of others in a layout: digests, by the fallback tag of what they speak of.

    Raises:
        MalformedDocument, BlobNotFound, DigestMismatch, SizeMismatch: something cannot be read.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for entry in layout.index().manifests:
        tag = (entry.annotations or {}).get(REF_NAME)
        if tag is None:
            subject = subject_of(entry) or _subject(layout, entry)
            if subject is not None:
                found[fallback_tag(subject)].append(entry.digest)
        elif speaks_of_another(tag):
            fallback, _, ending = tag.partition(".")
            if ending or entry.media_type != MEDIA_TYPE_INDEX:
                found[fallback].append(entry.digest)
            else:
                found[fallback] += (child.digest for child in parse(Index, layout.read(entry), tag).manifests)
    return found


def _subject(layout: Layout, entry: Descriptor) -> str | None:
    if entry.media_type != MEDIA_TYPE_MANIFEST or layout.lacks(entry):
        return None
    subject = parse(_Subject, layout.read(entry), entry.digest).subject
    return None if subject is None else subject.digest


def fallback_index(layout: Layout, subject: str) -> Index | None:
    """What that tag is to name; None if nothing refers to ``subject``."""
    found = referrers(layout, subject)
    if not found:
        return None
    own = {SUBJECT, REF_NAME}
    entries = [
        entry.model_copy(
            update={"annotations": {k: v for k, v in (entry.annotations or {}).items() if k not in own} or None}
        )
        for entry in found
    ]
    return Index(mediaType=MEDIA_TYPE_INDEX, manifests=entries)


def unread_referrers(layout: Layout, subject: str) -> list[Descriptor]:
    """What the fallback tag lists for ``subject`` that is no OCI manifest, and no referrer that layerfarm can read."""
    return [
        entry
        for tagged in layout.find(fallback_tag(subject))
        if tagged.media_type == MEDIA_TYPE_INDEX
        for entry in parse(Index, layout.read(tagged), tagged.digest).manifests
        if entry.media_type != MEDIA_TYPE_MANIFEST
    ]


def _found(layout: Layout, index: Index, subject: str) -> Iterator[tuple[Descriptor, Artifact]]:
    seen = set()
    for entry in _candidates(layout, index, subject):
        if entry.digest not in seen and entry.media_type == MEDIA_TYPE_MANIFEST and not layout.lacks(entry):
            seen.add(entry.digest)
            artifact = read_artifact(layout, entry)
            if artifact.subject is not None and artifact.subject.digest == subject:
                yield entry, artifact


def _candidates(layout: Layout, index: Index, subject: str) -> Iterator[Descriptor]:
    """Entries that may refer to ``subject``: those that say so, or say nothing, and those of the fallback."""
    for entry in index.manifests:
        named = (entry.annotations or {}).get(REF_NAME)
        if named is None and subject_of(entry) in (None, subject):
            yield entry
        elif named == fallback_tag(subject) and entry.media_type == MEDIA_TYPE_INDEX:
            yield from parse(Index, layout.read(entry), entry.digest).manifests
