"""The order in which a worker looks at the queues."""

from __future__ import annotations

from collections import Counter

from layerfarm.worker.broker.priorities import Queues, Traffic, WeightedRoundRobin

QUEUES = Queues.of("farm")


def taken(waiting: set[str], count: int) -> Counter[str]:
    """Which queues ``count`` messages come from while every one of ``waiting`` always holds some."""
    turns = WeightedRoundRobin()
    turns.update(QUEUES)
    found: Counter[str] = Counter()
    for _ in range(count):
        queue = next(name for name in turns.consume(len(QUEUES)) if name in waiting)
        turns.rotate(queue)
        found[queue] += 1
    return found


def test_bulk_has_one_message_in_eight_while_interactive_work_waits() -> None:
    found = taken({QUEUES.units, QUEUES.start, QUEUES.bulk_units, QUEUES.bulk_start}, 800)
    assert found == {QUEUES.units: 500, QUEUES.start: 200, QUEUES.bulk_units: 100}


def test_bulk_has_everything_while_nothing_else_waits() -> None:
    assert taken({QUEUES.bulk_units}, 80) == {QUEUES.bulk_units: 80}


def test_units_of_bulk_jobs_that_have_begun_come_before_new_ones() -> None:
    assert taken({QUEUES.bulk_units, QUEUES.bulk_start}, 80) == {QUEUES.bulk_units: 80}


def test_control_always_comes_first_and_takes_no_turn() -> None:
    assert taken(set(QUEUES), 80) == {QUEUES.control: 80}
    turns = WeightedRoundRobin(QUEUES)
    before = turns.consume(5)
    turns.rotate(QUEUES.control)
    assert turns.consume(5) == before


def test_queues_that_are_not_ours_are_looked_at_too() -> None:
    turns = WeightedRoundRobin([*QUEUES, "worker.pidbox"])
    assert set(turns.consume(6)) == {*QUEUES, "worker.pidbox"}


def test_each_class_has_its_own_queues() -> None:
    assert QUEUES.units_of(Traffic.BULK) == "farm.bulk-units"
    assert QUEUES.starts_of(Traffic.BULK) == "farm.bulk-start"
    assert QUEUES.units_of(Traffic.INTERACTIVE) == "farm.units"
    assert QUEUES.starts_of(Traffic.INTERACTIVE) == "farm.start"
