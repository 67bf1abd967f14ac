"""Choose platforms of an image: its indexes are rewritten, so that they name no others.

An entry of an index is judged by the platform that it names, so that manifests of other platforms need not be fetched.
One that names none is read, with its configuration.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from layerfarm.jobs.errors import MalformedDocument
from layerfarm.jobs.image import ImageConfig
from layerfarm.jobs.image.resolve import is_marked_attestation, matching, named_platform, platform_text
from layerfarm.jobs.limits import limits
from layerfarm.jobs.relayer.indexes import REFERENCE_DIGEST
from layerfarm.jobs.store import Descriptor, parse_document
from layerfarm.jobs.store.reachability import INDEX_TYPES, MANIFEST_TYPES, children
from layerfarm.worker.catalog.offers import Offer, Origin, Read, follow, parsed
from layerfarm.worker.catalog.registry import digest_of


class Chosen(NamedTuple):
    """The chosen platforms of an image."""

    offer: Offer | None
    """None: the image has none of them."""
    lacking: frozenset[str]
    """Platforms that were asked for, and that the image does not have."""
    platforms: tuple[str, ...]
    """All platforms of the image; empty: it is an artifact, which stays as it is."""


def choose(origin: Origin, platforms: Sequence[str]) -> Chosen:
    """Return the image with these platforms alone, ``os/arch[/variant]``.

    An index that names no others keeps its bytes. Attestations stay with their images, other artifacts stay.
    Platforms are compared as :func:`layerfarm.jobs.image.resolve.matching` does.

    Raises:
        LayerfarmError: as :meth:`Origin.offer`.
    """
    return _Choice(origin).of(platforms)


class _Choice:
    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._indexes: dict[str, list[Descriptor]] = {}
        """Entries of the indexes, by digest."""
        self._documents: dict[str, dict[str, Any]] = {}
        self._platforms: dict[tuple[str, int], str] = {}
        """Platforms of the images, by their index and place in it."""
        self._written: dict[str, bytes] = {}
        """Rewritten indexes, by their new digests."""

    def of(self, platforms: Sequence[str]) -> Chosen:
        top, raw = self._origin.top, self._origin.raw
        self._read(top, raw)
        if top.digest not in self._indexes:
            image = self._origin.offer().manifests[0]
            if image.is_image:
                self._platforms[top.digest, 0] = self._platform_in(image)
        if not self._platforms:
            return Chosen(self._origin.offer(), frozenset(), ())
        places, texts = list(self._platforms), list(self._platforms.values())
        found = {wanted: matching(wanted, texts) for wanted in platforms}
        chosen = {places[at] for each in found.values() for at in each}
        lacking = frozenset(wanted for wanted, each in found.items() if not each)
        offer = None
        if chosen and (new := self._rewritten(top, chosen)) is not None:
            offer = follow(new, self._written.get(new.digest, raw), self._fetch)
            offer = replace(offer, full=tuple(digest for digest in self._indexes if digest not in offer.digests))
        return Chosen(offer, lacking, tuple(dict.fromkeys(texts)))

    def _fetch(self, child: Descriptor) -> bytes | None:
        return self._written.get(child.digest) or self._origin.fetch(child)

    # --- the platforms ---------------------------------------------------------------------------

    def _read(self, top: Descriptor, raw: bytes) -> None:
        """Read all indexes, and the platforms of their images."""
        pending = [(top, raw, 1)]
        for descriptor, content, depth in pending:  # grows
            if depth > limits().index_depth:
                raise limits().exceeded("index_depth", "indexes are nested deeper than {}", descriptor.digest)
            document = parsed(content, descriptor.digest)
            if "manifests" not in document or descriptor.digest in self._indexes:
                continue
            if len(self._indexes) >= limits().manifests:
                raise limits().exceeded("manifests", "tag leads to more than {} manifests", top.digest)
            self._documents[descriptor.digest] = document
            self._indexes[descriptor.digest] = entries = _entries(document["manifests"], descriptor.digest)
            for place, child in enumerate(entries):
                if child.media_type in INDEX_TYPES:
                    below = self._origin.fetch(child)
                    pending += [(child, below, depth + 1)] if below is not None else []
                elif (platform := self._platform(child)) is not None:
                    self._platforms[descriptor.digest, place] = platform

    def _platform(self, child: Descriptor) -> str | None:
        """Return the platform of an entry; None: it is not an image, or absent without naming a platform."""
        if is_marked_attestation(child) or child.media_type not in MANIFEST_TYPES:
            return None
        if (named := named_platform(child)) is not None:
            return named
        raw = self._origin.fetch(child)
        if raw is None:
            return None
        image = follow(child, raw, self._origin.fetch).manifests[0]
        return self._platform_in(image) if image.is_image else None

    def _platform_in(self, image: Read) -> str:
        return platform_text(parse_document(ImageConfig, self._origin.config(image), image.descriptor.digest))

    # --- the new indexes -------------------------------------------------------------------------

    def _rewritten(self, index: Descriptor, chosen: set[tuple[str, int]]) -> Descriptor | None:
        """Return the index, or image, with the chosen images alone; None: it has none of them."""
        entries = self._indexes.get(index.digest)
        if entries is None:
            return index
        images = {entries[place].digest for digest, place in chosen if digest == index.digest}
        document = self._documents[index.digest]
        left: list[dict[str, Any]] = []
        for place, (child, plain) in enumerate(zip(entries, document["manifests"], strict=True)):
            subject = (child.annotations or {}).get(REFERENCE_DIGEST)
            if child.digest in self._indexes:
                below = self._rewritten(child, chosen)
                left += [plain | {"digest": below.digest, "size": below.size}] if below is not None else []
            elif (index.digest, place) in self._platforms:
                left += [plain] if (index.digest, place) in chosen else []
            elif subject is None or subject in images:
                left.append(plain)
        if left == document["manifests"]:
            return index
        if not left:
            return None
        raw = json.dumps(document | {"manifests": left}, separators=(",", ":"), ensure_ascii=False).encode()
        self._written[digest_of(raw)] = raw
        return index.model_copy(update={"digest": digest_of(raw), "size": len(raw)})


def _entries(manifests: Any, where: str) -> list[Descriptor]:
    """Return the entries of an index, in order. Raises MalformedDocument: one is not a descriptor."""
    entries = [child for child, _ in children({"manifests": manifests}, where, lambda _: True)][::-1]
    if not isinstance(manifests, list) or len(entries) != len(manifests):
        raise MalformedDocument("manifests of the index are not a list of descriptors", where=where)
    return entries
