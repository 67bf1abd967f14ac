"""Local search: after merging, single components move to other clusters.

Merging never separates components again. Here each component is compared with every cluster once more, and moves
if that makes the plan cheaper and gives no image more clusters than room. Groups of a previous plan stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from math import isqrt

from layerfarm.jobs.relayer.planner.bitsets import Cluster, Costs, Sketch, merged
from layerfarm.jobs.relayer.planner.contents import Columns, bits

_PASSES = 6
"""Passes over all components; most is gained in the first two."""
_WORK = 6_000_000
"""Most comparisons of clusters and contents, some 0.7 us each; the heaviest components come first. A count and not a
time: the same images must give the same plan on every machine."""
_WIDE = 64
"""Images per unit of work of one content: operations on larger sets take longer."""
_LEAST = 1.0
"""Bytes that a move must save, so that rounding does not move components back and forth."""


class Refiner:
    """The clusters of a catalog while components are moved between them."""

    def __init__(
        self,
        costs: Costs,
        rates: dict[str, float],
        components: Iterable[Cluster],
        clusters: Iterable[Cluster],
        room: Sequence[int],
        share: float = 1.0,
    ) -> None:
        """``clusters`` were merged from ``components``; ``share``: part of the work that they may take."""
        self._costs = costs
        self._rates = rates
        self._room = room
        self._counts = [0] * len(room)
        self._full: Columns = 0
        """Images without room for another cluster."""
        single = {component.keys[0]: component for component in components}
        self._of_components = {key: costs.sketch(component) for key, component in single.items()}
        self._sketches: dict[int, Sketch] = {}
        self._locked: list[Cluster] = []
        self._members: dict[int, list[Cluster]] = {}
        self._clusters: dict[int, Cluster] = {}
        self._cost: dict[int, float] = {}
        self._blocks: dict[int, list[tuple[list[Cluster], Cluster]]] = {}
        for number, cluster in enumerate(clusters):
            for column in bits(cluster.owners):
                self._counts[column] += 1
            if cluster.locked:
                self._locked.append(cluster)
                continue
            self._members[number] = [single[key] for key in cluster.keys]
            self._put(number, cluster)
        for column, count in enumerate(self._counts):
            self._full |= (count >= room[column]) << column
        self._left = int(_WORK * share)
        self._unit = 1 + len(room) // _WIDE

    def refined(self) -> list[Cluster]:
        """Move components; return the clusters, sorted by key."""
        home = {each.keys: number for number, members in self._members.items() for each in members}
        components = [each for members in self._members.values() for each in members]
        components.sort(key=lambda each: (-each.weight, each.keys))
        for _ in range(_PASSES):
            moved = False
            for component in components:
                at = home[component.keys]
                rest = self._without(component, at)
                target = self._better(component, at, rest)
                if target is not None:
                    self._move(component, at, rest, target)
                    home[component.keys] = target
                    moved = True
                if self._left <= 0:
                    break
            if not moved or self._left <= 0:
                break
        return sorted([*self._clusters.values(), *self._locked], key=lambda cluster: cluster.keys)

    def _without(self, component: Cluster, at: int) -> Cluster | None:
        """Return a cluster without one of its components; None: it has no others."""
        rest: list[Cluster] = []
        for block, whole in self._blocks_of(at):
            others = [other for other in block if other is not component]
            rest += others if len(others) < len(block) else [whole]
        return reduce(self._merged, rest) if rest else None

    def _blocks_of(self, number: int) -> list[tuple[list[Cluster], Cluster]]:
        """Return the components of a cluster in about as many blocks as a block has members, each with its merger."""
        found = self._blocks.get(number)
        if found is None:
            members = self._members[number]
            size = isqrt(len(members))
            blocks = [members[start : start + size] for start in range(0, len(members), size)]
            found = self._blocks[number] = [(block, reduce(self._merged, block)) for block in blocks]
        return found

    def _merged(self, one: Cluster, other: Cluster) -> Cluster:
        self._left -= self._unit * (len(one.contents.sizes) + len(other.contents.sizes))
        return merged(one, other, self._rates)

    def _better(self, component: Cluster, at: int, rest: Cluster | None) -> int | None:
        """Return the cluster in which the component costs least, if less than in its own."""
        alone = self._costs.of(component)
        sketch = self._of_components[component.keys[0]]
        limit = self._cost[at] - _cost(self._costs, rest) - alone - _LEAST
        freed = self._clusters[at].owners & ~_owners(rest)
        best = None
        self._left -= len(self._clusters) + self._unit * (len(component.contents.sizes) + _contents(rest))
        guesses = self._costs.guesses(map(self._sketches.__getitem__, self._clusters), sketch)
        for (number, cluster), guess in zip(self._clusters.items(), guesses, strict=True):
            # The estimate is seldom too high, and 20 times faster than the exact cost.
            if number == at or guess >= limit:
                continue
            if component.owners & ~cluster.owners & ~freed & self._full:
                continue
            self._left -= self._unit * (len(cluster.contents.sizes) + len(component.contents.sizes))
            extra = self._costs.together(cluster, component, self._rates) - self._cost[number] - alone
            if extra < limit:
                best, limit = number, extra
        return best

    def _move(self, component: Cluster, at: int, rest: Cluster | None, target: int) -> None:
        cluster = self._clusters[target]
        self._count(self._clusters[at].owners & ~_owners(rest), -1)
        self._count(component.owners & ~cluster.owners, 1)
        self._members[at] = [other for other in self._members[at] if other is not component]
        self._members[target].append(component)
        self._put(target, self._merged(cluster, component))
        self._put(at, rest)

    def _count(self, columns: Columns, more: int) -> None:
        for column in bits(columns):
            self._counts[column] += more
            if self._counts[column] >= self._room[column]:
                self._full |= 1 << column
            else:
                self._full &= ~(1 << column)

    def _put(self, number: int, cluster: Cluster | None) -> None:
        self._blocks.pop(number, None)
        if cluster is None:
            del self._clusters[number], self._cost[number], self._sketches[number], self._members[number]
        else:
            self._clusters[number], self._cost[number] = cluster, self._costs.of(cluster)
            self._sketches[number] = self._costs.sketch(cluster)


def _contents(cluster: Cluster | None) -> int:
    return 0 if cluster is None else len(cluster.contents.sizes)


def _owners(cluster: Cluster | None) -> Columns:
    return 0 if cluster is None else cluster.owners


def _cost(costs: Costs, cluster: Cluster | None) -> float:
    return 0.0 if cluster is None else costs.of(cluster)
