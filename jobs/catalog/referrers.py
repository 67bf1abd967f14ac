"""Manifests that speak of another one by their ``subject``: signatures, SBOMs, our own proofs.

Where they lie: distribution-spec lists referrers at an API that a layout has not. Two ways are in use, and
both are read here: the ``sha256-HEX`` tag of the spec's fallback (regclient), and entries of index.json
without a tag (oras). Ours are written the second way. A tag would be one more name in ``layerfarm ls`` and
in every script that lists tags, and adding to the index behind it means rewriting that; an entry is
appended, and a garbage collection lets it live as long as its subject (:mod:`jobs.store.orphans`). Who
pushes to a registry without the API makes the tag from them (:func:`fallback_index`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic import Field

from jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, REF_NAME, Descriptor, Document, Index, Layout
from jobs.store import parse_document as parse
from jobs.store.orphans import SUBJECT, subject_of

MEDIA_TYPE_EMPTY: Final = "application/vnd.oci.empty.v1+json"


class Artifact(Document):
    """A manifest of anything (manifest.md "Guidelines for Artifact Usage")."""

    schema_version: int = Field(default=2, alias="schemaVersion")
    media_type: str | None = Field(default=None, alias="mediaType")
    artifact_type: str | None = Field(default=None, alias="artifactType")
    config: Descriptor
    layers: list[Descriptor] = []
    subject: Descriptor | None = None
    annotations: dict[str, str] | None = None

    @property
    def kind(self) -> str:
        """The artifact's type: the field's, else that of its config."""
        return self.artifact_type or self.config.media_type


def referrers(layout: Layout, subject: str) -> list[Descriptor]:
    """The manifests of the layout that have this digest as their subject, each once.

    Raises:
        MalformedDocument, BlobNotFound, DigestMismatch, SizeMismatch: one cannot be read.
    """
    return [entry for entry, _ in _found(layout, layout.index(), subject)]


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
    return subject.replace(":", "-", 1)[:128]


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


def _found(layout: Layout, index: Index, subject: str) -> Iterator[tuple[Descriptor, Artifact]]:
    seen = set()
    for entry in _candidates(layout, index, subject):
        if entry.digest not in seen and entry.media_type == MEDIA_TYPE_MANIFEST:
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
