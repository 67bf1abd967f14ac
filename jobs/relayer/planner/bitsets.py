"""A catalog as the planner sees it: images as columns of bits, components by which images hold which version.

A set of images is one integer, a bit for each: with 5,000 images that is 625 bytes, and the union or the
intersection of two sets takes 0.1 us.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from layerfarm.jobs.relayer.planner.plan import Snapshot

Columns = int
"""A set of images."""

_PRIOR = 2.0
"""Tags for which what is usual in the catalog counts."""
_USUAL = 0.05
"""Updates per source and tag where no tag has a predecessor to learn from."""
_LEAST = 0.01
"""The same at least, where it has: that nothing changed in a few tags does not mean that nothing will."""


@dataclass(frozen=True)
class Catalog:
    """The images of a catalog, sorted by line and time."""

    images: tuple[Snapshot, ...]
    before: tuple[int | None, ...]
    """Of each column the one before it in its line."""
    followers: Columns
    """The columns that have one before them: where a pull is counted."""
    last: Columns
    """The newest of each line."""
    horizon: float
    """For how many tags more than the observed ones it is planned: as many as a line has had."""

    @classmethod
    def of(cls, images: Iterable[Snapshot]) -> Catalog:
        ordered = tuple(sorted(images, key=lambda image: (image.line, image.when, image.tag)))
        before: list[int | None] = []
        followers = last = 0
        lines: defaultdict[str, int] = defaultdict(int)
        for column, image in enumerate(ordered):
            follows = column > 0 and ordered[column - 1].line == image.line
            before.append(column - 1 if follows else None)
            lines[image.line] += 1
            if follows:
                followers |= 1 << column
            if column + 1 == len(ordered) or ordered[column + 1].line != image.line:
                last |= 1 << column
        return cls(ordered, tuple(before), followers, last, float(max(lines.values(), default=1)))


@dataclass(frozen=True)
class Cluster:
    """Components that share a layer, in all images."""

    keys: tuple[str, ...]
    owners: Columns
    changed: Columns
    """Followers that hold it otherwise than the image before: another version, more of it or less."""
    variants: tuple[tuple[Columns, int], ...]
    """Each different content: the images that have it, and its bytes. In the order of the lowest image."""
    sources: frozenset[str]
    rate: float
    """Updates expected per tag, besides the observed ones: the sum over the sources."""
    locked: bool = False
    """Of a plan that is to be kept."""

    @cached_property
    def weight(self) -> int:
        """Bytes of its largest content."""
        return max((size for _, size in self.variants), default=0)

    @cached_property
    def sketch(self) -> tuple[Columns, Columns, int, float]:
        """Owners, changed, bytes of the smallest content, and the chance of an update that was not observed.

        For :meth:`layerfarm.jobs.relayer.planner.costs.Costs.guess`."""
        least = min((size for _, size in self.variants), default=0)
        return self.owners, self.changed, least, -math.expm1(-self.rate)


def clusters_of(catalog: Catalog) -> list[Cluster]:
    """Each component of the catalog as a cluster of its own, sorted by key."""
    held: defaultdict[str, dict[str, list[int]]] = defaultdict(dict)
    sources: dict[str, str] = {}
    for column, image in enumerate(catalog.images):
        bit = 1 << column
        for part in image.parts:
            known = held[part.key].setdefault(part.digest, [0, part.packed])
            known[0] |= bit
            sources[part.key] = part.source or part.key
    return [_cluster(catalog, key, sources[key], held[key]) for key in sorted(held)]


def _cluster(catalog: Catalog, key: str, source: str, held: dict[str, list[int]]) -> Cluster:
    variants = sorted(
        ((columns, size) for columns, size in held.values()), key=lambda variant: variant[0] & -variant[0]
    )
    owners = changed = same = 0
    for columns, _ in variants:
        owners |= columns
        same |= (columns << 1) & columns  # the image before has the same, if it is of the same line
    before = (owners << 1) | owners
    changed = before & ~same & catalog.followers
    return Cluster((key,), owners, changed, tuple(variants), frozenset((source,)), 0.0)


def update_rates(catalog: Catalog, clusters: Iterable[Cluster]) -> dict[str, float]:
    """For each source the updates to be expected per tag, besides those that were observed.

    How often sources change at all is learnt from the whole catalog, and weighs as much as :data:`_PRIOR` tags:
    the longer a source has been watched, the less is expected of it that was not seen.
    """
    seen: dict[str, float] = {}
    updates: dict[str, float] = {}
    for cluster in clusters:
        lines = max(1, (cluster.owners & catalog.last).bit_count())
        steps = (cluster.owners & catalog.followers).bit_count() / lines
        changes = (cluster.owners & cluster.changed).bit_count() / lines
        for source in cluster.sources:
            seen[source] = max(seen.get(source, 0.0), steps)
            updates[source] = max(updates.get(source, 0.0), changes)
    # What is generated anew in every image says nothing about how often packages are updated.
    steady = [source for source in sorted(seen) if seen[source] and updates[source] < seen[source]]
    watched = sum(seen[source] for source in steady)
    usual = max(_LEAST, sum(updates[source] for source in steady) / watched) if watched else _USUAL
    return {source: -math.log1p(-usual * _PRIOR / (steps + _PRIOR)) for source, steps in seen.items()}


def lowest_possible(catalog: Catalog) -> int:
    """Bytes of every component of every version, each once."""
    sizes: dict[tuple[str, str], int] = {}
    for image in catalog.images:
        for part in image.parts:
            sizes[part.key, part.digest] = part.packed
    return sum(sizes.values())
