"""What speaks of an image when that is made over: carried to the new one where it stays true, else reported.

Attestations and SBOMs describe what an image holds and how it came to be; both are true of a new image with
the same tree. A signature is a statement on certain bytes, and so is everything that is signed: to put it
beside other bytes would be a lie that every verifier finds out. Such things stay with the old image.
"""

from __future__ import annotations

from typing import Final

from jobs.catalog.indexes import REFERENCE_DIGEST, copy_manifest
from jobs.catalog.proof import ARTIFACT_TYPE
from jobs.catalog.referrers import Artifact, attach, put_artifact, read_artifact, referrers
from jobs.store import Descriptor, Layout

_SIGNED: Final = (
    "application/vnd.dev.cosign.",
    "application/vnd.dev.sigstore.",
    "application/vnd.cncf.notary.",
    "application/vnd.dsse.",
    "application/vnd.in-toto",
    "application/pgp-signature",
)
_COSIGN_SIGNATURES: Final = (".sig", ".att")
"""Ends of the tags ``sha256-HEX.sig`` under which cosign keeps what it signed."""
_COSIGN_SBOM: Final = ".sbom"


class Carrier:
    """Carries what speaks of images of ``source`` to new ones in ``target``; counts, and tells what it leaves."""

    def __init__(self, source: Layout, target: Layout, *, same_tree: bool) -> None:
        self._source = source
        self._target = target
        self._same_tree = same_tree
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
        if subject is None:
            return entry
        self.carried += 1
        return entry.model_copy(update={"annotations": {**(entry.annotations or {}), REFERENCE_DIGEST: subject}})

    def referrers(self, old: Descriptor, new: Descriptor) -> None:
        """Carry every manifest whose subject is ``old``.

        Raises:
            StoreError: one cannot be read.
        """
        if old.digest == new.digest and self._source.path == self._target.path:
            return
        for entry in referrers(self._source, old.digest):
            self._referrer(entry, read_artifact(self._source, entry), old, new)
        self._cosign_tags(old, new)

    def _referrer(self, entry: Descriptor, artifact: Artifact, old: Descriptor, new: Descriptor) -> None:
        kind = artifact.kind
        if old.digest == new.digest:
            copy_manifest(self._source, self._target, entry)
            attach(self._target, entry, new.digest)
            self.carried += 1
        elif kind == ARTIFACT_TYPE:
            pass  # the proof of an earlier transform speaks of the old image, which the new proof names
        elif kind.startswith(_SIGNED):
            self._leave(entry.digest, f"a signature ({kind})", "it is of the old image's bytes")
        elif not self._same_tree:
            self._leave(entry.digest, kind, "the new image has another content")
        else:
            copy_manifest(self._source, self._target, entry)
            subject = new.model_copy(update={"annotations": None, "platform": None})
            stored = put_artifact(self._target, artifact.model_copy(update={"subject": subject}))
            attach(self._target, stored.model_copy(update={"annotations": artifact.annotations}), new.digest)
            self.carried += 1

    def _cosign_tags(self, old: Descriptor, new: Descriptor) -> None:
        before, after = (digest.replace(":", "-", 1) for digest in (old.digest, new.digest))
        for end in (*_COSIGN_SIGNATURES, _COSIGN_SBOM):
            for entry in self._source.find(before + end):
                if old.digest == new.digest or (end == _COSIGN_SBOM and self._same_tree):
                    copy_manifest(self._source, self._target, entry)
                    self._target.tag(after + end, entry)
                    self.carried += 1
                else:
                    self._leave(entry.digest, f"the tag {before[:19]}…{end}", "it is of the old image's bytes")

    def _leave(self, digest: str, what: str, why: str) -> None:
        self.warnings.append(f"not carried over: {what}, {why}: {digest}")
