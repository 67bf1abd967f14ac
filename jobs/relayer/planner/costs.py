"""What it costs that components share a layer: bytes stored, and bytes pulled from tag to tag."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from layerfarm.jobs.relayer.planner.bitsets import Catalog, Cluster, Columns

REQUEST_BYTES = 16 << 10
"""What one layer more costs a pull, whatever is in it, in bytes: a round trip of 10 ms at some 13 Mbit/s,
its descriptor in manifest and config, the end of its tar."""

_FEW = 8


@dataclass(frozen=True)
class Costs:
    """The measure of a plan: lower is better."""

    catalog: Catalog
    pulls: float = 1.0
    """Pulls of each tag by hosts that have the one before it."""
    request: int = REQUEST_BYTES

    def of(self, cluster: Cluster) -> float:
        """Stored bytes, bytes of the pulls that were observed, and of both what is to be expected.

        What was observed tells which components change together; what is to be expected of a component
        that has not changed yet keeps hundreds of them from being put into one layer for that reason.
        """
        return self._price(cluster.variants, cluster.changed, cluster.rate)

    def together(self, one: Cluster, other: Cluster, rates: Mapping[str, float]) -> float:
        """What :meth:`of` would say of the two merged."""
        return self._price(_crossed(one, other), one.changed | other.changed, _rate(one, other, rates))

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
        expected = self.catalog.horizon * -math.expm1(-rate) * (new + self.pulls * renewed)
        return stored + self.pulls * observed + expected

    def guess(self, one: Cluster, other: Cluster) -> float:
        """About what :meth:`of` would say more of the two together than of each alone, 20 times faster.

        Too low rather than too high: every content counts as the smallest.
        """
        owners, changed, least, chance = one.sketch
        others, otherwise, smallest, risk = other.sketch
        # Most pairs of a class are looked at and never merged: 1.2 us each.
        extra: float = -self.request
        pulled = -self.request * (changed & otherwise).bit_count()
        if changed != otherwise:
            pulled += least * (otherwise & ~changed & owners).bit_count()
            pulled += smallest * (changed & ~otherwise & others).bit_count()
        holders = (owners & others & self.catalog.last).bit_count()
        if owners != others:
            both = owners & others
            if both != owners:
                extra += least
            if both != others:
                extra += smallest
        if holders:
            # 1 - (1 - chance)(1 - risk) less the one or the other
            expected = least * risk * (1 - chance) + smallest * chance * (1 - risk)
            extra += self.catalog.horizon * expected * (1 + self.pulls * holders)
        return extra + self.pulls * pulled


def merged(one: Cluster, other: Cluster, rates: Mapping[str, float]) -> Cluster:
    """The cluster of all components of both."""
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
    return variant[0] & -variant[0]


def _rate(one: Cluster, other: Cluster, rates: Mapping[str, float]) -> float:
    common = one.sources & other.sources
    # In a fixed order: a sum of floats depends on it in its last bit, and a plan may depend on that.
    return one.rate + other.rate - sum(rates[source] for source in sorted(common))


def _crossed(one: Cluster, other: Cluster) -> list[tuple[Columns, int]]:
    """Every content of the two together: each combination that an image has, and what is alone."""
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


def _by_column(cluster: Cluster) -> dict[int, int]:
    """Each column to the number of the variant that it has."""
    return {column: number for number, (columns, _) in enumerate(cluster.variants) for column in bits(columns)}


def _split(columns: Columns, size: int, other: Cluster, index: dict[int, int]) -> list[tuple[Columns, int]]:
    parts: defaultdict[int, int] = defaultdict(int)
    for column in bits(columns):
        parts[index[column]] |= 1 << column
    return [(common, size + other.variants[number][1]) for number, common in parts.items()]


def bits(columns: Columns) -> list[int]:
    """The numbers of the bits that are set, lowest first."""
    found = []
    while columns:
        low = columns & -columns
        found.append(low.bit_length() - 1)
        columns ^= low
    return found
