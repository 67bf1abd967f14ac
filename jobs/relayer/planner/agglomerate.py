"""Merge clusters: the cheapest pair first, while it saves or an image has too many."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import repeat

from layerfarm.jobs.relayer.planner.bitsets import Cluster, Costs, merged
from layerfarm.jobs.relayer.planner.contents import Columns, bits

_PAIRS = 400
"""Most clusters of which all pairs are compared; of more, the smallest are first merged with similar ones."""


class Merger:
    """The clusters of a catalog while they are merged."""

    def __init__(self, costs: Costs, clusters: Sequence[Cluster], rates: dict[str, float]) -> None:
        self._costs = costs
        self._rates = rates
        self._clusters: dict[int, Cluster] = dict(enumerate(clusters))
        self._cost = {number: costs.of(cluster) for number, cluster in self._clusters.items()}
        self._sketches = {number: costs.sketch(cluster) for number, cluster in self._clusters.items()}
        self._extras: dict[tuple[int, int], float] = {}
        self._next = len(clusters)
        self._counts = [0] * len(costs.catalog.images)
        self._room: Sequence[int] = ()
        self._over: Columns = 0
        """Images with more clusters than room."""
        for cluster in clusters:
            for column in bits(cluster.owners):
                self._counts[column] += 1

    def clusters(self) -> list[Cluster]:
        """Return the clusters, sorted by key."""
        return sorted(self._clusters.values(), key=lambda cluster: cluster.keys)

    def merge_for_free(self) -> None:
        """Merge clusters that the same images hold, if that saves more than it costs."""
        classes: defaultdict[int, list[int]] = defaultdict(list)
        for number, cluster in self._clusters.items():
            if not cluster.locked:
                classes[cluster.owners].append(number)
        for numbers in classes.values():
            left = self._shortened(numbers, _PAIRS, paying=True)
            if len(left) <= _PAIRS:
                self._agglomerate(left, 0)

    def fit(self, room: Sequence[int]) -> None:
        """Merge until no image has more clusters than room, as far as locked ones allow.

        The image that exceeds its room most comes first; a merge applies to all images.
        """
        self._room = room
        order = sorted(range(len(room)), key=lambda column: (room[column] - self._counts[column], column))
        self._over = sum(1 << column for column in order if self._counts[column] > room[column])
        # An image that fits stays so, because counts only fall; one pass in any order is enough.
        for column in order:
            if self._counts[column] > room[column]:
                self._fit(column)

    def _fit(self, column: int) -> None:
        bit, over = 1 << column, self._over
        mine = [number for number, cluster in self._clusters.items() if cluster.owners & bit]
        free = [number for number in mine if not self._clusters[number].locked]
        wanted = self._room[column] - (len(mine) - len(free))
        free = self._shortened(free, max(_PAIRS, wanted), paying=False)
        free = self._agglomerate(free, max(1, wanted), over)
        if wanted < 1 and free:
            # Locked clusters fill the image: new ones must join one of them.
            for number in free:
                locked = [at for at in mine if at in self._clusters and self._clusters[at].locked]
                if locked:
                    best = min(locked, key=lambda at: (self._extra(at, number), at))
                    mine.append(self._merge(best, number))

    def _agglomerate(self, numbers: Iterable[int], wanted: int, over: int = 0) -> list[int]:
        """Merge the cheapest pair of these until ``wanted`` are left; with 0, as long as it saves.

        The heap holds estimates, which are seldom too high. The exact cost of a pair is computed when its
        estimate is the lowest, and the pair goes back with that.
        """
        alive = dict.fromkeys(numbers)
        heap: list[tuple[float, bool, int, int]] = []
        for at, number in enumerate(order := list(alive)):
            heap += self._guessed(order[:at], number, over)
        heapq.heapify(heap)
        while heap and (wanted == 0 or len(alive) > wanted):
            price, exact, one, other = heapq.heappop(heap)
            if one not in alive or other not in alive:
                continue
            if wanted == 0 and price >= 0:
                break
            if not exact:
                extra = self._extra(one, other)
                if over and extra > 0:
                    extra /= (self._clusters[one].owners & self._clusters[other].owners & over).bit_count() or 1
                heapq.heappush(heap, (extra, True, one, other))
                continue
            new = self._merge(one, other)
            del alive[one], alive[other]
            for guess in self._guessed(alive, new, over):
                heapq.heappush(heap, guess)
            alive[new] = None
        return list(alive)

    def _guessed(self, numbers: Collection[int], new: int, over: Columns) -> Iterator[tuple[float, bool, int, int]]:
        """Yield, for each of some clusters, the estimated cost of its merge with another one."""
        guesses = self._costs.guesses(map(self._sketches.__getitem__, numbers), self._sketches[new], over)
        return zip(guesses, repeat(False), numbers, repeat(new))

    def _shortened(self, numbers: Sequence[int], most: int, *, paying: bool) -> list[int]:
        """Return at most ``most`` of them: the lightest are merged in pairs, similar ones first."""
        alive = list(numbers)
        while len(alive) > most:
            surplus = len(alive) - most
            alive.sort(key=lambda number: (self._clusters[number].weight, number))
            light, heavy = alive[: min(len(alive), 2 * surplus)], alive[min(len(alive), 2 * surplus) :]
            light.sort(key=self._likeness)
            pairs = list(zip(light[::2], light[1::2], strict=False))
            if len(light) % 2:
                heavy.append(light[-1])
            if paying:
                done = {pair for pair in pairs if self._extra(*pair) < 0}
                if not done:
                    break
                heavy += [number for pair in pairs if pair not in done for number in pair]
                pairs = [pair for pair in pairs if pair in done]
            alive = heavy + [self._merge(one, other) for one, other in pairs]
        return alive

    def _likeness(self, number: int) -> tuple[int, int, float, int]:
        cluster = self._clusters[number]
        return (cluster.owners, cluster.changed, cluster.rate, number)

    def _extra(self, one: int, other: int) -> float:
        """Return the extra cost of two clusters merged. Cached: many images need the same pair."""
        pair = (one, other) if one < other else (other, one)
        known = self._extras.get(pair)
        if known is None:
            both = self._costs.together(self._clusters[pair[0]], self._clusters[pair[1]], self._rates)
            known = self._extras[pair] = both - self._cost[one] - self._cost[other]
        return known

    def _merge(self, one: int, other: int) -> int:
        both = merged(self._clusters[one], self._clusters[other], self._rates)
        common = self._clusters[one].owners & self._clusters[other].owners
        for column in bits(common):
            self._counts[column] -= 1
        for column in bits(common & self._over):
            if self._counts[column] <= self._room[column]:
                self._over &= ~(1 << column)
        for gone in (one, other):
            del self._clusters[gone], self._cost[gone], self._sketches[gone]
        number, self._next = self._next, self._next + 1
        self._clusters[number], self._cost[number] = both, self._costs.of(both)
        self._sketches[number] = self._costs.sketch(both)
        return number
