"""What speaks of an image when that is made over: carried to the new one, or left with the old one and reported.

Attestations and SBOMs describe what an image holds and how it came to be; both are true of a new image with
the same tree. Those in the image's index are part of it, and stay. Those that refer to it are statements of
others on the old image: they are re-pointed when somebody says so. A signature is a statement on certain bytes,
and so is everything that is signed: to put it beside other bytes would be a lie that every verifier finds out.
Such things stay with the old image.
"""

from __future__ import annotations

from typing import Final, Literal

from layerfarm.jobs.relayer.indexes import REFERENCE_DIGEST, copy_manifest
from layerfarm.jobs.relayer.proof import ARTIFACT_TYPE
from layerfarm.jobs.relayer.referrers import (
    Artifact,
    attach,
    fallback_tag,
    put_artifact,
    read_artifact,
    referrers,
    tags_beside,
    unread_referrers,
)
from layerfarm.jobs.store import Descriptor, Layout

_SIGNED: Final = (
    "application/vnd.dev.cosign.",
    "application/vnd.dev.sigstore.",
    "application/vnd.cncf.notary.",
    "application/vnd.dsse.",
    "application/vnd.in-toto",
    "application/pgp-signature",
)
_SIGNED_TAGS: Final = ("sig", "att")
"""Endings of the tags ``sha256-HEX.sig`` under which cosign keeps what it signed."""
_SBOM_TAG: Final = "sbom"
_OLD_BYTES: Final = "it is of the old image's bytes"

Choice = Literal["leave", "carry"]
"""What becomes of referrers that stay true of the new image. They are others' statements on the old one, so that
they are left there unless somebody says that they are to be re-pointed."""


class Carrier:
    """Carries what speaks of images of ``source`` to new ones in ``target``; counts, and tells what it leaves."""

    def __init__(self, source: Layout, target: Layout, *, same_tree: bool, choice: Choice) -> None:
        self._source = source
        self._target = target
        self._same_tree = same_tree
        self._choice = choice
        self.carried = 0
        self.warnings: list[str] = []

    def beside(self, entry: Descriptor, subject: str | None) -> Descriptor | None:
        """What to do with a manifest that lies in the index, and speaks of the image that is ``subject`` now.

        Returns the entry for the new index, or None: it is left out.
        """
        if subject is not None and not self._same_tree:
            self._leave(entry.digest, "an attestation", "the new image has another content")
            return None
        copy_manifest(self._source, self._target, entry)
        self.referrers(entry, entry)
        if subject is None:
            return entry
        self.carried += 1
        return entry.model_copy(update={"annotations": {**(entry.annotations or {}), REFERENCE_DIGEST: subject}})

    def referrers(self, old: Descriptor, new: Descriptor) -> None:
        """Say of all that speaks of ``old`` what becomes of it, now that it is ``new``; and of what speaks of that.

        Where both are the same manifest, in two layouts, all of it is copied.

        Raises:
            StoreError: one cannot be read.
        """
        if old.digest == new.digest and self._source.path == self._target.path:
            return
        for entry in referrers(self._source, old.digest):
            self._referrer(entry, read_artifact(self._source, entry), old, new)
        for entry in unread_referrers(self._source, old.digest):
            self._leave(entry.digest, entry.media_type, "layerfarm does not read that")
        for tag in tags_beside(sorted(self._source.tags()), old.digest):
            self._tagged(tag, old, new)

    def _referrer(self, entry: Descriptor, artifact: Artifact, old: Descriptor, new: Descriptor) -> None:
        kind = artifact.kind
        if old.digest == new.digest:
            copy_manifest(self._source, self._target, entry)
            self._carried(entry, entry, new)
        elif kind == ARTIFACT_TYPE:
            pass  # the proof of an earlier transform speaks of the old image, which the new proof names
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
                self._leave(entry.digest, what, "nothing says that it is true of the new one")
            elif old.digest == new.digest or self._stays_true(entry.digest, what):
                copy_manifest(self._source, self._target, entry)
                self._target.tag(f"{fallback_tag(new.digest)}.{ending}", entry)
                self.carried += 1

    def _stays_true(self, digest: str, what: str) -> bool:
        """Whether a statement on the content is to be carried; else that is told."""
        if not self._same_tree:
            self._leave(digest, what, "the new image has another content")
        elif self._choice == "leave":
            self._leave(digest, what, "it is of the old image (referrers: carry would point it to the new one)")
        else:
            return True
        return False

    def _leave(self, digest: str, what: str, why: str) -> None:
        self.warnings.append(f"not carried over: {what}, {why}: {digest}")
