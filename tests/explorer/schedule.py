"""The choices of one run: which alternative was taken at each point where there was one."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One point of a run at which something else could have happened."""

    number: int
    alternatives: tuple[str, ...]
    """The first is what happens on a quiet day."""


class Schedule:
    """Takes the first alternative everywhere, except where ``deviations`` says otherwise."""

    def __init__(self, deviations: Mapping[int, str]) -> None:
        self.deviations = dict(deviations)
        self.points: list[Point] = []

    @property
    def asked(self) -> int:
        """Number of choices so far."""
        return len(self.points)

    def choose(self, usual: str, others: Callable[[], Sequence[str]]) -> str:
        number = len(self.points)
        alternatives = (usual, *others())
        self.points.append(Point(number, alternatives))
        wanted = self.deviations.get(number)
        return wanted if wanted in alternatives else usual


class RandomSchedule(Schedule):
    """Deviates at random, some ``most`` times in a run of ``length`` points; remembers where."""

    def __init__(self, seed: int, most: int = 6, length: int = 150) -> None:
        super().__init__({})
        self._random = random.Random(seed)
        self._chance = self._random.randint(1, most) / length
        self._asked = 0

    @property
    def asked(self) -> int:
        return self._asked

    def choose(self, usual: str, others: Callable[[], Sequence[str]]) -> str:
        """The alternatives are rarely needed."""
        number = self._asked
        self._asked += 1
        if self._random.random() >= self._chance or not (alternatives := others()):
            return usual
        self.deviations[number] = self._random.choice(alternatives)
        return self.deviations[number]
