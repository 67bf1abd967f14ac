"""Two classes of traffic: interactive jobs overtake bulk jobs, and neither starves.

Overtaking happens between two units: a free worker takes its next message from the queues in the order of
:class:`WeightedRoundRobin`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final, NamedTuple

__all__ = ["Traffic"]


class Traffic(StrEnum):
    """The class of a job."""

    INTERACTIVE = "interactive"
    """A user waits for it."""
    BULK = "bulk"
    """Runs when nothing interactive is waiting; one message in eight is reserved for it."""


class Queues(NamedTuple):
    """The names of the queues of one farm.

    A job's first message has its own queue, served after the units of jobs that have begun: a hundred queued jobs
    do not become a hundred half-done trees.
    """

    control: str
    """Items of either class that advance or end a job: short, and they release the job's resources."""
    units: str
    start: str
    bulk_units: str
    bulk_start: str

    @classmethod
    def of(cls, prefix: str) -> Queues:
        return cls(*(f"{prefix}.{name}" for name in _NAMES))

    def starts_of(self, traffic: Traffic) -> str:
        return self.bulk_start if traffic is Traffic.BULK else self.start

    def units_of(self, traffic: Traffic) -> str:
        return self.bulk_units if traffic is Traffic.BULK else self.units


_NAMES: Final = ("control", "units", "start", "bulk-units", "bulk-start")
_NEW_FIRST: Final = ("control", "start", "units", "bulk-units", "bulk-start")
_BULK_FIRST: Final = ("control", "bulk-units", "bulk-start", "units", "start")
_ROUND: Final = (_NEW_FIRST, _NAMES, _NAMES, _NAMES, _NEW_FIRST, _NAMES, _NAMES, _BULK_FIRST)
"""A small interactive job does not wait for a large one to end (twice in eight), nor bulk for ever (once)."""


class WeightedRoundRobin:
    """The order in which a worker checks the queues for its next message; a cycle in kombu's sense.

    Counts the messages taken, except the control queue's, in rounds of eight.
    """

    def __init__(self, items: Iterable[str] | None = None) -> None:
        self._queues = list(items or ())
        self._taken = 0

    def update(self, items: Iterable[str]) -> None:
        self._queues = list(items)

    def consume(self, count: int) -> list[str]:
        order = _ROUND[self._taken % len(_ROUND)]
        return sorted(self._queues, key=lambda queue: order.index(_role(queue)))[:count]

    def rotate(self, last_used: str) -> str:
        if _role(last_used) != "control":
            self._taken += 1
        return last_used


def _role(queue: str) -> str:
    """Return the role of a queue; others (Celery's own, for remote control) are as urgent as control."""
    role = queue.rpartition(".")[2]
    return role if role in _NAMES else "control"
