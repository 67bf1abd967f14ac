"""A catalog as bitsets: images as columns, clusters of components by the images that hold each version, their cost.

A set of images is one integer with a bit for each: 625 bytes for 5,000 images; a union or an intersection takes
0.1 us.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from struct import iter_unpack
from typing import NamedTuple

from layerfarm.jobs.relayer.planner.plan import Snapshot

Columns = int
"""A set of images."""

REQUEST_BYTES = 16 << 10
"""Cost of one more layer in a pull, in bytes, without its content: a round trip of 10 ms at some 13 Mbit/s, its
descriptor in manifest and config, the end of its tar."""
_PRIOR = 2.0
"""Weight, in tags, of the catalog's usual rate of updates."""
_USUAL = 0.05
"""Updates per source and tag where no tag has a predecessor."""
_LEAST = 0.01
"""The lowest usual rate: no change in a few tags does not mean that there will be none."""
_FEW = 8
_INDEXED = 128
"""Clusters whose contents are indexed by image: those of one image are compared again and again."""


@dataclass(frozen=True)
class Catalog:
    """The images of a catalog, sorted by line and time."""

    images: tuple[Snapshot, ...]
    before: tuple[int | None, ...]
    """For each column the one before it in its line."""
    followers: Columns
    """The columns that have one before them: those where a pull is counted."""
    last: Columns
    """The newest of each line."""
    horizon: float
    """Future tags that the plan takes into account: as many as the longest line has had."""

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


@dataclass(frozen=True, eq=False)
class Cluster:
    """Components that share a layer, in all images. Equal only to itself."""

    keys: tuple[str, ...]
    owners: Columns
    changed: Columns
    """Followers with another content of it than the image before."""
    variants: tuple[tuple[Columns, int], ...]
    """Each different content: the images that have it, and its bytes; sorted by the lowest image."""
    sources: frozenset[str]
    rate: float
    """Updates expected per tag, besides the observed ones: the sum of those of its sources."""
    locked: bool = False
    """True for a group of the previous plan."""

    @cached_property
    def weight(self) -> int:
        """Bytes of its largest content."""
        return max((size for _, size in self.variants), default=0)


class Sketch(NamedTuple):
    """A cluster as :meth:`Costs.guess` sees it: sums over its contents."""

    owners: Columns
    changed: Columns
    least: int
    """Bytes of the smallest content."""
    mean: float
    """Bytes of the content of an owner, on average."""
    new: int
    """Bytes and requests of the contents that the newest images have."""
    renewed: int
    """The same, for each of these images."""
    chance: float
    """Chance of an update that was not observed."""
    sources: frozenset[str]


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
    variants = sorted(((columns, size) for columns, size in held.values()), key=_lowest)
    owners = changed = same = 0
    for columns, _ in variants:
        owners |= columns
        same |= (columns << 1) & columns  # the image before has the same, if it is of the same line
    before = (owners << 1) | owners
    changed = before & ~same & catalog.followers
    return Cluster((key,), owners, changed, tuple(variants), frozenset((source,)), 0.0)


def update_rates(catalog: Catalog, clusters: Iterable[Cluster]) -> dict[str, float]:
    """For each source the updates expected per tag, besides those that were observed.

    The usual rate of the whole catalog weighs as much as :data:`_PRIOR` tags: the more tags of a source were
    observed, the fewer unseen updates are expected of it.
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
    # Components that differ in every image say nothing about how often packages are updated.
    steady = [source for source in sorted(seen) if seen[source] and updates[source] < seen[source]]
    watched = sum(seen[source] for source in steady)
    usual = max(_LEAST, sum(updates[source] for source in steady) / watched) if watched else _USUAL
    return {source: -math.log1p(-usual * _PRIOR / (steps + _PRIOR)) for source, steps in seen.items()}


@dataclass(frozen=True)
class Costs:
    """The measure of a plan: lower is better."""

    catalog: Catalog
    pulls: float = 1.0
    """Pulls of each tag by hosts that have the one before it."""
    request: int = REQUEST_BYTES

    def of(self, cluster: Cluster) -> float:
        """Bytes stored and bytes pulled, both observed and expected.

        Observed pulls show which components change together. Expected ones keep hundreds of components that have
        not changed yet from being put into one layer for that reason.
        """
        return self._price(cluster.variants, cluster.changed, cluster.rate)

    def together(self, one: Cluster, other: Cluster, rates: Mapping[str, float]) -> float:
        """Return the cost of the two clusters merged: that of :func:`merged`, which is not made for it."""
        changed, rate = one.changed | other.changed, _rate(one, other, rates)
        if min(len(one.variants), len(other.variants)) <= _FEW:
            return self._price(_crossed(one, other), changed, rate)
        both, request = one.owners & other.owners, self.request
        stored = self._combined(one, other, both)
        new = self._combined(one, other, both & self.catalog.last)
        observed = request * ((one.owners | other.owners) & changed).bit_count()
        renewed = request * ((one.owners | other.owners) & self.catalog.last).bit_count()
        for cluster in (one, other):
            for columns, size in cluster.variants:
                observed += size * (columns & changed).bit_count()
                alone, current = columns & ~both, columns & self.catalog.last
                if alone:
                    stored += size + request
                if current:
                    renewed += size * current.bit_count()
                    if alone & current:
                        new += size + request
        return self._total(stored, observed, new, renewed, rate)

    def _combined(self, one: Cluster, other: Cluster, columns: Columns) -> int:
        """Return the price of each different combination of contents that these images, which own both, have."""
        numbers = bits(columns)
        ours, theirs = _by_column(one), _by_column(other)
        pairs = set(zip(map(ours.__getitem__, numbers), map(theirs.__getitem__, numbers), strict=True))
        return sum(one.variants[mine][1] + other.variants[its][1] + self.request for mine, its in pairs)

    def _price(self, variants: Iterable[tuple[Columns, int]], changed: Columns, rate: float) -> float:
        stored = observed = new = renewed = 0
        last, request = self.catalog.last, self.request
        for columns, size in variants:
            price = size + request
            stored += price
            pulled = columns & changed
            if pulled:
                observed += price * pulled.bit_count()
            current = columns & last
            if current:
                new += price
                renewed += price * current.bit_count()
        return self._total(stored, observed, new, renewed, rate)

    def _total(self, stored: int, observed: int, new: int, renewed: int, rate: float) -> float:
        expected = self.catalog.horizon * -math.expm1(-rate) * (new + self.pulls * renewed)
        return stored + self.pulls * observed + expected

    def sketch(self, cluster: Cluster) -> Sketch:
        """Return the input of :meth:`guess`."""
        total = new = renewed = least = 0
        for columns, size in cluster.variants:
            total += size * columns.bit_count()
            least = size if not least or size < least else least
            current = columns & self.catalog.last
            if current:
                new += size + self.request
                renewed += (size + self.request) * current.bit_count()
        owners, chance = cluster.owners, -math.expm1(-cluster.rate)
        mean = total / max(1, owners.bit_count())
        return Sketch(owners, cluster.changed, least, mean, new, renewed, chance, cluster.sources)

    def guess(self, one: Sketch, other: Sketch) -> float:
        """Return an estimate of the extra cost of two clusters merged, 20 times faster than the exact cost.

        Pulls are counted with mean sizes. What is stored is seldom too high: each combination of two contents, which
        only the exact cost finds, counts as one of them.
        """
        owners, changed, least, mean, new, renewed, chance, sources = one
        others, otherwise, smallest, average, newer, again, risk, origins = other
        # Most pairs are estimated and never merged: 2 us each.
        request, pulls = self.request, self.pulls
        both = owners & others
        stored: float = -request
        if both != owners:
            stored += least
        if both != others:
            stored += smallest
        pulled: float = -request * (changed & otherwise).bit_count()
        if changed != otherwise:
            pulled += mean * (otherwise & ~changed & owners).bit_count()
            pulled += average * (changed & ~otherwise & others).bit_count()
        # Updates of one source come together.
        joint = chance + risk - chance * risk if sources.isdisjoint(origins) else max(chance, risk)
        holders = renewed + again - request * (both & self.catalog.last).bit_count()
        expected = joint * (max(new, newer) + pulls * holders)
        expected -= chance * (new + pulls * renewed) + risk * (newer + pulls * again)
        return stored + pulls * pulled + self.catalog.horizon * expected


def merged(one: Cluster, other: Cluster, rates: Mapping[str, float]) -> Cluster:
    """Return the cluster of all components of both."""
    return Cluster(
        keys=tuple(sorted(one.keys + other.keys)),
        owners=one.owners | other.owners,
        changed=one.changed | other.changed,
        variants=tuple(sorted(_crossed(one, other), key=_lowest)),
        sources=one.sources | other.sources,
        rate=_rate(one, other, rates),
        locked=one.locked or other.locked,
    )


def _lowest(variant: tuple[Columns, int]) -> int:
    return (variant[0] & -variant[0]).bit_length()


def _rate(one: Cluster, other: Cluster, rates: Mapping[str, float]) -> float:
    common = one.sources & other.sources
    # In a fixed order: a sum of floats depends on it in its last bit, and a plan may depend on that.
    return one.rate + other.rate - sum(rates[source] for source in sorted(common))


def _crossed(one: Cluster, other: Cluster) -> list[tuple[Columns, int]]:
    """Return the contents of the merged cluster: each combination in an image, and those without a counterpart."""
    if len(one.variants) < len(other.variants):
        one, other = other, one
    found: list[tuple[Columns, int]] = []
    index = _by_column(other) if len(other.variants) > _FEW else None
    owners, others = one.owners, other.owners
    for columns, size in one.variants:
        both = columns & others
        if both != columns:
            found.append((columns ^ both, size))
        if not both:
            continue
        if index is None:
            for theirs, more in other.variants:
                common = both & theirs
                if common:
                    found.append((common, size + more))
        else:
            found += _split(both, size, other, index)
    if others & ~owners:
        for columns, size in other.variants:
            alone = columns & ~owners
            if alone:
                found.append((alone, size))
    return found


@lru_cache(maxsize=_INDEXED)
def _by_column(cluster: Cluster) -> dict[int, int]:
    """Return the number of the variant of each column."""
    return {column: number for number, (columns, _) in enumerate(cluster.variants) for column in bits(columns)}


def _split(columns: Columns, size: int, other: Cluster, index: dict[int, int]) -> list[tuple[Columns, int]]:
    parts: defaultdict[int, int] = defaultdict(int)
    for column in bits(columns):
        parts[index[column]] |= 1 << column
    return [(common, size + other.variants[number][1]) for number, common in parts.items()]


def bits(columns: Columns) -> list[int]:
    """Return the numbers of the bits that are set, lowest first."""
    found: list[int] = []
    words = (columns.bit_length() + 63) // 64
    if columns.bit_count() < words:
        while columns:
            low = columns & -columns
            found.append(low.bit_length() - 1)
            columns ^= low
        return found
    # A large set is read word by word: taking each bit from all of it would grow with the square of the catalog.
    for place, (word,) in enumerate(iter_unpack("<Q", columns.to_bytes(words * 8, "little"))):
        start = place << 6
        while word:
            low = word & -word
            found.append(start + low.bit_length() - 1)
            word ^= low
    return found
