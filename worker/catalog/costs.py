"""The costs of images: layers, bytes stored, and bytes that a host pulls from one tag to the next.

A host pulls one platform of an index. *Stored* bytes are those of all different blobs of all platforms. A *pull* is
what a host that has one tag of a repository must fetch for the next one: the blobs that the first does not have, on
average over the platforms that both have. Both count layers and configurations, compressed, each blob once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from sys import intern
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from layerfarm.jobs.image import ImageConfig
from layerfarm.jobs.image.check_layer import has_toc
from layerfarm.jobs.image.resolve import platform_text
from layerfarm.jobs.store import Descriptor, Layout, parse_document
from layerfarm.worker.catalog.offers import Offer, Read, look_at

_NO_TABLES: Final[dict[str, Descriptor]] = {}


class Pullable(NamedTuple):
    """One platform of an image, as a host pulls it."""

    layers: tuple[str, ...]
    """Digests, or placeholders for planned layers; repeated ones are repeated here, as in the manifest."""
    blobs: Mapping[str, int]
    """Bytes of each layer and of the configuration."""
    tables: dict[str, Descriptor] = _NO_TABLES
    """The layers, by digest, that have a table of contents: clients may pull them in part."""


Holding = Mapping[str, Pullable]
"""One image of the catalog, by platform."""


class Row(BaseModel):
    """A row of a report."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SharedRow(Row):
    """The layers that exactly these images have."""

    images: tuple[str, ...]
    layers: int
    bytes: int


class Totals(Row):
    """The catalog in one state."""

    images: int
    layers: int
    """Number of different layers."""
    stored: int
    """Bytes of all different blobs."""
    pulled: int
    """Bytes of all pulls from one tag to the next."""
    pulls: int
    pulled_in_part: int | None = None
    """The same for a client that pulls layers in part; None: no layer has a table of contents."""


def holding_of(layout: Layout, top: Descriptor) -> dict[str, Pullable]:
    """Return the layers and configurations of an image in any format, or the content of an artifact.

    Raises:
        StoreError: the layout does not hold its manifests and configurations.
    """
    offer = look_at(layout, top)
    return holding_in(layout, offer, offer)


def holding_in(layout: Layout, copy: Offer, original: Offer) -> dict[str, Pullable]:
    """Return the layers and configurations of ``original``, whose copy in the layout may have been converted.

    Hosts pull the original: the configurations of a conversion have other sizes.
    """
    images = original.images or original.leaves
    platforms = numbered(_platform(layout, each) for each in copy.images or copy.leaves)
    return {name: pullable(each.layers, each.config) for name, each in zip(platforms, images, strict=True)}


def numbered(platforms: Iterable[str]) -> list[str]:
    """Return the platforms of an index's images; further images of one platform get a number."""
    seen: defaultdict[str, int] = defaultdict(int)
    names = []
    for platform in platforms:
        seen[platform] += 1
        names.append(platform if seen[platform] == 1 else f"{platform} {seen[platform]}")
    return names


def _platform(layout: Layout, manifest: Read) -> str:
    """Return the platform of an image, the type of an artifact."""
    config = manifest.config
    if not manifest.is_image or config is None:
        return manifest.kind
    return platform_text(parse_document(ImageConfig, layout.read(config), config.digest))


def pullable(layers: Sequence[Descriptor], config: Descriptor | None) -> Pullable:
    """Return what a host without any of it pulls."""
    # Images share most of their layers: one string for each.
    blobs = {intern(blob.digest): blob.size for blob in (*layers, *([config] if config else []))}
    tables = {intern(layer.digest): layer for layer in layers if has_toc(layer)} or _NO_TABLES
    return Pullable(tuple(intern(layer.digest) for layer in layers), blobs, tables)


def layer_count(holding: Holding) -> int:
    """Return the number of layers of the platform with the most: each platform has its own limit."""
    return max(len(each.layers) for each in holding.values())


def nbytes(holding: Holding) -> int:
    """Return the bytes of the image, all platforms together, each blob once."""
    return sum({digest: size for each in holding.values() for digest, size in each.blobs.items()}.values())


def totals(
    images: Mapping[str, Holding], costs: Mapping[str, int | None], in_part: Mapping[str, int | None] | None = None
) -> Totals:
    """Return the costs of images with these :func:`pulls`; ``in_part``: those of a client that pulls layers in part."""
    blobs: dict[str, int] = {}
    layers: set[str] = set()
    for held in images.values():
        for each in held.values():
            blobs.update(each.blobs)
            layers.update(each.layers)
    known = [cost for cost in costs.values() if cost is not None]
    return Totals(
        images=len(images),
        layers=len(layers),
        stored=sum(blobs.values()),
        pulled=sum(known),
        pulls=len(known),
        pulled_in_part=None if in_part is None else sum(filter(None, in_part.values())),
    )


def missing_blobs(wanted: Pullable, there: Pullable) -> int:
    """Return the bytes of the blobs that a host lacks, which has those of ``there``."""
    return sum(size for digest, size in wanted.blobs.items() if digest not in there.blobs)


Fetched = Callable[[Pullable, Pullable], int]
"""Bytes that a host fetches of the first, which has the second."""


def pulls(
    images: Mapping[str, Holding], series: Iterable[Sequence[str]], fetched: Fetched = missing_blobs
) -> dict[str, int | None]:
    """Return, by image, the bytes of its pull for a host that has the preceding tag; None if no platform has one."""
    costs: dict[str, int | None] = {}
    for repository in series:
        before: Holding = {}
        for name in repository:
            if name in images:
                costs[name] = pull(images[name], before, fetched)
                before = images[name]
    return costs


def pull(wanted: Holding, there: Holding, fetched: Fetched = missing_blobs) -> int | None:
    """Return the bytes to fetch for a host that has the image ``there``, on average over their common platforms."""
    costs = [fetched(each, there[platform]) for platform, each in wanted.items() if platform in there]
    return round(sum(costs) / len(costs)) if costs else None


def shared(images: Mapping[str, Holding]) -> tuple[SharedRow, ...]:
    """Return the layers by the exact set of images that have them, most bytes first."""
    holders: defaultdict[str, list[str]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for name in sorted(images):
        for each in images[name].values():
            for digest in each.layers:
                names = holders[digest]
                if not names or names[-1] != name:
                    names.append(name)
                    sizes[digest] = each.blobs[digest]
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for digest, holding in holders.items():
        groups[tuple(holding)].append(sizes[digest])
    rows = [SharedRow(images=names, layers=len(found), bytes=sum(found)) for names, found in groups.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.images)))
