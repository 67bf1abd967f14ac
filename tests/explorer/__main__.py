"""``make explore``: schedules of every scenario, random ones and all with few deviations; what goes wrong is shrunk."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import structlog

from .scenarios import SCENARIOS, run
from .schedule import Schedule
from .search import in_order, random_ones, shrunk

_BATCH = 500


class Found(NamedTuple):
    scenario: str
    deviations: dict[int, str]
    what: str
    trace: list[str]


def explore(scenario: str, seed: int, count: int) -> Iterator[Found]:
    """Run ``count`` random schedules, those of the numbers from ``seed`` on. Yield the first finding of each kind."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    return _first_of_each(scenario, random_ones(seed, count))


def exhaust(scenario: str, kinds: Sequence[str]) -> Iterator[Found]:
    """Run every schedule whose deviations begin with ``kinds``, in this order; an empty one: any.

    Yield the first finding of each kind.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    return _first_of_each(scenario, in_order(kinds))


def _first_of_each(scenario: str, schedules: Iterator[Schedule]) -> Iterator[Found]:
    found: set[str] = set()
    for schedule in schedules:
        violation, _ = run(scenario, schedule)
        kind = str(violation).partition(":")[0]
        if violation is not None and kind not in found:
            needed = shrunk(scenario, schedule.deviations, str(violation))
            again, world = run(scenario, Schedule(needed))
            found.add(kind)
            yield Found(scenario, needed, str(again), world.trace)


def _batch(work: tuple[str, int, int]) -> list[Found]:
    return list(explore(*work))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make explore", description=__doc__.partition("\n")[0])
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    options = parser.parse_args()
    print(f"SEED={options.seed}", flush=True)
    each = -(-options.schedules // len(options.scenarios))
    work = [
        (scenario, options.seed + first, min(_BATCH, each - first))
        for first, scenario in itertools.product(range(0, each, _BATCH), options.scenarios)
    ]
    begun, done, violations = time.monotonic(), 0, 0
    # An executor says so when one of its processes is killed; a pool would wait for ever.
    with ProcessPoolExecutor(options.processes) as pool:
        for batch, found in zip(work, pool.map(_batch, work), strict=True):
            done += batch[2]
            violations += len(found)
            for one in found:
                print(f"{one.scenario}: {one.what}\n  {one.deviations}", *one.trace, sep="\n  ", flush=True)
    seconds = time.monotonic() - begun
    print(f"{done} schedules of {len(options.scenarios)} scenarios in {seconds:.0f} s, {violations} violations")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
