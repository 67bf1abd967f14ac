"""Layouts of images by the methods of other tools, for comparison: with the same components and budget.

Each is stateless and sees one image at a time, as the originals do (relayer.md 2.1 and 2.4).
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from layerfarm.jobs.relayer.planner.plan import Chunk, Part, Snapshot

Layout = list[Chunk]
Planner = Callable[[Snapshot], Layout]
_OUTLIER = 1.5
_MOST_SINGLE = 0.8


def squashed(image: Snapshot) -> Layout:
    """Everything in one layer."""
    return [Chunk("all", image.parts)]


def chunkah(stability: Mapping[str, float]) -> Planner:
    """coreos/chunkah: outliers by size alone, the rest hashed into bins of three tiers of stability.

    ``stability`` by component key, 0 to 1. chunkah takes it from changelogs; it is given what the tags that
    were planned from have shown instead, which is better.
    """

    def plan(image: Snapshot) -> Layout:
        members: defaultdict[str, list[Part]] = defaultdict(list)
        for part in image.parts:
            members[part.source or part.key].append(part)  # chunkah groups by source package
        names = sorted(members)
        if len(names) <= image.room:
            return [_chunk(name, members[name]) for name in names]
        sizes = {name: sum(part.size for part in members[name]) for name in names}
        single = _outliers(sizes, int(image.room * _MOST_SINGLE))
        rest = [name for name in names if name not in single]
        known = {name: min(stability.get(part.key, 0.0) for part in members[name]) for name in rest}
        bins = _binned(rest, known, sizes, image.room - len(single))
        groups = [*([name] for name in sorted(single)), *bins]
        return [_chunk(group[0], [part for name in group for part in members[name]]) for group in groups]

    return plan


def _outliers(sizes: Mapping[str, int], most: int) -> set[str]:
    median = statistics.median(sizes.values())
    spread = statistics.median(abs(size - median) for size in sizes.values())
    if spread < median / 100:
        spread = median
    large = [name for name, size in sizes.items() if size >= median + _OUTLIER * spread]
    return set(sorted(large, key=lambda name: (-sizes[name], name))[:most])


def _binned(
    names: Sequence[str], stability: Mapping[str, float], sizes: Mapping[str, int], count: int
) -> list[list[str]]:
    mean, deviation = statistics.mean(stability.values()), statistics.pstdev(stability.values())
    tiers: list[list[str]] = [[], [], []]
    for name in names:
        tiers[(stability[name] > mean - deviation) + (stability[name] > mean + deviation)].append(name)
    tiers = [tier for tier in tiers if tier]
    found: list[list[str]] = []
    left = count
    for number, tier in enumerate(tiers):
        others = len(tiers) - number - 1
        share = left - others if not others else max(1, min(left - others, round(count * len(tier) / len(names))))
        left -= share
        found += _hashed(tier, sizes, share)
    return found


def _hashed(names: Sequence[str], sizes: Mapping[str, int], count: int) -> list[list[str]]:
    bins: list[list[str]] = [[] for _ in range(count)]
    for name in names:
        bins[_fnv(name) % count].append(name)
    for empty in (group for group in bins if not group):
        crowded = [name for group in bins if len(group) > 1 for name in group]
        if not crowded:
            break
        moved = max(crowded, key=lambda name: (sizes[name], name))
        next(group for group in bins if moved in group).remove(moved)
        empty.append(moved)
    return [group for group in bins if group]


def _fnv(text: str) -> int:
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


def nix_auto(depends: Mapping[str, Iterable[str]]) -> Planner:
    """nixpkgs' auto-layer: the largest become roots, everything else goes with the exact set of roots that need it.

    ``depends``: by component key, the keys of what it needs.
    """

    def plan(image: Snapshot) -> Layout:
        parts = {part.key: part for part in image.parts}
        closures = {key: _closure(key, depends, parts) for key in parts}
        order = sorted(parts, key=lambda key: (-parts[key].size, key))
        groups: dict[frozenset[str], list[str]] = {frozenset(): list(parts)}
        for count in range(1, len(order) + 1):
            wanted = _owners(order[:count], closures, parts)
            if len(wanted) > image.room:
                break
            groups = wanted
        return [_chunk(min(keys), [parts[key] for key in keys]) for keys in groups.values()]

    return plan


def _owners(
    roots: Iterable[str], closures: Mapping[str, frozenset[str]], parts: Iterable[str]
) -> dict[frozenset[str], list[str]]:
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for root in roots:
        for key in closures[root]:
            owners[key].add(root)
    groups: defaultdict[frozenset[str], list[str]] = defaultdict(list)
    for key in parts:
        # A root is a layer of its own, with what only it needs.
        groups[frozenset(owners[key])].append(key)
    return dict(groups)


def _closure(key: str, depends: Mapping[str, Iterable[str]], parts: Mapping[str, Part]) -> frozenset[str]:
    found = {key}
    pending = [key]
    while pending:
        for other in depends.get(pending.pop(), ()):
            if other in parts and other not in found:
                found.add(other)
                pending.append(other)
    return frozenset(found)


def _chunk(name: str, parts: Iterable[Part]) -> Chunk:
    return Chunk(name, tuple(sorted(parts)))
