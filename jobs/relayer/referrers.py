"""Referrers: manifests that name another one as their ``subject`` (signatures, SBOMs, proofs), and their copies.

distribution-spec lists referrers in an API that a layout does not have. Two ways are in use, and both are read
here: the ``sha256-HEX`` tag of the spec's fallback (regclient), and entries of index.json without a tag (oras).
layerfarm writes the second: a tag would appear in ``layerfarm ls`` and every script that lists tags, and adding
a referrer would rewrite the index behind it. Garbage collection keeps such an entry as long as its subject
(:mod:`layerfarm.jobs.store.reachability`). A push to a registry without the API makes the tag (:func:`fallback_index`).

When an image is transformed, referrers that remain valid may be copied to the new image. Attestations and SBOMs
describe the content and its origin: both are valid for a new image with the same tree. Those in the image's index are
part of it, and stay. A signature, and everything that is signed, is a statement on certain bytes: beside other bytes
it fails to verify, so it stays with the old image.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Literal

from pydantic import Field

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.image.resolve import is_attestation
from layerfarm.jobs.relayer.indexes import REFERENCE_DIGEST, copy_manifest
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, REF_NAME, Descriptor, Document, Index, Layout
from layerfarm.jobs.store import parse_document as parse
from layerfarm.jobs.store.descriptor import SUBJECT, StringMap, name_of, subject_of

MEDIA_TYPE_EMPTY: Final = "application/vnd.oci.empty.v1+json"
MEDIA_TYPE_PROOF: Final = "application/vnd.layerfarm.proof.v1+json"
_NO_TAG: Final = re.compile("[^A-Za-z0-9._-]")
_REFERRER_TAG: Final = re.compile(r"sha(?:256|512)-[0-9a-f]{64}(?:\..+)?")
_SIGNED: Final = (
    "application/vnd.dev.cosign.",
    "application/vnd.dev.sigstore.",
    "application/vnd.cncf.notary.",
    "application/vnd.dsse.",
    "application/vnd.in-toto",
    "application/pgp-signature",
)
_SIGNED_TAGS: Final = ("sig", "att")
"""Endings of the tags under which cosign keeps signatures: ``sha256-HEX.sig``."""
_SBOM_TAG: Final = "sbom"
_OLD_BYTES: Final = "it signs the old image's bytes"

Choice = Literal["leave", "carry"]
"""Copy referrers that remain valid to the new image, or not. They are other people's statements on the old one, so
they are left unless the request says ``carry``."""


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
        """Return the artifact type, else the media type of the config."""
        return self.artifact_type or self.config.media_type


class _Subject(Document):
    """The only field that is read of a manifest of any kind."""

    subject: Descriptor | None = None


def referrers(
    layout: Layout, subject: str, unreadable: Callable[[Descriptor, StoreError], None] = lambda entry, error: None
) -> list[Descriptor]:
    """Return the manifests of the layout with this digest as their subject, each once, with their types.

    ``unreadable`` is called for untagged manifests that cannot be read and may have any subject, or none.

    Raises:
        StoreError: a manifest entered as a referrer of ``subject`` cannot be read.
    """
    found = _found(layout, subject, unreadable)
    return [entry.model_copy(update={"artifact_type": artifact.kind}) for entry, artifact in found]


def attach(layout: Layout, descriptor: Descriptor, subject: str) -> Descriptor:
    """Add a manifest in the store to index.json as a referrer of ``subject``. Idempotent.

    Returns the entry of index.json.
    """
    entry = entry_of(descriptor, subject)
    layout.attach(entry)
    return entry


def entry_of(descriptor: Descriptor, subject: str) -> Descriptor:
    """Return the entry of index.json for a referrer of ``subject``."""
    annotations = {**(descriptor.annotations or {}), SUBJECT: subject}
    annotations.pop(REF_NAME, None)
    return descriptor.model_copy(update={"annotations": annotations})


def put_artifact(layout: Layout, artifact: Artifact) -> Descriptor:
    """Store the manifest of an artifact whose blobs are in the store; return its descriptor."""
    return layout.put_document(artifact, MEDIA_TYPE_MANIFEST, artifactType=artifact.kind)


def read_artifact(layout: Layout, descriptor: Descriptor) -> Artifact:
    """Return the manifest of an artifact. Raises StoreError: it is missing, corrupt or not a manifest."""
    return parse(Artifact, layout.read(descriptor), descriptor.digest)


def fallback_tag(subject: str) -> str:
    """Return the tag that lists referrers in a registry without the API (distribution-spec "Referrers Tag Schema")."""
    algorithm, _, encoded = subject.partition(":")
    return f"{_NO_TAG.sub('-', algorithm)[:32]}-{encoded[:64]}"


def speaks_of_another(tag: str) -> bool:
    """Return True for the fallback tag, and for one with an ending, like cosign's ``sha256-HEX.sig``.

    A tag with an ending leads to one manifest, which refers to the subject without naming it.
    """
    return _REFERRER_TAG.fullmatch(tag) is not None


def is_fallback_tag(tag: str) -> bool:
    """Return True for a tag of the form of :func:`fallback_tag`, without an ending."""
    return speaks_of_another(tag) and "." not in tag


def names_image(tag: str, digest: str, index: Index | None) -> bool:
    """Return True if a fallback tag names an image, or an artifact, instead of an index of referrers.

    Tools that mirror images by their digests set such tags (oc-mirror, zot#4398). ``digest`` is that of the manifest
    behind the tag; ``index`` is None if that is not an OCI index. Entries of an index of referrers have no platform.
    """
    if index is None or fallback_tag(digest) == tag:
        return True
    platforms = (entry.platform for entry in index.manifests if entry.platform is not None)
    return any(platform.os and not is_attestation(platform) for platform in platforms)


def fallback_entries(layout: Layout, entry: Descriptor) -> list[Descriptor]:
    """Return the entries of the index of referrers behind a fallback tag; none if that names an image.

    ``entry``: the tag's in index.json.

    Raises:
        StoreError: the index cannot be read.
    """
    index = _index(layout, entry)
    return [] if index is None or names_image(name_of(entry) or "", entry.digest, index) else index.manifests


def entry_names_image(layout: Layout, entry: Descriptor) -> bool:
    """Return :func:`names_image` for an entry of index.json. Raises as :func:`fallback_entries`."""
    return names_image(name_of(entry) or "", entry.digest, _index(layout, entry))


def _index(layout: Layout, entry: Descriptor) -> Index | None:
    return parse(Index, layout.read(entry), entry.digest) if entry.media_type == MEDIA_TYPE_INDEX else None


def tags_beside(tags: Sequence[str], subject: str) -> list[str]:
    """Return the tags, of these sorted ones, that add an ending to the fallback tag of ``subject``."""
    begin = f"{fallback_tag(subject)}."
    return list(itertools.takewhile(lambda tag: tag.startswith(begin), tags[bisect_left(tags, begin) :]))


def spoken(layout: Layout) -> dict[str, list[str]]:
    """Return the digests of all referrers in a layout, by the fallback tag of their subject.

    Untagged manifests that cannot be read are ignored.

    Raises:
        StoreError: a fallback index cannot be read.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    index = layout.index_text()
    for place, tag in enumerate(index.names):
        if tag is not None and not speaks_of_another(tag):
            continue
        entry = index.descriptor(place)
        if entry is None:
            continue
        if tag is None:
            subject = subject_of(entry) or _subject(layout, entry)
            if subject is not None:
                found[fallback_tag(subject)].append(entry.digest)
        else:
            fallback, _, ending = tag.partition(".")
            found[fallback] += [entry.digest] if ending else (one.digest for one in fallback_entries(layout, entry))
    return found


def _subject(layout: Layout, entry: Descriptor) -> str | None:
    if entry.media_type != MEDIA_TYPE_MANIFEST or layout.lacks(entry):
        return None
    try:
        subject = parse(_Subject, layout.read(entry), entry.digest).subject
    except StoreError:
        return None
    return None if subject is None else subject.digest


def fallback_index(found: Iterable[Descriptor]) -> Index:
    """Return the index for :func:`fallback_tag` of these :func:`referrers` of one manifest."""
    own = {SUBJECT, REF_NAME}
    entries = [
        entry.model_copy(
            update={"annotations": {k: v for k, v in (entry.annotations or {}).items() if k not in own} or None}
        )
        for entry in found
    ]
    return Index(mediaType=MEDIA_TYPE_INDEX, manifests=entries)


def unread_referrers(layout: Layout, subject: str) -> list[Descriptor]:
    """Return entries of the fallback index of ``subject`` that are not OCI manifests, which layerfarm does not read."""
    return [
        entry
        for tagged in layout.find(fallback_tag(subject))
        for entry in fallback_entries(layout, tagged)
        if entry.media_type != MEDIA_TYPE_MANIFEST
    ]


def _found(
    layout: Layout, subject: str, unreadable: Callable[[Descriptor, StoreError], None]
) -> Iterator[tuple[Descriptor, Artifact]]:
    seen = set()
    for entry, named in _candidates(layout, subject):
        if entry.digest not in seen and entry.media_type == MEDIA_TYPE_MANIFEST and not layout.lacks(entry):
            seen.add(entry.digest)
            try:
                artifact = read_artifact(layout, entry)
            except StoreError as error:
                if named:
                    raise
                unreadable(entry, error)
                continue
            if artifact.subject is not None and artifact.subject.digest == subject:
                yield entry, artifact


def _candidates(layout: Layout, subject: str) -> Iterator[tuple[Descriptor, bool]]:
    """Entries that may refer to ``subject``: with its annotation or none, and those of the fallback index.

    With each: True if the annotation or the index says that it refers to ``subject``.
    """
    index, tag = layout.index_text(), fallback_tag(subject)
    named, unnamed = index.untagged.get(subject, []), index.untagged.get(None, [])
    for place in sorted([*named, *unnamed, *index.places.get(tag, [])]):
        entry = index.descriptor(place)
        if entry is None:
            continue
        if index.names[place] == tag:
            yield from ((child, True) for child in fallback_entries(layout, entry))
        else:
            yield entry, subject_of(entry) == subject


# --- copied to transformed images ----------------------------------------------------------------


class Carrier:
    """Copies referrers of images in ``source`` to new images in ``target``, and warns of those left behind."""

    def __init__(self, source: Layout, target: Layout, *, same_tree: bool, choice: Choice) -> None:
        self._source = source
        self._target = target
        self._same_tree = same_tree
        self._choice = choice
        self.carried = 0
        self.warnings: list[str] = []

    def beside(self, entry: Descriptor, subject: str | None) -> Descriptor | None:
        """Copy a manifest of the index. ``subject``: digest of the new image that it refers to, if it refers to one.

        Returns the entry for the new index, or None: it is left out.
        """
        if subject is not None and not self._same_tree:
            self._leave(entry.digest, "an attestation", "the new image has different content")
            return None
        copy_manifest(self._source, self._target, entry)
        self.referrers(entry, entry)
        if subject is None:
            return entry
        self.carried += 1
        return entry.model_copy(update={"annotations": {**(entry.annotations or {}), REFERENCE_DIGEST: subject}})

    def referrers(self, old: Descriptor, new: Descriptor) -> None:
        """Copy or leave all referrers of ``old``, which became ``new``, and their own referrers.

        If both are the same manifest, in two layouts, all are copied.

        Raises:
            StoreError: one cannot be read.
        """
        if old.digest == new.digest and self._source.path == self._target.path:
            return
        for entry in referrers(self._source, old.digest, self._unreadable):
            self._referrer(entry, read_artifact(self._source, entry), old, new)
        for entry in unread_referrers(self._source, old.digest):
            self._leave(entry.digest, entry.media_type, "layerfarm does not read this type")
        for tag in tags_beside(self._source.index_text().sorted_tags, old.digest):
            self._tagged(tag, old, new)

    def _referrer(self, entry: Descriptor, artifact: Artifact, old: Descriptor, new: Descriptor) -> None:
        kind = artifact.kind
        if old.digest == new.digest:
            copy_manifest(self._source, self._target, entry)
            self._carried(entry, entry, new)
        elif kind == MEDIA_TYPE_PROOF:
            pass  # an earlier transform's proof describes the old image, which the new proof names
        elif kind.startswith(_SIGNED):
            self._leave(entry.digest, f"a signature ({kind})", _OLD_BYTES)
        elif self._stays_true(entry.digest, kind):
            copy_manifest(self._source, self._target, entry)
            subject = new.model_copy(update={"annotations": None, "platform": None})
            stored = put_artifact(self._target, artifact.model_copy(update={"subject": subject}))
            self._carried(entry, stored.model_copy(update={"annotations": artifact.annotations}), new)

    def _carried(self, entry: Descriptor, stored: Descriptor, subject: Descriptor) -> None:
        attach(self._target, stored, subject.digest)
        self.carried += 1
        self.referrers(entry, stored)

    def _tagged(self, tag: str, old: Descriptor, new: Descriptor) -> None:
        ending = tag.partition(".")[2]
        for entry in self._source.find(tag):
            what = f"the tag {tag[:19]}….{ending}"
            if old.digest != new.digest and ending in _SIGNED_TAGS:
                self._leave(entry.digest, what, _OLD_BYTES)
            elif old.digest != new.digest and ending != _SBOM_TAG:
                self._leave(entry.digest, what, "it is not known to be valid for the new image")
            elif old.digest == new.digest or self._stays_true(entry.digest, what):
                copy_manifest(self._source, self._target, entry)
                self._target.tag(f"{fallback_tag(new.digest)}.{ending}", entry)
                self.carried += 1

    def _stays_true(self, digest: str, what: str) -> bool:
        """Return True if a statement on the content is to be copied; otherwise add a warning."""
        if not self._same_tree:
            self._leave(digest, what, "the new image has different content")
        elif self._choice == "leave":
            self._leave(digest, what, "it refers to the old image (referrers: carry would copy it to the new one)")
        else:
            return True
        return False

    def _unreadable(self, entry: Descriptor, error: StoreError) -> None:
        self._leave(entry.digest, "an untagged manifest", f"it cannot be read ({error.what})")

    def _leave(self, digest: str, what: str, why: str) -> None:
        self.warnings.append(f"not copied: {what}, {why}: {digest}")
