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
    """Takes the first alternative everywhere, except where ``deviations`` says otherwise.

    ``points``: those after the last deviation; none if ``complete``, as listing the alternatives takes time.
    """

    def __init__(self, deviations: Mapping[int, str], *, complete: bool = False) -> None:
        self.deviations = dict(deviations)
        self.points: list[Point] = []
        self.asked = 0
        """Number of choices so far."""
        self._complete = complete
        self._last = max(self.deviations, default=-1)

    def choose(self, usual: str, others: Callable[[], Sequence[str]]) -> str:
        number = self.asked
        self.asked += 1
        if number not in self.deviations:
            if number > self._last and not self._complete:
                self.points.append(Point(number, (usual, *others())))
            return usual
        wanted = self.deviations[number]
        return wanted if wanted in others() else usual


class RandomSchedule(Schedule):
    """Deviates at random, some ``most`` times in a run of ``length`` points; remembers where."""

    def __init__(self, seed: int, most: int = 6, length: int = 150) -> None:
        super().__init__({})
        self._random = random.Random(seed)
        self._chance = self._random.randint(1, most) / length

    def choose(self, usual: str, others: Callable[[], Sequence[str]]) -> str:
        """The alternatives are rarely needed."""
        number = self.asked
        self.asked += 1
        if self._random.random() >= self._chance or not (alternatives := others()):
            return usual
        self.deviations[number] = self._random.choice(alternatives)
        return self.deviations[number]
