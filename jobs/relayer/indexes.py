"""The images and other manifests behind one tag, and rewritten indexes.

An index holds more than images. BuildKit puts an attestation beside each image, a manifest for the platform
``unknown/unknown`` that names the image in an annotation; others put artifacts there. A transform replaces the
images and decides what happens to the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from layerfarm.jobs.errors import AmbiguousReference, BlobNotFound, TagNotFound, TransformError
from layerfarm.jobs.image import Resolved, resolve_walk
from layerfarm.jobs.image.mutate import rewritten
from layerfarm.jobs.image.resolve import is_artifact, platform_text, read_index, walks
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, Descriptor, Document, Layout, check_refname, parse_document
from layerfarm.jobs.store.reachability import MANIFEST_TYPES, children
from layerfarm.jobs.store.transfer import copy_blob

_SHOWN: Final = 4
"""Number of images that an error names."""
REFERENCE_DIGEST: Final = "vnd.docker.reference.digest"
"""BuildKit's annotation on an attestation: the digest of its image in the same index."""


@dataclass(frozen=True)
class ImageSet:
    """The manifests and indexes behind one tag."""

    top: Descriptor
    """The entry of index.json."""
    images: tuple[Resolved, ...]
    """Each image once, in the order of the index."""
    beside: tuple[Descriptor, ...]
    """Manifests in the index other than images: attestations, artifacts."""
    indexes: tuple[Descriptor, ...]
    """The indexes that lead to them, the top one first; none if the tag names one image."""
    absent: tuple[Descriptor, ...] = ()
    """Manifests and indexes that these name but that are not in the layout (image-layout.md "Blobs")."""
    others: tuple[Resolved, ...] = ()
    """Images for other systems than Linux, which stay unchanged; only after :meth:`linux`."""

    def linux(self) -> ImageSet:
        """Return the set for a job that reads layers: other systems' layers use records that layerfarm does not read.

        Raises:
            TransformError: no image is for Linux.
        """
        found = tuple(filter(is_for_linux, self.images))
        if not found:
            raise TransformError(
                f"layers for {self.images[0].config.os!r} can only be recompressed",
                where=self.images[0].descriptor.digest,
            )
        return replace(self, images=found, others=tuple(image for image in self.images if image not in found))

    @property
    def warnings(self) -> list[str]:
        """Return warnings for every job on this set."""
        found = [
            f"the image for {platform_of(image)} is kept unchanged, its layers can only be recompressed:"
            f" {image.descriptor.digest}"
            for image in self.others
        ]
        if self.absent:
            found.append(
                f"manifests of the index that are not in the layout were skipped: {len(self.absent)},"
                f" such as {self.absent[0].digest}"
            )
        return found

    @property
    def manifests(self) -> tuple[Descriptor, ...]:
        """Return everything that may have referrers."""
        images = (image.descriptor for image in (*self.images, *self.others))
        return (*self.indexes, *images, *self.beside)


def tagged(layout: Layout, tag: str) -> Descriptor:
    """Return the one entry of index.json with this tag.

    Raises:
        InvalidReference, TagNotFound, AmbiguousReference: the tag names nothing, or several manifests.
    """
    named = layout.find(tag)
    if not named:
        check_refname(tag)
        raise TagNotFound(f"tag {tag!r} not found", where=layout.path)
    digests = list(dict.fromkeys(entry.digest for entry in named))
    if len(digests) > 1:
        raise AmbiguousReference(
            f"tag {tag!r} names {len(digests)} images: {', '.join(digests[:_SHOWN])}", where=layout.path
        )
    return named[0]


def read_images(layout: Layout, tag: str) -> ImageSet:
    """Return the manifests and indexes behind ``tag``. Raises as :func:`tagged` and :func:`follow`."""
    return follow(layout, tagged(layout, tag))


def follow(layout: Layout, top: Descriptor) -> ImageSet:
    """Return the manifests and indexes behind a descriptor.

    Raises:
        UnsupportedMediaType, MalformedDocument, LimitExceeded: a part is not an OCI image.
        BlobNotFound, DigestMismatch, SizeMismatch: the store is incomplete or corrupt.
    """
    images: dict[str, Resolved] = {}
    beside: dict[str, Descriptor] = {}
    indexes: dict[str, Descriptor] = {}
    absent: dict[str, Descriptor] = {}
    for walk in walks(layout, [top]):
        leaf = walk[-1]
        indexes |= {index.digest: index for index in walk[:-1]}
        if leaf.digest in images or leaf.digest in beside:
            continue
        if layout.lacks(leaf):
            absent[leaf.digest] = leaf
        elif is_artifact(layout, leaf):
            beside[leaf.digest] = leaf
        else:
            images[leaf.digest] = resolve_walk(layout, walk)
    if not images and absent:
        raise BlobNotFound("tag leads to images that this layout does not hold", where=next(iter(absent)))
    if not images:
        raise TagNotFound("tag has no image", where=top.digest)
    return ImageSet(
        top, tuple(images.values()), tuple(beside.values()), tuple(indexes.values()), tuple(absent.values())
    )


def platform_of(image: Resolved) -> str:
    """Return ``os/arch[/variant]`` of an image, from its config."""
    return platform_text(image.config)


def is_for_linux(image: Resolved) -> bool:
    """Return True unless the config names another system."""
    return image.config.os in (None, "", "linux")


def rewrite(
    layout: Layout,
    source: Layout,
    top: Descriptor,
    replaced: dict[str, Descriptor],
    keep: Callable[[Descriptor, str | None], Descriptor | None],
) -> Descriptor:
    """Write the indexes of ``top`` into ``layout``, with the manifests in ``replaced`` instead of the old ones.

    ``replaced`` maps old digests to new descriptors; the indexes are added to it. ``keep`` is called for each
    manifest beside the images with the digest of the new image that it refers to, or None; it returns the
    entry to write, or None to leave it out. An unchanged index stays, byte for byte. Returns the new ``top``.
    """
    if top.digest in replaced:
        return rewritten(replaced[top.digest], top)
    if top.media_type != MEDIA_TYPE_INDEX:
        return top
    index = read_index(source, top)
    entries = []
    for child in index.manifests:
        if source.lacks(child):
            entries.append(child)  # stays absent
        elif child.media_type == MEDIA_TYPE_INDEX or child.digest in replaced:
            entries.append(rewrite(layout, source, child, replaced, keep))
        elif is_artifact(source, child):
            subject = replaced.get((child.annotations or {}).get(REFERENCE_DIGEST, ""))
            kept = keep(child, subject.digest if subject else None)
            if kept is not None:
                entries.append(kept)
        else:
            entries.append(child)
    if entries == index.manifests:
        copy_blob(source, layout, top)
        return top
    written = layout.put_document(index.model_copy(update={"manifests": entries}), MEDIA_TYPE_INDEX)
    replaced[top.digest] = rewritten(written, top)
    return replaced[top.digest]


def copy_manifest(source: Layout, target: Layout, descriptor: Descriptor) -> None:
    """Copy a manifest, or another blob that an index names, with all blobs that it names except its subject.

    Raises:
        StoreError: one of them is missing or corrupt.
    """
    if source.path == target.path:
        return
    document = {}
    if descriptor.media_type in MANIFEST_TYPES:
        document = parse_document(Document, source.read(descriptor), descriptor.digest).model_extra or {}
    named = {name: value for name, value in document.items() if name != "subject"}
    for child, _ in children(named, descriptor.digest, source.has):
        if not child.urls or source.has(child):
            copy_blob(source, target, child)
    copy_blob(source, target, descriptor)
