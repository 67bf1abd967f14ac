"""The proof that a new image is the old one transformed: created, stored as a referrer, and verified later.

Images with the same diff_ids hold the same tars in the same order, however compressed. Otherwise both trees are
read from the layers and compared: type, mode, owner, size, mtime to the nanosecond, link, content, device,
every xattr, and the names of each inode.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, cached_property
from importlib.metadata import version
from itertools import islice
from typing import Any, Literal

from pydantic import Field

from layerfarm.jobs.errors import LayerfarmError, MalformedDocument, NotEquivalent
from layerfarm.jobs.image import Resolved, resolve_walk, tree_digest
from layerfarm.jobs.image.documents import ANNOTATION_CODEC
from layerfarm.jobs.image.layers import Advanced, open_layer, read_layer, unheard
from layerfarm.jobs.image.report import Report
from layerfarm.jobs.image.trees import stack_of, stacks_of
from layerfarm.jobs.layer.stack import Stack
from layerfarm.jobs.relayer.equivalence import EXACT, Tolerance, differences, digest_of, facts_of
from layerfarm.jobs.relayer.indexes import platform_of, read_images
from layerfarm.jobs.relayer.referrers import (
    MEDIA_TYPE_EMPTY,
    MEDIA_TYPE_PROOF,
    Artifact,
    entry_of,
    put_artifact,
    read_artifact,
    referrers,
)
from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, Descriptor, Document, Layout, parse_document

_SHOWN = 5
"""Number of differences that an error names."""


class Named(Document):
    """One of the two images."""

    digest: str
    size: int
    platform: str | None = None

    @classmethod
    def of(cls, image: Resolved) -> Named:
        return cls(digest=image.descriptor.digest, size=image.descriptor.size, platform=platform_of(image))


class Permitted(Document):
    """The allowed differences (:class:`~layerfarm.jobs.relayer.equivalence.Tolerance`), as JSON."""

    clamp: int | None = None
    whole_seconds: bool | None = None
    removed: list[str] | None = None
    without_xattrs: list[str] | None = None

    @classmethod
    def of(cls, allowed: Tolerance) -> Permitted:
        return cls(
            clamp=allowed.clamp,
            whole_seconds=allowed.whole_seconds or None,
            removed=list(allowed.removed) or None,
            without_xattrs=list(allowed.without_xattrs) or None,
        )

    def allowed(self) -> Tolerance:
        return Tolerance(
            self.clamp, bool(self.whole_seconds), tuple(self.removed or ()), tuple(self.without_xattrs or ())
        )


class Swapped(Document):
    """A rebase: the lowest layers of the old image were those of one base, and are now those of another."""

    old: str
    """Digest of the old base's manifest."""
    new: str
    layers: int
    """Number of layers of the old base."""


class Proof(Document):
    """The two images, the method of comparison, and its result."""

    version: Literal[1, 2] = 2
    """1: in the digest of the tree, each path of an inode is followed by all of them."""
    operation: str
    """``recompress``, ``squash`` …"""
    parameters: dict[str, Any] = Field(default_factory=dict)
    old: Named
    new: Named
    method: Literal["layers", "tree"]
    diff_ids: list[str] | None = None
    """Method ``layers``: those of the new image."""
    tree: str | None = None
    """Method ``tree``: :func:`~layerfarm.jobs.relayer.equivalence.digest_of` the new image's tree."""
    mtree: str | None = None
    """Digest of the mtree manifest of the same tree, as ``layerfarm unpack`` and ``build`` report it."""
    entries: int | None = None
    allowed: Permitted = Field(default_factory=Permitted)
    swapped: Swapped | None = None
    tool: str
    codecs: list[str] = []
    """Codec, library, version and level of each layer that layerfarm compressed."""

    @property
    def same_tree(self) -> bool:
        """Return True if the new image's tree equals the old one's, except for times."""
        return self.swapped is None and not self.allowed.removed


# --- make ----------------------------------------------------------------------------------------


def prove(
    layout_old: Layout,
    old: Resolved,
    layout_new: Layout,
    new: Resolved,
    allowed: Tolerance = EXACT,
    *,
    operation: str,
    parameters: dict[str, Any] | None = None,
    advanced: Advanced = unheard,
) -> Proof:
    """Compare ``new`` with ``old``. Neither is unpacked.

    With equal diff_ids no layer is read: each new blob was read back when it was written
    (:func:`layerfarm.jobs.relayer.layers.recompress_layer`).

    Raises:
        NotEquivalent: they differ in more than ``allowed``; the first differences are named.
        StoreError, LayerError: a layer cannot be read, or does not match its digest and diff_id.
    """
    known = _about(operation, parameters or {}, old, new, allowed)
    if allowed == EXACT and old.config.rootfs.diff_ids == new.config.rootfs.diff_ids:
        return Proof(method="layers", diff_ids=list(new.config.rootfs.diff_ids), **known)
    before, stack = stacks_of(layout_old, old, layout_new, new, advanced)
    compare(before, stack, allowed, new.descriptor.digest)
    tree, entries = digest_of(facts_of(stack))
    return Proof(method="tree", tree=tree, mtree=tree_digest(stack.entries()), entries=entries, **known)


def prove_rebase(
    old: Resolved, old_base: Resolved, new_base: Resolved, new: Resolved, *, parameters: dict[str, Any]
) -> Proof:
    """Check that ``new`` has the layers of ``new_base`` and, above them, those of ``old`` above ``old_base``.

    Raises:
        NotEquivalent: it has other layers.
    """
    below = len(old_base.manifest.layers)
    ids = old.config.rootfs.diff_ids
    wanted = [*new_base.config.rootfs.diff_ids, *ids[below:]]
    if ids[:below] != old_base.config.rootfs.diff_ids or wanted != new.config.rootfs.diff_ids:
        raise NotEquivalent("the rebased image lacks layers of the old one", where=new.descriptor.digest)
    swapped = Swapped(old=old_base.descriptor.digest, new=new_base.descriptor.digest, layers=below)
    return Proof(method="layers", diff_ids=wanted, swapped=swapped, **_about("rebase", parameters, old, new))


def _about(
    operation: str, parameters: dict[str, Any], old: Resolved, new: Resolved, allowed: Tolerance = EXACT
) -> dict[str, Any]:
    codecs = {(layer.annotations or {}).get(ANNOTATION_CODEC) for layer in new.manifest.layers}
    return {
        "operation": operation,
        "parameters": parameters,
        "old": Named.of(old),
        "new": Named.of(new),
        "allowed": Permitted.of(allowed),
        "tool": _tool(),
        "codecs": sorted(codec for codec in codecs if codec),
    }


@cache
def _tool() -> str:
    return f"layerfarm {version('layerfarm')}"


def compare(old: Stack, new: Stack, allowed: Tolerance, where: str) -> None:
    """Compare two trees.

    Raises:
        NotEquivalent: they differ in more than ``allowed``.
    """
    # A policy may have changed the times of only a part of the image, so it is applied to both sides.
    found = differences(facts_of(old, allowed), facts_of(new, replace(allowed, removed=())))
    first = [str(difference) for difference in islice(found, _SHOWN)]
    if first:
        more = sum(1 for _ in found)
        rest = f" and {more} more" if more else ""
        what = f"the new image's files differ from the original's: {'; '.join(first)}{rest}"
        raise NotEquivalent(what, where=where, hint="see docs/transforms.md#the-proof")


# --- store ---------------------------------------------------------------------------------------


def put_proof(layout: Layout, proof: Proof, subject: Descriptor) -> Descriptor:
    """Store the proof; returns the entry of index.json that makes it a referrer of the new image's manifest."""
    empty = layout.put(b"{}", MEDIA_TYPE_EMPTY)
    document = layout.put_document(proof, MEDIA_TYPE_PROOF)
    artifact = Artifact(
        mediaType=MEDIA_TYPE_MANIFEST,
        artifactType=MEDIA_TYPE_PROOF,
        config=empty,
        layers=[document],
        subject=Descriptor(mediaType=subject.media_type, digest=subject.digest, size=subject.size),
        annotations={"dev.layerfarm.operation": proof.operation, "dev.layerfarm.old": proof.old.digest},
    )
    stored = put_artifact(layout, artifact)
    return entry_of(stored.model_copy(update={"annotations": artifact.annotations}), subject.digest)


def proofs_of(layout: Layout, subject: str) -> list[Proof]:
    """Return the proofs of the image whose manifest has this digest.

    Raises:
        StoreError: one cannot be read.
    """
    found = []
    for entry in referrers(layout, subject):
        artifact = read_artifact(layout, entry)
        if artifact.kind == MEDIA_TYPE_PROOF:
            if len(artifact.layers) != 1:
                raise MalformedDocument("proof does not have exactly one document", where=entry.digest)
            found.append(parse_document(Proof, layout.read(artifact.layers[0]), artifact.layers[0].digest))
    return found


# --- verify --------------------------------------------------------------------------------------


def verify_image(layout: Layout, tag: str, advanced: Advanced = unheard) -> Report:
    """Check every proof of every image behind ``tag``. All layers are read again.

    An old image that the store no longer holds is not read; then only the digests in the proof are compared.
    ``report.reachable`` counts the proofs, ``reachable_bytes`` the bytes of layers read.

    Raises:
        StoreError: the tag does not lead to an image.
    """
    report = Report()
    for image in read_images(layout, tag).images:
        _Verifier(layout, image, report, advanced).check()
    return report


class _Verifier:
    """One image and its proofs."""

    def __init__(self, layout: Layout, image: Resolved, report: Report, advanced: Advanced) -> None:
        self._layout = layout
        self._image = image
        self._digest = image.descriptor.digest
        self._report = report
        self._advanced = advanced

    def check(self) -> None:
        try:
            proofs = proofs_of(self._layout, self._digest)
        except LayerfarmError as error:
            self._report.error("proof", error.where or self._digest, error)
            return
        if not proofs:
            self._report.warning("no-proof", self._digest, "the image has no proof")
        for proof in proofs:
            self._report.reachable += 1
            try:
                self._check_new(proof)
                self._check_old(proof)
            except LayerfarmError as error:
                self._report.error("not-equal", error.where or self._digest, error)

    @cached_property
    def _stack(self) -> Stack:
        return stack_of(self._layout, self._image, self._read, read_layer)

    def _read(self, nbytes: int) -> None:
        self._report.reachable_bytes += nbytes
        self._advanced(nbytes)

    def _check_new(self, proof: Proof) -> None:
        """Check that the image is still the proved one."""
        if proof.new.digest != self._digest:
            self._report.error("proof", self._digest, f"the proof belongs to another image, {proof.new.digest}")
        elif proof.method == "layers":
            if proof.diff_ids != self._image.config.rootfs.diff_ids:
                self._report.error("not-equal", self._digest, "the proof names other layers than the image")
            for layer, diff_id in self._image.layers:
                if not layer.urls or self._layout.has(layer):
                    with open_layer(self._layout, layer, diff_id, self._read):
                        pass
        elif digest_of(facts_of(self._stack, every_name=proof.version == 1)) != (proof.tree, proof.entries):
            self._report.error("not-equal", self._digest, "the image's tree is not the proved one")

    def _check_old(self, proof: Proof) -> None:
        """Compare it with the old image, if the store holds that."""
        found = Descriptor(mediaType=MEDIA_TYPE_MANIFEST, digest=proof.old.digest, size=proof.old.size)
        if not self._layout.has(found):
            self._report.warning("old-image", proof.old.digest, "no longer in the store: only recorded digests checked")
            return
        old = resolve_walk(self._layout, (found,))
        ids, new_ids = old.config.rootfs.diff_ids, self._image.config.rootfs.diff_ids
        if proof.method == "tree":
            before = stack_of(self._layout, old, self._read, read_layer)
            compare(before, self._stack, proof.allowed.allowed(), self._digest)
        elif proof.swapped is None and ids != new_ids:
            self._report.error("not-equal", self._digest, f"its layers are not those of {proof.old.digest}")
        elif proof.swapped is not None:
            above = ids[proof.swapped.layers :]
            if new_ids[len(new_ids) - len(above) :] != above:
                self._report.error("not-equal", self._digest, f"its upper layers are not those of {proof.old.digest}")
