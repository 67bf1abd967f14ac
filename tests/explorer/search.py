"""Many schedules of a scenario: all with few deviations, or random ones; and the shortest that still goes wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .scenarios import run
from .schedule import RandomSchedule, Schedule


def in_order(kinds: Sequence[str]) -> Iterator[Schedule]:
    """Every schedule whose first deviation begins with the first of ``kinds``, and so on; each before it is run."""
    level: list[Mapping[int, str]] = [{}]
    for depth in range(len(kinds) + 1):
        deeper: list[Mapping[int, str]] = []
        for chosen in level:
            schedule = Schedule(chosen, complete=depth == len(kinds))
            yield schedule
            if depth < len(kinds):
                deeper += [
                    {**chosen, point.number: alternative}
                    for point in schedule.points
                    for alternative in point.alternatives[1:]
                    if alternative.startswith(kinds[depth])
                ]
        level = deeper


def random_ones(seed: int, count: int) -> Iterator[RandomSchedule]:
    for number in range(count):
        yield RandomSchedule(seed + number)


def shrunk(scenario: str, deviations: Mapping[int, str], what: str) -> dict[int, str]:
    """The deviations without those that are not needed for the violation ``what``."""
    needed = dict(deviations)
    for number in sorted(deviations, reverse=True):
        fewer = {each: choice for each, choice in needed.items() if each != number}
        violation, _ = run(scenario, Schedule(fewer))
        if violation is not None and _kind(str(violation)) == _kind(what):
            needed = fewer
    return needed


def _kind(text: str) -> str:
    return text.partition(":")[0]
