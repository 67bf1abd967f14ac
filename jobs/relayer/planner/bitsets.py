"""A catalog as bitsets: images as columns, clusters of components by the images that hold each version, their cost."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from layerfarm.jobs.relayer.planner.contents import Columns, Contents
from layerfarm.jobs.relayer.planner.plan import Snapshot

REQUEST_BYTES = 16 << 10
"""Cost of one more layer in a pull, in bytes, without its content: a round trip of 10 ms at some 13 Mbit/s, its
descriptor in manifest and config, the end of its tar."""
_PRIOR = 2.0
"""Weight, in tags, of the catalog's usual rate of updates."""
_USUAL = 0.05
"""Updates per source and tag where no tag has a predecessor."""
_LEAST = 0.01
"""The lowest usual rate: no change in a few tags does not mean that there will be none."""


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

    def families(self, groups: Iterable[Iterable[str]] = ()) -> list[Catalog]:
        """Return the catalog in parts that have no component in common, such as the images of each distribution.

        No layer of one can be of use to another, and sets of fewer images are smaller. Lines are not divided, nor are
        the components of each of the ``groups`` of a previous plan.
        """
        home: dict[str, str] = {}
        root: dict[str, str] = {}

        def find(line: str) -> str:
            while root[line] != line:
                root[line] = line = root[root[line]]
            return line

        def unite(*lines: str) -> None:
            for line in lines:
                root[find(line)] = find(lines[0])

        for image in self.images:
            root.setdefault(image.line, image.line)
            unite(image.line, *{home.setdefault(part.key, image.line) for part in image.parts})
        for keys in groups:
            unite(*{home[key]: None for key in keys if key in home})
        parts: defaultdict[str, list[Snapshot]] = defaultdict(list)
        for image in self.images:
            parts[find(image.line)].append(image)
        return [replace(Catalog.of(images), horizon=self.horizon) for images in parts.values()]


@dataclass(frozen=True, eq=False)
class Cluster:
    """Components that share a layer, in all images. Equal only to itself."""

    keys: tuple[str, ...]
    contents: Contents
    changed: Columns
    """Followers with another content of it than the image before."""
    newest: Columns
    """The owners that are the newest of their line."""
    sources: frozenset[str]
    rate: float
    """Updates expected per tag, besides the observed ones: the sum of those of its sources."""
    locked: bool = False
    """True for a group of the previous plan."""

    @cached_property
    def owners(self) -> Columns:
        return self.contents.owners

    @cached_property
    def weight(self) -> int:
        """Bytes of its largest content."""
        return max(self.contents.sizes)

    @cached_property
    def pulled(self) -> int:
        """Bytes of its observed pulls."""
        return self.contents.bytes_in(self.changed)

    @cached_property
    def renewed(self) -> int:
        """Bytes of the contents of all newest owners, each counted by itself."""
        return self.contents.bytes_in(self.newest)


class Sketch(NamedTuple):
    """A cluster as :meth:`Costs.guesses` sees it: sums over its contents."""

    owners: Columns
    changed: Columns
    unchanged: Columns
    """The owners that are not among these."""
    newest: Columns
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
    contents = Contents.of((columns, size) for columns, size in held.values())
    same = 0
    for columns, _ in held.values():
        same |= (columns << 1) & columns  # the image before has the same, if it is of the same line
    before = (contents.owners << 1) | contents.owners
    changed = before & ~same & catalog.followers
    return Cluster((key,), contents, changed, contents.owners & catalog.last, frozenset((source,)), 0.0)


def update_rates(families: Iterable[tuple[Catalog, Iterable[Cluster]]]) -> dict[str, float]:
    """For each source the updates expected per tag, besides those that were observed.

    ``families``: catalogs with their components.

    The usual rate of the whole catalog weighs as much as :data:`_PRIOR` tags: the more tags of a source were
    observed, the fewer unseen updates are expected of it.
    """
    seen: dict[str, float] = {}
    updates: dict[str, float] = {}
    for catalog, cluster in ((catalog, cluster) for catalog, clusters in families for cluster in clusters):
        lines = max(1, cluster.newest.bit_count())
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
        sizes, request = cluster.contents.sizes, self.request
        stored = sum(sizes) + request * len(sizes)
        observed = cluster.pulled + request * (cluster.owners & cluster.changed).bit_count()
        return self._total(stored, observed, self._new(cluster), self._renewed(cluster), cluster.rate)

    def together(self, one: Cluster, other: Cluster, rates: Mapping[str, float]) -> float:
        """Return the cost of the two clusters merged: that of :func:`merged`, which is not made for it."""
        changed, rate = one.changed | other.changed, _rate(one, other, rates)
        ours, theirs, request = one.contents, other.contents, self.request
        if ours.sets and theirs.sets:
            return self._price(ours.combined(theirs), changed, rate)
        both, newest = one.owners & other.owners, one.newest | other.newest
        stored = self._combined(ours, theirs, both)
        new = self._combined(ours, theirs, both & newest)
        observed = request * ((one.owners | other.owners) & changed).bit_count()
        renewed = request * newest.bit_count()
        for cluster in (one, other):
            sizes, alone = cluster.contents.sizes, cluster.owners & ~both
            stored += sum(sizes[number] + request for number in cluster.contents.among(alone))
            new += sum(sizes[number] + request for number in cluster.contents.among(alone & newest))
            observed += cluster.pulled + cluster.contents.bytes_in(changed & ~cluster.changed)
            renewed += cluster.renewed
        return self._total(stored, observed, new, renewed, rate)

    def _new(self, cluster: Cluster) -> int:
        """Return the price of the contents that the newest images have."""
        sizes, request = cluster.contents.sizes, self.request
        return sum(sizes[number] + request for number in cluster.contents.among(cluster.newest))

    def _renewed(self, cluster: Cluster) -> int:
        """Return the same, for each of these images."""
        return cluster.renewed + self.request * cluster.newest.bit_count()

    def _combined(self, one: Contents, other: Contents, columns: Columns) -> int:
        """Return the price of each different combination of contents that these images, which own both, have."""
        ours, theirs, request = one.sizes, other.sizes, self.request
        return sum(ours[mine] + theirs[its] + request for mine, its in one.pairs(other, columns))

    def _price(self, held: Iterable[tuple[Columns, int]], changed: Columns, rate: float) -> float:
        stored = observed = new = renewed = 0
        last, request = self.catalog.last, self.request
        for columns, size in held:
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
        """Return the input of :meth:`guesses`."""
        contents, changed, owners = cluster.contents, cluster.changed, cluster.owners
        return Sketch(
            owners=owners,
            changed=changed,
            unchanged=owners & ~changed,
            newest=cluster.newest,
            least=min(contents.sizes),
            mean=contents.bytes_in(owners) / owners.bit_count(),
            new=self._new(cluster),
            renewed=self._renewed(cluster),
            chance=-math.expm1(-cluster.rate),
            sources=cluster.sources,
        )

    def guesses(self, ones: Iterable[Sketch], other: Sketch, over: Columns = 0) -> Iterator[float]:
        """Yield estimates of the extra cost of each of some clusters merged with another one.

        ``over``: images with too many clusters; a positive cost is divided by the number that the merge relieves.

        Each is 20 times faster than the exact cost. Pulls are counted with mean sizes. What is stored is seldom too
        high: each combination of two contents, which only the exact cost finds, counts as one of them.
        """
        # Most pairs are estimated and never merged: 1.5 us each, in one loop for many of them.
        request, pulls, horizon = self.request, self.pulls, self.catalog.horizon
        others, otherwise, same, latest, smallest, average, newer, again, risk, origins = other
        theirs = risk * (newer + pulls * again)
        for owners, changed, unchanged, newest, least, mean, new, renewed, chance, sources in ones:
            both = owners & others
            stored: float = -request
            if both != owners:
                stored += least
            if both != others:
                stored += smallest
            pulled: float = -request * (changed & otherwise).bit_count()
            if changed != otherwise:
                pulled += mean * (otherwise & unchanged).bit_count()
                pulled += average * (changed & same).bit_count()
            # Updates of one source come together.
            joint = chance + risk - chance * risk if sources.isdisjoint(origins) else max(chance, risk)
            holders = renewed + again - request * (newest & latest).bit_count()
            expected = joint * ((new if new > newer else newer) + pulls * holders)
            expected -= chance * (new + pulls * renewed) + theirs
            guess = stored + pulls * pulled + horizon * expected
            if over and guess > 0:
                guess /= (both & over).bit_count() or 1
            yield guess


def merged(one: Cluster, other: Cluster, rates: Mapping[str, float]) -> Cluster:
    """Return the cluster of all components of both."""
    return Cluster(
        keys=tuple(sorted(one.keys + other.keys)),
        contents=one.contents.crossed(other.contents),
        changed=one.changed | other.changed,
        newest=one.newest | other.newest,
        sources=one.sources | other.sources,
        rate=_rate(one, other, rates),
        locked=one.locked or other.locked,
    )


def _rate(one: Cluster, other: Cluster, rates: Mapping[str, float]) -> float:
    common = one.sources & other.sources
    # In a fixed order: a sum of floats depends on it in its last bit, and a plan may depend on that.
    return one.rate + other.rate - sum(rates[source] for source in sorted(common))
