"""What is an image, and which one a tag means: through nested indexes, by platform where there are several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

from layerfarm.jobs.errors import (
    AmbiguousReference,
    BlobNotFound,
    LayerfarmError,
    MalformedDocument,
    TagNotFound,
    UnsupportedMediaType,
)
from layerfarm.jobs.image.documents import AnyManifest, ImageConfig, Manifest
from layerfarm.jobs.limits import limits
from layerfarm.jobs.store import (
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Document,
    Index,
    Layout,
    Platform,
    check_refname,
    parse_document,
)
from layerfarm.jobs.store.reach import MANIFEST_TYPES

if TYPE_CHECKING:
    from layerfarm.jobs.image.documents import ImageConfig


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

    ``platform`` (``os/arch[/variant]``) picks one where the tag leads to several; artifacts beside them do not count
    (:func:`choose`).

    Raises:
        InvalidReference: the tag breaks the grammar, so nothing can have it.
        TagNotFound: nothing has it, or nothing for this platform.
        AmbiguousReference: it leads to several images.
        MalformedDocument, UnsupportedMediaType, LimitExceeded: what it leads to is no image.
        BlobNotFound: the layout does not hold the image, or not all of it.
        DigestMismatch, SizeMismatch: it is corrupt.
    """
    return resolve_walk(layout, choose(layout, tag, platform))


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

    A nested index that the layout does not hold is an end, too (:attr:`Kind.ABSENT`).

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
        if walk[-1].media_type != MEDIA_TYPE_INDEX or (len(walk) > 1 and layout.lacks(walk[-1])):
            yield walk
            continue
        if len(walk) > bounds.index_depth:
            raise bounds.exceeded("index_depth", "indexes are nested deeper than {}", walk[-1].digest)
        pending += [(*walk, child) for child in reversed(read_index(layout, walk[-1]).manifests)]


# --- what an entry is ------------------------------------------------------------------------------


class Kind(Enum):
    """What an entry of an index that is no index itself is."""

    IMAGE = "image"
    ARTIFACT = "artifact"
    ABSENT = "absent"
    """The layout does not hold it (image-layout.md "Blobs"), and nothing says that it is an artifact."""


REFERENCE_TYPE: Final = "vnd.docker.reference.type"
"""BuildKit's annotation on the attestations that it puts beside the images of an index."""
_UNKNOWN: Final = ("unknown", "unknown")
"""Operating system and architecture of an attestation."""
_DOCKER: Final = "application/vnd.docker.distribution.manifest."
_CONFIGS: Final = ("", MEDIA_TYPE_CONFIG, "application/vnd.docker.container.image.v1+json")


def kind_of(layout: Layout, descriptor: Descriptor) -> Kind:
    """What ``descriptor`` names, by the one rule that every command goes by.

    An artifact is a manifest whose config is of another type than an image's (manifest.md "Guidelines for Artifact
    Usage"), BuildKit's attestation, or what is no manifest at all. Whatever cannot be read, and images in Docker's
    formats, are images: the reader is to say what is wrong.
    """
    if says_artifact(descriptor):
        return Kind.ARTIFACT
    if descriptor.media_type not in MANIFEST_TYPES:
        return Kind.ARTIFACT
    if layout.lacks(descriptor):
        return Kind.ABSENT
    if descriptor.media_type.startswith(_DOCKER):
        return Kind.IMAGE
    if descriptor.media_type != MEDIA_TYPE_MANIFEST:
        return Kind.ARTIFACT
    try:
        named = parse_document(_Configured, layout.read(descriptor), descriptor.digest).config
        if named.media_type not in _CONFIGS:
            return Kind.ARTIFACT
        config = None if _named_platform(descriptor) else _config(layout, descriptor)
    except LayerfarmError:
        return Kind.IMAGE
    return Kind.ARTIFACT if config is not None and is_attestation(config) else Kind.IMAGE


class _Configured(Document):
    """Any manifest, as far as it tells what it is of."""

    config: Descriptor


def says_artifact(descriptor: Descriptor) -> bool:
    """True if the descriptor alone marks an attestation."""
    platform = descriptor.platform
    return bool((descriptor.annotations or {}).get(REFERENCE_TYPE)) or (
        platform is not None and is_attestation(platform)
    )


def is_attestation(platform: Platform | ImageConfig) -> bool:
    """True for the platform ``unknown/unknown``, spelled out: BuildKit gives it to attestations and nothing else."""
    return (platform.os, platform.architecture) == _UNKNOWN


def is_of_an_image(manifest: Mapping[str, Any]) -> bool:
    """False for a manifest, as JSON, that names a config of another type than an image's."""
    config = manifest.get("config")
    kind = config.get("mediaType") if isinstance(config, dict) else None
    return not isinstance(kind, str) or kind in _CONFIGS


def read_artifact(layout: Layout, descriptor: Descriptor) -> AnyManifest | None:
    """The manifest, if it is that of an artifact; None: it is an image's, or none at all.

    Raises:
        MalformedDocument, BlobNotFound, DigestMismatch, SizeMismatch: as reading it.
    """
    if descriptor.media_type != MEDIA_TYPE_MANIFEST:
        return None
    raw = layout.read(descriptor)
    if is_of_an_image(parse_document(Document, raw, descriptor.digest).model_extra or {}):
        return None
    return parse_document(AnyManifest, raw, descriptor.digest)


# --- which one is meant ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Leaf:
    walk: Walk
    kind: Kind
    platform: str | None
    """``os/arch[/variant]``; None: nothing says it."""


def choose(layout: Layout, tag: str, platform: str | None = None) -> Walk:
    """The walk to what ``tag`` means: the one thing that it leads to, else the one image (for ``platform``).

    Where the layout does not hold all images of an index, and one only, that one is meant unless a platform is named.

    Raises:
        InvalidReference, TagNotFound, AmbiguousReference, LimitExceeded: as :func:`resolve`.
        BlobNotFound: the layout does not hold the image.
        MalformedDocument, DigestMismatch, SizeMismatch: as reading the indexes.
    """
    named = layout.find(tag)
    if not named:
        check_refname(tag)
        raise TagNotFound(f"tag {tag!r} not found", where=layout.path)
    # One manifest may stand for several platforms; one that is reached on two ways is no ambiguity.
    found: dict[tuple[str, str | None], Walk] = {}
    for walk in walks(layout, named):
        found.setdefault((walk[-1].digest, _named_platform(walk[-1])), walk)
    if not found:
        raise TagNotFound(f"tag {tag!r} names an index without manifests", where=layout.path)
    only = next(iter(found.values()))
    if platform is None and len({digest for digest, _ in found}) == 1 and not layout.lacks(only[-1]):
        return only
    leaves = [leaf for leaf in (_leaf(layout, walk) for walk in found.values()) if leaf.kind is not Kind.ARTIFACT]
    if platform is not None:
        leaves = [leaves[place] for place in satisfying(platform, [leaf.platform for leaf in leaves])]
    here = list({leaf.walk[-1].digest: leaf for leaf in reversed(leaves) if leaf.kind is Kind.IMAGE}.values())
    what = f"image for platform {platform!r}" if platform is not None else "image"
    if not leaves:
        raise TagNotFound(f"tag {tag!r} has no {what}", where=layout.path)
    if not here:
        raise BlobNotFound(
            f"tag {tag!r} leads to an {what} that this layout does not hold",
            where=leaves[0].walk[-1].digest,
            hint="copy it into the layout with all its platforms (skopeo copy --all)",
        )
    if len(here) > 1:
        there = ", ".join(sorted({leaf.platform or "unknown" for leaf in here}))
        raise AmbiguousReference(
            f"tag {tag!r} leads to {len(here)} images", where=layout.path, hint=f"name a platform of {there}"
        )
    return here[0].walk


def _leaf(layout: Layout, walk: Walk) -> _Leaf:
    descriptor = walk[-1]
    kind, platform = kind_of(layout, descriptor), _named_platform(descriptor)
    if platform is None and kind is Kind.IMAGE:
        with suppress(LayerfarmError):
            platform = platform_text(_config(layout, descriptor))
    return _Leaf(walk, kind, platform)


def _named_platform(descriptor: Descriptor) -> str | None:
    """The platform that the descriptor itself names; ``{}``, or half of one, is none."""
    platform = descriptor.platform
    return platform_text(platform) if platform is not None and platform.os and platform.architecture else None


def _config(layout: Layout, descriptor: Descriptor) -> ImageConfig:
    manifest = read_manifest(layout, descriptor)
    return parse_document(ImageConfig, layout.read(manifest.config), manifest.config.digest)


_MACHINES = {
    "x86_64": ("amd64", None),
    "i386": ("386", None),
    "i686": ("386", None),
    "aarch64": ("arm64", "v8"),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "loongarch64": ("loong64", None),
    "ppc64le": ("ppc64le", None),
    "riscv64": ("riscv64", None),
    "s390x": ("s390x", None),
}


def host_platform() -> Platform:
    """Linux on this machine's processor, the ARM variant included."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, None))
    return Platform(os="linux", architecture=architecture, variant=variant)


def platform_text(platform: Platform | ImageConfig) -> str:
    """``os/arch[/variant]`` as people write it."""
    parts = [platform.os or "unknown", platform.architecture or "unknown", platform.variant or ""]
    return "/".join(part for part in parts if part)


def satisfying(wanted: str, found: Sequence[str | None]) -> list[int]:
    """The places of those platforms in ``found`` that ``wanted`` (``os/arch[/variant]``) means; None: not known.

    Equal ones, as containerd's normalisation has it (:data:`_DEFAULT_VARIANTS`). If there are none, a wish that names
    no variant is met by every variant.
    """
    wish = _normalised(wanted)
    known = [None if text is None else _normalised(text) for text in found]
    equal = [place for place, platform in enumerate(known) if platform == wish]
    if equal or wanted.count("/") != 1:
        return equal
    return [place for place, platform in enumerate(known) if platform is not None and platform[:2] == wish[:2]]


_DEFAULT_VARIANTS: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
"""The variant that a platform without one has, by containerd's platforms/database.go."""
_OTHER_NAMES: Final = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
"""Architectures as others call them, and the variant that such a name implies; None: none."""


def _normalised(text: str) -> tuple[str, ...]:
    """Operating system, architecture, variant; and whatever else the text holds, which no platform has."""
    system, _, rest = text.lower().partition("/")
    architecture, *more = rest.split("/")
    architecture, implied = _OTHER_NAMES.get(architecture, (architecture, None))
    variant = more[0] if more and implied is None else implied or ""
    if variant.isdecimal() and architecture in _DEFAULT_VARIANTS:
        variant = f"v{variant}"
    return (system, architecture, variant or _DEFAULT_VARIANTS.get(architecture, ""), *more[1:])
