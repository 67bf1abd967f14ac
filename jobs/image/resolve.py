"""From a tag to one image: through nested indexes, by platform where there are several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from layerfarm.jobs.errors import AmbiguousReference, MalformedDocument, TagNotFound, UnsupportedMediaType
from layerfarm.jobs.image.documents import ImageConfig, Manifest
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store import (
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Index,
    Layout,
    Platform,
    check_refname,
    parse_document,
)

Walk = tuple[Descriptor, ...]


@dataclass(frozen=True)
class Resolved:
    """One image of a layout, its documents read and checked against each other."""

    path: Walk
    """The walk to it: the descriptor in index.json, nested indexes if any, the manifest last."""
    manifest: Manifest
    config: ImageConfig

    @property
    def descriptor(self) -> Descriptor:
        """That of the manifest."""
        return self.path[-1]

    @property
    def layers(self) -> list[tuple[Descriptor, str]]:
        """Each layer with its diff_id, lowest first."""
        return list(zip(self.manifest.layers, self.config.rootfs.diff_ids, strict=True))

    @property
    def blobs(self) -> list[Descriptor]:
        """Everything that it needs in the store, layers first."""
        return [*self.manifest.layers, self.manifest.config, *reversed(self.path)]


def resolve(layout: Layout, tag: str, platform: str | None = None) -> Resolved:
    """The image that ``tag`` names.

    ``platform`` (``os/arch[/variant]``) picks one where the tag leads to several.

    Raises:
        InvalidReference: the tag breaks the grammar, so nothing can have it.
        TagNotFound: nothing has it, or nothing for this platform.
        AmbiguousReference: it leads to several images.
        MalformedDocument, UnsupportedMediaType, LimitExceeded: what it leads to is no image.
        BlobNotFound, DigestMismatch, SizeMismatch: the store is incomplete or corrupt.
    """
    named = layout.find(tag)
    if not named:
        check_refname(tag)
        raise TagNotFound(f"tag {tag!r} not found", where=layout.path)
    return resolve_walk(layout, _choose(layout, tag, walks(layout, named), platform))


def resolve_walk(layout: Layout, walk: Sequence[Descriptor]) -> Resolved:
    """The image at the end of a walk that was made before (a bundle's, a job's), wherever tags point now.

    Raises:
        MalformedDocument: manifest and config do not belong together.
        BlobNotFound, DigestMismatch, SizeMismatch: as reading the blobs.
    """
    if not walk:
        raise MalformedDocument("walk to the image manifest is empty", where=layout.path)
    manifest = read_manifest(layout, walk[-1])
    config = parse_document(ImageConfig, layout.read(manifest.config), manifest.config.digest)
    layers, diff_ids = len(manifest.layers), len(config.rootfs.diff_ids)
    if layers != diff_ids:
        # umoci panics on fewer diff_ids and takes no notice of more (umoci.md B3.15).
        raise MalformedDocument(
            f"manifest has {layers} layers but its config has {diff_ids} diff_ids", where=walk[-1].digest
        )
    return Resolved(tuple(walk), manifest, config)


def read_manifest(layout: Layout, descriptor: Descriptor) -> Manifest:
    """The manifest blob.

    Raises:
        UnsupportedMediaType: the descriptor is of something else.
        MalformedDocument, BlobNotFound, DigestMismatch, SizeMismatch: as reading it.
    """
    if descriptor.media_type != MEDIA_TYPE_MANIFEST:
        raise UnsupportedMediaType(
            f"not an OCI image manifest but {descriptor.media_type[:100]!r}",
            where=descriptor.digest,
            hint="skopeo copy converts other image formats",
        )
    return parse_document(Manifest, layout.read(descriptor), descriptor.digest)


def read_index(layout: Layout, descriptor: Descriptor) -> Index:
    """A nested index blob. Raises as :func:`read_manifest`."""
    return parse_document(Index, layout.read(descriptor), descriptor.digest)


def walks(layout: Layout, named: Sequence[Descriptor]) -> Iterator[Walk]:
    """Every walk from the tagged descriptors to something that is no index; depth first, in order.

    Raises:
        LimitExceeded: they are too many, or indexes are nested too deep.
        MalformedDocument, BlobNotFound, DigestMismatch, SizeMismatch: as reading the indexes.
    """
    pending: list[Walk] = [(descriptor,) for descriptor in reversed(named)]
    seen = 0
    bounds = limits()
    while pending:
        walk = pending.pop()
        seen += 1
        if seen > bounds.manifests:
            raise bounds.exceeded("manifests", "tag leads to more than {} manifests", layout.path)
        if walk[-1].media_type != MEDIA_TYPE_INDEX:
            yield walk
            continue
        if len(walk) > bounds.index_depth:
            raise bounds.exceeded("index_depth", "indexes are nested deeper than {}", walk[-1].digest)
        pending += [(*walk, child) for child in reversed(read_index(layout, walk[-1]).manifests)]


def _choose(layout: Layout, tag: str, walks: Iterator[Walk], platform: str | None) -> Walk:
    # One image reached on two ways is no ambiguity.
    different = list({walk[-1].digest: walk for walk in reversed(list(walks))}.values())[::-1]
    if not different:
        raise TagNotFound(f"tag {tag!r} names an index without manifests", where=layout.path)
    if platform is None and len(different) == 1:
        return different[0]
    # Build attestations lie beside the images, as manifests for the platform "unknown/unknown".
    images = [(walk, where) for walk in different if (where := _platform(layout, walk)) != "unknown/unknown"]
    if platform is not None:
        images = [(walk, where) for walk, where in images if _satisfies(where, platform)]
    there = ", ".join(sorted({where for _, where in images}))
    if not images:
        raise TagNotFound(f"tag {tag!r} has no image for platform {platform!r}", where=layout.path)
    if len(images) > 1:
        raise AmbiguousReference(
            f"tag {tag!r} leads to {len(images)} images", where=layout.path, hint=f"name a platform of {there}"
        )
    return images[0][0]


def _platform(layout: Layout, walk: Walk) -> str:
    """``os/arch[/variant]`` of the image, from its descriptor or, where that is silent, its config."""
    platform: Platform | ImageConfig | None = walk[-1].platform
    if platform is None:
        manifest = read_manifest(layout, walk[-1])
        platform = parse_document(ImageConfig, layout.read(manifest.config), manifest.config.digest)
    return platform_text(platform)


def platform_text(platform: Platform | ImageConfig) -> str:
    """``os/arch[/variant]`` as people write it."""
    parts = [platform.os or "unknown", platform.architecture or "unknown", platform.variant or ""]
    return "/".join(part for part in parts if part)


def _satisfies(found: str, wanted: str) -> bool:
    """A wish without a variant is met by every variant."""
    return found == wanted or found.startswith(wanted + "/")
