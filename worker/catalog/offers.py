"""The content behind a tag of a registry or a layout, in any format: its manifests byte for byte, and its blobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from layerfarm.jobs.errors import MalformedDocument
from layerfarm.jobs.image.resolve import is_marked_attestation, is_of_an_image
from layerfarm.jobs.limits import limits
from layerfarm.jobs.relayer import indexes
from layerfarm.jobs.store import MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, Descriptor, Layout, parse_document
from layerfarm.jobs.store.document import Document
from layerfarm.jobs.store.reachability import MANIFEST_TYPES, children
from layerfarm.worker.catalog.places import repository_in
from layerfarm.worker.catalog.registry import ImageReader, digest_of

_DOCKER: Final = "application/vnd.docker.distribution.manifest."
_CONTAINERD_NAME: Final = "io.containerd.image.name"
_IMAGE_TYPES: Final = (MEDIA_TYPE_MANIFEST, f"{_DOCKER}v2+json")


@dataclass(frozen=True)
class Read:
    """One manifest or index."""

    descriptor: Descriptor
    raw: bytes
    document: dict[str, Any]
    blobs: tuple[Descriptor, ...]
    """All other blobs that it names, without layers that are fetched from elsewhere (``urls``)."""

    @property
    def is_index(self) -> bool:
        return "manifests" in self.document

    @property
    def is_image(self) -> bool:
        """False for an index, an attestation and any other artifact."""
        return (
            not self.is_index
            and self.descriptor.media_type in _IMAGE_TYPES
            and not is_marked_attestation(self.descriptor)
            and is_of_an_image(self.document)
        )

    @property
    def kind(self) -> str:
        """Return the artifact type, else the media type of the config, else that of the manifest."""
        config = self.config
        return str(self.document.get("artifactType") or (config.media_type if config else self.descriptor.media_type))

    @cached_property
    def config(self) -> Descriptor | None:
        found = self._named("config")
        return found[0] if found else None

    @property
    def layers(self) -> list[Descriptor]:
        return self._named("layers")

    def _named(self, field: str) -> list[Descriptor]:
        found = children({field: self.document.get(field)}, self.descriptor.digest, lambda _: False)
        return [child for child, _ in found][::-1]


@dataclass(frozen=True)
class Offer:
    """The current content of an origin's reference."""

    manifests: tuple[Read, ...]
    """The manifest or index that the reference names, and all manifests below it in the order of the indexes."""
    full: tuple[str, ...] = ()
    """Digests of the indexes from which platforms were removed; the offer has others in their place."""

    @property
    def top(self) -> Descriptor:
        return self.manifests[0].descriptor

    @property
    def digest(self) -> str:
        """Return the digest that the reference names."""
        return self.top.digest

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All :attr:`Read.blobs`, each once."""
        return tuple({blob.digest: blob for each in self.manifests for blob in each.blobs}.values())

    @property
    def leaves(self) -> list[Read]:
        """The manifests other than indexes: of images, attestations and other artifacts."""
        return [each for each in self.manifests if not each.is_index]

    @property
    def digests(self) -> list[str]:
        """Return the digests of all manifests."""
        return [each.descriptor.digest for each in self.manifests]

    @property
    def images(self) -> list[Read]:
        """Return the manifests of images, one for each platform."""
        return [each for each in self.manifests if each.is_image]

    @property
    def artifact(self) -> str | None:
        """Return the type of the artifact, such as a Helm chart, that the reference names; None: it leads to images."""
        if self.images:
            return None
        return next((each.kind for each in self.leaves), self.top.media_type)

    @property
    def is_docker(self) -> bool:
        """Return True if a manifest is in one of Docker's own formats."""
        return any(each.descriptor.media_type.startswith(_DOCKER) for each in self.manifests)

    def needed(self, exact: bool) -> tuple[Descriptor, ...]:
        """Return the blobs of its copy. Unless it is ``exact``, Docker formats are converted, configurations too."""
        if exact or not self.is_docker:
            return self.blobs
        converted = {each.config.digest for each in self.manifests if each.config is not None}
        return tuple(blob for blob in self.blobs if blob.digest not in converted)


@dataclass(frozen=True)
class Origin:
    """One reference of a registry, or one name of a layout; what it leads to is read when it is needed."""

    top: Descriptor
    raw: bytes
    """The manifest or index that it names."""
    fetch: Callable[[Descriptor], bytes | None]
    """Reads a manifest below it; None: absent, which a layout may be."""
    config: Callable[[Read], bytes]
    """Reads the configuration of an image."""

    def offer(self) -> Offer:
        """Read all manifests.

        Raises:
            RegistryError, RegistryBusy: as :class:`~layerfarm.worker.catalog.registry.Skopeo`.
            StoreError: a manifest in a layout is corrupt.
            MalformedDocument: it is not a manifest.
            LimitExceeded: it leads to too many manifests.
        """
        return follow(self.top, self.raw, self.fetch)

    def manifests(self) -> Iterator[Read]:
        """Yield the manifests of :meth:`offer`, each read when it is its turn. Raises as :meth:`offer`."""
        return _walk(self.top, self.raw, self.fetch)


def in_registry(reader: ImageReader, reference: str) -> Origin:
    """Return ``docker://HOST/REPOSITORY:TAG`` or ``…@DIGEST``. Raises as :meth:`Origin.offer`."""
    repository = repository_in(reference)
    raw = reader.raw_manifest(reference)
    media_type = _media_type(parsed(raw, reference))
    top = Descriptor(mediaType=media_type, digest=digest_of(raw), size=len(raw))

    def config(image: Read) -> bytes:
        assert image.config is not None
        return reader.raw_config(f"{repository}@{image.descriptor.digest}", image.config.digest)

    return Origin(top, raw, lambda child: reader.raw_manifest(f"{repository}@{child.digest}"), config)


def in_layout(layout: Layout, top: Descriptor) -> Origin:
    """Return a manifest or index of a layout, in which manifests of an index may be absent.

    Raises:
        StoreError: it is corrupt.
    """

    def config(image: Read) -> bytes:
        assert image.config is not None
        return layout.read(image.config)

    return Origin(top, layout.read(top), lambda child: None if layout.lacks(child) else layout.read(child), config)


def look(reader: ImageReader, reference: str) -> Offer:
    """Return the offer of ``docker://HOST/REPOSITORY:TAG`` or ``…@DIGEST``. Raises as :meth:`Origin.offer`."""
    return in_registry(reader, reference).offer()


def look_at(layout: Layout, top: Descriptor) -> Offer:
    """Return the offer of a manifest or index in a layout. Raises as :meth:`Origin.offer`."""
    return in_layout(layout, top).offer()


def names_in(layout: Layout) -> list[str]:
    """Return the names of the images in a layout: its tags.

    One tag may name several images, as ``docker save`` writes them, distinguished by ``io.containerd.image.name``. Then
    that gives the names, without the host: ``library/web:latest`` instead of ``latest``.
    """
    places = layout.index_text().places
    names: list[str] = []
    for tag, found in places.items():
        own = [_own_name(entry) for entry in layout.find(tag)] if len(found) > 1 else []
        told_apart = len(set(own)) > 1 and all(name and own.count(name) == 1 and name not in places for name in own)
        names += [name or "" for name in own] if told_apart else [tag]
    return names


def find(layout: Layout, name: str) -> Descriptor:
    """Return the descriptor of an image that :func:`names_in` lists, without its annotations in the index.

    Raises:
        TagNotFound, AmbiguousReference: no image has the name, or several have it.
    """
    if not layout.find(name):
        for entry in layout.index().manifests:
            if _own_name(entry) == name:
                return entry.model_copy(update={"annotations": None})
    return tagged(layout, name)


def _own_name(entry: Descriptor) -> str | None:
    """Return repository and tag of ``io.containerd.image.name``; None: it is missing, or not a tag."""
    name = (entry.annotations or {}).get(_CONTAINERD_NAME, "")
    host, slash, path = name.partition("/")
    if slash and (set(".:") & set(host) or host == "localhost"):
        name = path
    return name if ":" in name and "@" not in name else None


def tagged(layout: Layout, tag: str) -> Descriptor:
    """Return the descriptor that the tag names, without its annotations in the index.

    Raises:
        TagNotFound, AmbiguousReference: the tag names nothing, or several manifests.
    """
    return indexes.tagged(layout, tag).model_copy(update={"annotations": None})


def parsed(raw: bytes, where: str) -> dict[str, Any]:
    """Parse a manifest or index, of any format, as JSON. Raises MalformedDocument: it is not one."""
    document = parse_document(_Any, raw, where).model_dump(by_alias=True)
    if "schemaVersion" not in document or document.get("schemaVersion") == 1:
        raise MalformedDocument("not a manifest that layerfarm reads (Docker's schema 1?)", where=where)
    return document


class _Any(Document):
    """Any JSON object."""


def _media_type(document: dict[str, Any]) -> str:
    named = document.get("mediaType")
    if isinstance(named, str) and named:
        return named
    return MEDIA_TYPE_INDEX if "manifests" in document else MEDIA_TYPE_MANIFEST


def follow(top: Descriptor, raw: bytes, fetch: Callable[[Descriptor], bytes | None]) -> Offer:
    """Read all manifests below ``top``. Raises as :meth:`Origin.offer`."""
    return Offer(tuple(_walk(top, raw, fetch)))


def _walk(top: Descriptor, raw: bytes, fetch: Callable[[Descriptor], bytes | None]) -> Iterator[Read]:
    seen: set[str] = set()
    pending: list[tuple[Descriptor, bytes | None]] = [(top, raw)]
    while pending:
        descriptor, content = pending.pop()
        if descriptor.digest in seen:
            continue
        content = fetch(descriptor) if content is None else content
        if content is None:
            continue
        if len(seen) >= limits().manifests:
            raise limits().exceeded("manifests", "tag leads to more than {} manifests", top.digest)
        document = parsed(content, descriptor.digest)
        blobs = []
        # In reverse order, so that the first is the next to be taken.
        for child, leads_on in children(document, descriptor.digest, lambda _: False):
            if leads_on and child.media_type in MANIFEST_TYPES:
                pending.append((child, None))
            elif not child.urls:
                blobs.append(child)
        seen.add(descriptor.digest)
        yield Read(descriptor, content, document, tuple(blobs))
