"""The pushes that wait for a run, coalesced by name: when they are due, and when a failed one is tried again."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from layerfarm.worker.catalog.serve.times import Times

LONGEST_BATCH: Final = 500
"""Maximum number of names in one run."""


@dataclass
class _Waiting:
    first: float
    """Time of the first push since the last run."""
    last: float
    attempts: int = 0
    not_before: float = 0.0


@dataclass
class Backlog:
    """Names that wait. Times are in seconds, of any one clock.

    Pushes come in bursts, so a run waits until there was none for ``times.settle``, but not longer than ten times that
    after the first.
    """

    times: Times
    _names: dict[str, _Waiting] = field(default_factory=dict)
    _running: dict[str, _Waiting] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._names.keys() | self._running.keys())

    @property
    def oldest(self) -> float | None:
        """Time of the first push that waits or is being run."""
        return min((each.first for each in (*self._names.values(), *self._running.values())), default=None)

    def pushed(self, names: Iterable[str], now: float) -> None:
        """Add names. A push of a name that failed is tried as if it were new."""
        for name in names:
            known = self._names.get(name)
            self._names[name] = _Waiting(known.first if known else now, now)

    def take(self, now: float) -> list[str]:
        """Begin a run of the names that are due, those that wait longest first; empty: none is due."""
        ready = [name for name, each in self._names.items() if each.not_before <= now]
        if not ready or now < self._settled(ready):
            return []
        return self._begin(sorted(ready, key=lambda name: (self._names[name].first, name))[:LONGEST_BATCH])

    def take_all(self) -> list[str]:
        """Begin a run of all names."""
        return self._begin(sorted(self._names))

    def ended(self, failed: Collection[str], now: float) -> None:
        """End the run; those that ``failed`` are tried again after :meth:`Times.wait_after`."""
        for name in set(failed).intersection(self._running).difference(self._names):
            each = self._running[name]
            each.not_before = now + self.times.wait_after(each.attempts)
            each.attempts += 1
            self._names[name] = each
        self._running = {}

    def next_time(self) -> float | None:
        """Return the time at which :meth:`take` returns names, if nothing is pushed until then; None: never."""
        if not self._names:
            return None
        earliest = min(each.not_before for each in self._names.values())
        ready = [name for name, each in self._names.items() if each.not_before <= earliest]
        return max(earliest, self._settled(ready))

    def _begin(self, names: list[str]) -> list[str]:
        self._running = {name: self._names.pop(name) for name in names}
        return names

    def _settled(self, names: Collection[str]) -> float:
        """Return the time at which the pushes of these names have settled. A repeated attempt does not wait."""
        new = [each for name in names if not (each := self._names[name]).attempts]
        if not new:
            return 0.0
        settle = self.times.settle
        return min(max(each.last for each in new) + settle, min(each.first for each in new) + 10 * settle)
