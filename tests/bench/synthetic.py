"""Catalogs of any size, made up: which packages images hold, and how their versions change from tag to tag.

A distribution has base packages, which all its images hold, and others whose popularity falls as in Zipf's law. A few
packages are updated often, most seldom. Repositories are rebuilt at different weeks, and each has some components of
its own. The same seed gives the same catalog, and a larger one begins as a smaller one does.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, NamedTuple

from layerfarm.jobs.relayer.planner.plan import Part, Snapshot

TAGS: Final = 10
"""Tags of a repository."""
_DISTRIBUTIONS: Final = 3
_PACKAGES: Final = 3000
"""Packages of one distribution."""
_BASE: Final = 90
_OWN: Final = 6
"""Components of a repository's own, of which one changes with each tag."""
_WEEKS: Final = 200
_SKEW: Final = 0.9


class _Package(NamedTuple):
    key: str
    size: int
    updates: list[int]
    """Weeks in which it is updated."""

    def at(self, week: int) -> Part:
        version = bisect_right(self.updates, week)
        packed = int(self.size * (1 + version / 500))
        return Part(self.key, "", f"{self.key}@{version}", 3 * packed, packed, version=str(version), layer=1)


def snapshots(images: int, components: int = 300, seed: int = 1, room: int = 62) -> Iterator[Snapshot]:
    """Images, as the planner takes them, in repositories of :data:`TAGS` tags."""
    distributions = [_distribution(random.Random(f"{seed} {number}"), number) for number in range(_DISTRIBUTIONS)]
    weights = list(accumulate(1 / (rank + 1) ** _SKEW for rank in range(_PACKAGES - _BASE)))
    for number in range(images):
        repository, tag = divmod(number, TAGS)
        chance = random.Random(f"{seed} repository {repository}")
        packages = chance.choice(distributions)
        chosen = set(range(_BASE))
        while len(chosen) < components - _OWN:
            chosen.add(_BASE + bisect_right(weights, chance.random() * weights[-1]))
        week = chance.randrange(_WEEKS // 2) + 4 * tag
        parts = [packages[each].at(week) for each in sorted(chosen)]
        parts += _own(chance, repository, tag)
        yield Snapshot(f"team/{repository}", tag, f"1.{tag}", tuple(parts), room)


def _distribution(chance: random.Random, number: int) -> list[_Package]:
    return [_package(chance, f"dpkg:d{number}-{each}") for each in range(_PACKAGES)]


def _package(chance: random.Random, key: str) -> _Package:
    size = int(chance.lognormvariate(10.5, 1.8))
    rate = chance.paretovariate(1.2) / 200
    return _Package(key, size, sorted(chance.sample(range(_WEEKS), min(_WEEKS, int(rate * _WEEKS)))))


def _own(chance: random.Random, repository: int, tag: int) -> Iterator[Part]:
    for each in range(_OWN):
        packed = int(chance.lognormvariate(12, 1.5))
        version = tag if each == 0 else tag // (2 * each)
        key = f"tree:srv/{repository}-{each}"
        yield Part(key, "", f"{key}@{version}", 3 * packed, packed, version=str(version), layer=2)
