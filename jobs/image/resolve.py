"""Resolve a tag to an image, through nested indexes, by platform if there are several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from layerfarm.jobs.errors import (
    AmbiguousReference,
    BlobNotFound,
    LayerfarmError,
    MalformedDocument,
    TagNotFound,
    UnsupportedMediaType,
)
from layerfarm.jobs.image.documents import AnyManifest, ImageConfig, Manifest
from layerfarm.jobs.limits import Limits, limits
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
from layerfarm.jobs.store.document import DocumentT
from layerfarm.jobs.store.reachability import MANIFEST_TYPES

__all__ = ["Resolved", "resolve"]

_SMALL: Final = 64 * 1024
"""Most bytes of a document that is remembered."""

Walk = tuple[Descriptor, ...]
"""Path from a descriptor of index.json through nested indexes, if any, to a manifest."""


@dataclass(frozen=True)
class Resolved:
    """One image of a layout, its documents read and checked for consistency."""

    path: Walk
    manifest: Manifest
    config: ImageConfig

    @property
    def descriptor(self) -> Descriptor:
        """Descriptor of the manifest."""
        return self.path[-1]

    @property
    def layers(self) -> list[tuple[Descriptor, str]]:
        """Each layer with its diff_id, lowest first."""
        return list(zip(self.manifest.layers, self.config.rootfs.diff_ids, strict=True))

    @property
    def blobs(self) -> list[Descriptor]:
        """Every blob that it needs in the store, layers first."""
        return [*self.manifest.layers, self.manifest.config, *reversed(self.path)]


def resolve(layout: Layout, tag: str, platform: str | None = None) -> Resolved:
    """Return the image that ``tag`` names, for ``platform`` (``os/arch[/variant]``) if given. See :func:`choose`.

    Raises:
        InvalidReference: the tag breaks the grammar.
        TagNotFound: the tag does not exist, or has no image for this platform.
        AmbiguousReference: it leads to several images.
        MalformedDocument, UnsupportedMediaType, LimitExceeded: it does not lead to an image.
        BlobNotFound: the layout lacks the image or parts of it.
        DigestMismatch, SizeMismatch: it is corrupt.
    """
    return resolve_walk(layout, choose(layout, tag, platform))


def resolve_walk(layout: Layout, walk: Sequence[Descriptor]) -> Resolved:
    """Return the image at the end of a walk recorded earlier (by a bundle, a job); later tag moves are ignored.

    Raises:
        MalformedDocument: manifest and config do not match.
        BlobNotFound, DigestMismatch, SizeMismatch: as reading the blobs.
    """
    if not walk:
        raise MalformedDocument("walk to the image manifest is empty", where=layout.path)
    manifest = read_manifest(layout, walk[-1])
    config = _read_config(layout, manifest)
    layers, diff_ids = len(manifest.layers), len(config.rootfs.diff_ids)
    if layers != diff_ids:
        # umoci panics on fewer diff_ids and ignores surplus ones (umoci.md B3.15).
        raise MalformedDocument(
            f"manifest has {layers} layers but its config has {diff_ids} diff_ids", where=walk[-1].digest
        )
    return Resolved(tuple(walk), manifest, config)


def read_manifest(layout: Layout, descriptor: Descriptor) -> Manifest:
    """Read a manifest blob.

    Raises:
        UnsupportedMediaType: the descriptor is not that of an OCI manifest.
        MalformedDocument, BlobNotFound, DigestMismatch, SizeMismatch: as for every document.
    """
    if descriptor.media_type != MEDIA_TYPE_MANIFEST:
        raise UnsupportedMediaType(
            f"not an OCI image manifest but {descriptor.media_type[:100]!r}",
            where=descriptor.digest,
            hint="skopeo copy converts other image formats",
        )
    return _parsed(Manifest, layout.read(descriptor), descriptor.digest)


def _read_config(layout: Layout, manifest: Manifest) -> ImageConfig:
    return _parsed(ImageConfig, layout.read(manifest.config), manifest.config.digest)


def _parsed(model: type[DocumentT], raw: bytes, digest: str) -> DocumentT:
    """Parse a blob; the last small ones are remembered, because the steps of jobs on an image read the same ones."""
    if len(raw) > _SMALL:
        return parse_document(model, raw, digest)
    document: DocumentT = _remembered(model, raw, digest, limits())
    return document


@lru_cache(maxsize=16)
def _remembered(model: type[DocumentT], raw: bytes, digest: str, bounds: Limits) -> DocumentT:
    return parse_document(model, raw, digest)


def read_index(layout: Layout, descriptor: Descriptor) -> Index:
    """Read a nested index blob. Raises as :func:`read_manifest`."""
    return parse_document(Index, layout.read(descriptor), descriptor.digest)


def walks(layout: Layout, named: Sequence[Descriptor]) -> Iterator[Walk]:
    """Yield every walk from the tagged descriptors to a descriptor other than an index, or to an absent nested index.

    Depth first, in the order of the indexes.

    Raises:
        LimitExceeded: there are too many, or indexes are nested too deeply.
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


# --- images and artifacts --------------------------------------------------------------------------

REFERENCE_TYPE: Final = "vnd.docker.reference.type"
"""BuildKit's annotation on the attestations that it puts beside the images of an index."""
_UNKNOWN: Final = ("unknown", "unknown")
"""Operating system and architecture of an attestation."""
_DOCKER: Final = "application/vnd.docker.distribution.manifest."
_CONFIGS: Final = ("", MEDIA_TYPE_CONFIG, "application/vnd.docker.container.image.v1+json")


def is_artifact(layout: Layout, descriptor: Descriptor) -> bool:
    """Return True if the end of a walk is an artifact; every command follows this rule.

    An artifact is a manifest whose config does not have an image's type (manifest.md "Guidelines for Artifact
    Usage"), BuildKit's attestation, or a blob other than a manifest. Absent and unreadable manifests, and images in
    Docker's formats, count as images: reading them reports the error.
    """
    kind = descriptor.media_type
    if is_marked_attestation(descriptor) or kind not in MANIFEST_TYPES:
        return True
    if kind == MEDIA_TYPE_INDEX or kind.startswith(_DOCKER):
        return False
    if kind != MEDIA_TYPE_MANIFEST:
        return not layout.lacks(descriptor)
    try:
        named = parse_document(_WithConfig, layout.read(descriptor), descriptor.digest).config
        if named.media_type not in _CONFIGS:
            return True
        if named_platform(descriptor):
            return False
        return is_attestation(_read_config(layout, read_manifest(layout, descriptor)))
    except LayerfarmError:
        return False


class _WithConfig(Document):
    """A manifest of any kind; only its config is checked."""

    config: Descriptor


def is_marked_attestation(descriptor: Descriptor) -> bool:
    """Return True if the descriptor alone marks an attestation."""
    platform = descriptor.platform
    return bool((descriptor.annotations or {}).get(REFERENCE_TYPE)) or (
        platform is not None and is_attestation(platform)
    )


def is_attestation(platform: Platform | ImageConfig) -> bool:
    """Return True for the explicit platform ``unknown/unknown``, which BuildKit gives only to attestations."""
    return (platform.os, platform.architecture) == _UNKNOWN


def is_of_an_image(manifest: Mapping[str, Any]) -> bool:
    """Return False for a manifest, as JSON, whose config does not have an image's type."""
    config = manifest.get("config")
    kind = config.get("mediaType") if isinstance(config, dict) else None
    return not isinstance(kind, str) or kind in _CONFIGS


def read_artifact(layout: Layout, descriptor: Descriptor) -> AnyManifest | None:
    """Return the manifest of an artifact; None for an image's manifest, and for other media types.

    Raises:
        MalformedDocument, BlobNotFound, DigestMismatch, SizeMismatch: as reading it.
    """
    if descriptor.media_type != MEDIA_TYPE_MANIFEST:
        return None
    raw = layout.read(descriptor)
    if is_of_an_image(parse_document(Document, raw, descriptor.digest).model_extra or {}):
        return None
    return parse_document(AnyManifest, raw, descriptor.digest)


# --- choice of the image ---------------------------------------------------------------------------


def choose(layout: Layout, tag: str, platform: str | None = None) -> Walk:
    """Return the walk to the only manifest that ``tag`` leads to, else to the only image (for ``platform``).

    If the layout holds just one image of an index, that one is chosen unless a platform is given.

    Raises:
        InvalidReference, TagNotFound, AmbiguousReference, LimitExceeded: as :func:`resolve`.
        BlobNotFound: the layout does not hold the image.
        MalformedDocument, DigestMismatch, SizeMismatch: as reading the indexes.
    """
    named = layout.find(tag)
    if not named:
        check_refname(tag)
        raise TagNotFound(f"tag {tag!r} not found", where=layout.path)
    # One manifest may serve several platforms; reaching it on two paths is not ambiguous.
    found: dict[tuple[str, str | None], Walk] = {}
    for walk in walks(layout, named):
        found.setdefault((walk[-1].digest, named_platform(walk[-1])), walk)
    if not found:
        raise TagNotFound(f"tag {tag!r} names an index without manifests", where=layout.path)
    only = next(iter(found.values()))
    if platform is None and len({digest for digest, _ in found}) == 1 and not layout.lacks(only[-1]):
        return only
    images = [(walk, _platform(layout, walk[-1])) for walk in found.values() if not is_artifact(layout, walk[-1])]
    if platform is not None:
        images = [images[place] for place in matching(platform, [text for _, text in images])]
    what = f"image for platform {platform!r}" if platform is not None else "image"
    if not images:
        raise TagNotFound(f"tag {tag!r} has no {what}", where=layout.path)
    here = {walk[-1].digest: (walk, text) for walk, text in reversed(images) if not layout.lacks(walk[-1])}
    if not here:
        raise BlobNotFound(
            f"tag {tag!r} leads to an {what} that this layout does not hold",
            where=images[0][0][-1].digest,
            hint="copy it into the layout with all its platforms (skopeo copy --all)",
        )
    if len(here) > 1:
        there = ", ".join(sorted({text or "unknown" for _, text in here.values()}))
        raise AmbiguousReference(
            f"tag {tag!r} leads to {len(here)} images", where=layout.path, hint=f"name a platform of {there}"
        )
    ((walk, _),) = here.values()
    return walk


def _platform(layout: Layout, descriptor: Descriptor) -> str | None:
    """Return the image's platform by its descriptor, else by its config; None: unknown."""
    named = named_platform(descriptor)
    if named is None:
        with suppress(LayerfarmError):
            named = platform_text(_read_config(layout, read_manifest(layout, descriptor)))
    return named


def named_platform(descriptor: Descriptor) -> str | None:
    """Return the platform that the descriptor itself names; ``{}`` or half of one counts as none."""
    platform = descriptor.platform
    return platform_text(platform) if platform is not None and platform.os and platform.architecture else None


# --- platforms, as Go and the image-spec name them (image-index.md) ---------------------------------

_MACHINES: Final = {
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
_DEFAULT_VARIANTS: Final = {"amd64": "v1", "arm64": "v8", "arm": "v7"}
"""The variant of a platform that names none, by containerd's platforms/database.go."""
_ALIASES: Final = {
    "i386": ("386", ""),
    "x86_64": ("amd64", None),
    "x86-64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
"""Other names of architectures, and the variant that such a name implies; None: none."""


def host_platform() -> Platform:
    """Linux on this machine's processor, the ARM variant included."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, None))
    return Platform(os="linux", architecture=architecture, variant=variant)


def platform_text(platform: Platform | ImageConfig) -> str:
    """Format as ``os/arch[/variant]``."""
    parts = [platform.os or "unknown", platform.architecture or "unknown", platform.variant or ""]
    return "/".join(part for part in parts if part)


def matching(wanted: str, found: Sequence[str | None]) -> list[int]:
    """Return the positions in ``found`` that match the platform ``wanted``: equal ones, normalised as containerd does.

    If there are none, a platform without a variant matches every variant. None in ``found``: unknown.
    """
    wish = _normalised(wanted)
    known = [None if text is None else _normalised(text) for text in found]
    equal = [place for place, platform in enumerate(known) if platform == wish]
    if equal or wanted.count("/") != 1:
        return equal
    return [place for place, platform in enumerate(known) if platform is not None and platform[:2] == wish[:2]]


def _normalised(text: str) -> tuple[str, ...]:
    """Return operating system, architecture, variant, and further fields of ``text``, which match no platform."""
    system, _, rest = text.lower().partition("/")
    architecture, *more = rest.split("/")
    architecture, implied = _ALIASES.get(architecture, (architecture, None))
    variant = more[0] if more and implied is None else implied or ""
    if variant.isdecimal() and architecture in _DEFAULT_VARIANTS:
        variant = f"v{variant}"
    return (system, architecture, variant or _DEFAULT_VARIANTS.get(architecture, ""), *more[1:])
