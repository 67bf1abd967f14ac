"""That a new image is the old one made over, and nothing else: checked, written down, checked again later.

Two ways lead to the same certainty. Where both images have the same diff_ids they are the same tars in the
same order, however compressed. Else both trees are read from the layers and held against each other:
type, mode, owner, size, mtime to the nanosecond, link, content, device, every xattr, and which names are
one inode.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final, Literal

from pydantic import Field

from layerfarm.jobs.errors import MalformedDocument, NotEquivalent
from layerfarm.jobs.image import Resolved, tree_digest
from layerfarm.jobs.image.documents import ANNOTATION_CODEC
from layerfarm.jobs.image.layers import Advanced, unheard
from layerfarm.jobs.image.resolve import platform_text
from layerfarm.jobs.image.trees import stacks_of
from layerfarm.jobs.layer.stack import Stack
from layerfarm.jobs.relayer.equivalence import EXACT, Allowed, differences, digest_of, facts_of
from layerfarm.jobs.relayer.referrers import MEDIA_TYPE_EMPTY, Artifact, attach, put_artifact, read_artifact, referrers
from layerfarm.jobs.store import MEDIA_TYPE_MANIFEST, Descriptor, Document, Layout, parse_document

ARTIFACT_TYPE: Final = "application/vnd.layerfarm.proof.v1+json"
_SHOWN: Final = 5
"""Differences that an error names."""


class Named(Document):
    """One of the two images."""

    digest: str
    size: int
    platform: str | None = None


class Permitted(Document):
    """The differences that the policy allowed (:class:`~layerfarm.jobs.relayer.equivalence.Allowed`)."""

    clamp: int | None = None
    whole_seconds: bool | None = None
    removed: list[str] | None = None
    without_xattrs: list[str] | None = None

    @classmethod
    def of(cls, allowed: Allowed) -> Permitted:
        return cls(
            clamp=allowed.clamp,
            whole_seconds=allowed.whole_seconds or None,
            removed=list(allowed.removed) or None,
            without_xattrs=list(allowed.without_xattrs) or None,
        )

    def allowed(self) -> Allowed:
        return Allowed(
            self.clamp, bool(self.whole_seconds), tuple(self.removed or ()), tuple(self.without_xattrs or ())
        )


class Swapped(Document):
    """A rebase: the lowest layers of the old image were exactly those of one base, and are those of another."""

    old: str
    """Digest of the old base's manifest."""
    new: str
    layers: int
    """Layers of the old base."""


class Proof(Document):
    """What was compared, and how."""

    version: Literal[1] = 1
    operation: str
    """``recompress``, ``squash`` …"""
    parameters: dict[str, Any] = Field(default_factory=dict)
    old: Named
    new: Named
    method: Literal["layers", "tree"]
    diff_ids: list[str] | None = None
    """Method ``layers``: those of the new image."""
    tree: str | None = None
    """Method ``tree``: digest over all facts of the new image's tree, see
    :func:`~layerfarm.jobs.relayer.equivalence.digest_of`."""
    mtree: str | None = None
    """The same tree as ``layerfarm unpack`` and ``build`` report it: digest of its mtree manifest."""
    entries: int | None = None
    allowed: Permitted = Field(default_factory=Permitted)
    swapped: Swapped | None = None
    tool: str
    codecs: list[str] = []
    """Codec, library, version and level of each layer that layerfarm compressed."""

    @property
    def same_tree(self) -> bool:
        """Whether the new image holds what the old one does, times apart."""
        return self.swapped is None and not self.allowed.removed


def prove(
    layout_old: Layout,
    old: Resolved,
    layout_new: Layout,
    new: Resolved,
    allowed: Allowed = EXACT,
    *,
    operation: str,
    parameters: dict[str, Any] | None = None,
    advanced: Advanced = unheard,
) -> Proof:
    """Compare ``new`` with ``old``, layers and all. Neither is unpacked.

    Where the diff_ids are equal nothing is read: whoever wrote a layer anew has read it back
    (:func:`layerfarm.jobs.relayer.recompress.recompress_layer`).

    Raises:
        NotEquivalent: they differ in more than ``allowed``; the first differences are named.
        StoreError, LayerError: a layer cannot be read, or is not what its digest and diff_id promise.
    """
    known: dict[str, Any] = {
        "operation": operation,
        "parameters": parameters or {},
        "old": _named(old),
        "new": _named(new),
        "allowed": Permitted.of(allowed),
        "tool": f"layerfarm {version('layerfarm')}",
        "codecs": _codecs(new),
    }
    if allowed == EXACT and old.config.rootfs.diff_ids == new.config.rootfs.diff_ids:
        return Proof(method="layers", diff_ids=list(new.config.rootfs.diff_ids), **known)
    before, stack = stacks_of(layout_old, old, layout_new, new, advanced)
    compare(before, stack, allowed, new.descriptor.digest)
    tree, entries = digest_of(facts_of(stack))
    return Proof(method="tree", tree=tree, mtree=tree_digest(stack.entries()), entries=entries, **known)


def prove_rebase(
    old: Resolved, old_base: Resolved, new_base: Resolved, new: Resolved, *, parameters: dict[str, Any]
) -> Proof:
    """That ``new`` is ``new_base`` with exactly the layers on it that ``old`` has on ``old_base``.

    Raises:
        NotEquivalent: it is not.
    """
    below = len(old_base.manifest.layers)
    wanted = [*new_base.config.rootfs.diff_ids, *old.config.rootfs.diff_ids[below:]]
    if old.config.rootfs.diff_ids[:below] != old_base.config.rootfs.diff_ids or wanted != new.config.rootfs.diff_ids:
        raise NotEquivalent("the rebased image has not the layers of the old one", where=new.descriptor.digest)
    return Proof(
        operation="rebase",
        parameters=parameters,
        old=_named(old),
        new=_named(new),
        method="layers",
        diff_ids=wanted,
        swapped=Swapped(old=old_base.descriptor.digest, new=new_base.descriptor.digest, layers=below),
        tool=f"layerfarm {version('layerfarm')}",
        codecs=_codecs(new),
    )


def compare(old: Stack, new: Stack, allowed: Allowed, where: str) -> None:
    """Hold two trees against each other.

    Raises:
        NotEquivalent: they differ in more than ``allowed``.
    """
    first = []
    count = 0
    # What a policy does to times it may do to one part of the image only: both sides are taken that way.
    for difference in differences(facts_of(old, allowed), facts_of(new, replace(allowed, removed=()))):
        count += 1
        if count <= _SHOWN:
            first.append(str(difference))
    if count:
        more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
        what = f"the new image's tree is not the old one's: {'; '.join(first)}{more}"
        raise NotEquivalent(what, where=where, hint="see docs/transforms.md#the-proof")


def attach_proof(layout: Layout, proof: Proof, subject: Descriptor) -> Descriptor:
    """Store the proof as a referrer of the new image's manifest; doing it twice changes nothing.

    Returns the entry of index.json.
    """
    empty = layout.put(b"{}", MEDIA_TYPE_EMPTY)
    document = layout.put_document(proof, ARTIFACT_TYPE)
    artifact = Artifact(
        mediaType=MEDIA_TYPE_MANIFEST,
        artifactType=ARTIFACT_TYPE,
        config=empty,
        layers=[document],
        subject=Descriptor(mediaType=subject.media_type, digest=subject.digest, size=subject.size),
        annotations={"dev.layerfarm.operation": proof.operation, "dev.layerfarm.old": proof.old.digest},
    )
    stored = put_artifact(layout, artifact)
    return attach(layout, stored.model_copy(update={"annotations": artifact.annotations}), subject.digest)


def proofs_of(layout: Layout, subject: str) -> list[Proof]:
    """The proofs of the image whose manifest has this digest.

    Raises:
        StoreError: one cannot be read.
    """
    found = []
    for entry in referrers(layout, subject):
        artifact = read_artifact(layout, entry)
        if artifact.kind == ARTIFACT_TYPE:
            if len(artifact.layers) != 1:
                raise MalformedDocument("a proof has one document", where=entry.digest)
            found.append(parse_document(Proof, layout.read(artifact.layers[0]), artifact.layers[0].digest))
    return found


def _named(image: Resolved) -> Named:
    return Named(digest=image.descriptor.digest, size=image.descriptor.size, platform=platform_text(image.config))


def _codecs(image: Resolved) -> list[str]:
    said = {(layer.annotations or {}).get(ANNOTATION_CODEC) for layer in image.manifest.layers}
    return sorted(codec for codec in said if codec)
