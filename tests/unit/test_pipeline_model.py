"""The model of larger machines in tests/bench: all work on one processor, and never less than its longest thread."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.pipeline import Block, Costs, busy, simulate

SMALL = Block(generate=1.0, digest=0.1, compress=0.5, store=0.1, collect=0.1, helper=1.0, name=0.05)
LARGE = Block(generate=0.4, digest=0.5, compress=2.0, store=0.3)


def costs(block: Block, count: int = 200) -> Costs:
    return Costs(survey=1.0, plan=0.5, hash=8.0, compare=2.0, manifest=3.0, keys=1.0, blocks=[block] * count)


@pytest.mark.parametrize("block", [SMALL, LARGE])
def test_one_processor_takes_the_sum(block: Block) -> None:
    each = block.generate + block.digest + block.compress + block.store + block.name
    assert sum(simulate(costs(block), 1).values()) == pytest.approx(1.0 + 0.5 + 8.0 + 2.0 + 3.0 + 1.0 + 200 * each)


@pytest.mark.parametrize("block", [SMALL, LARGE])
def test_more_processors_take_less_until_one_thread_bounds_them(block: Block) -> None:
    many = costs(block, 1000)
    packs = [simulate(many, count)["pack"] for count in (1, 2, 4, 8)]
    assert packs == sorted(packs, reverse=True)
    bound = max(busy(many, 64).values())
    assert bound < simulate(many, 64)["pack"] < 1.1 * bound


def test_helpers_shorten_the_survey_to_the_work_of_the_caller() -> None:
    found = replace(costs(SMALL), walk_caller=0.2, walk_helpers=1.4)
    surveys = [simulate(found, count)["survey"] for count in (1, 3, 4, 8, 64)]
    assert surveys == pytest.approx([1.0, 1.0, 0.4, 0.2, 0.2])
    assert simulate(found, 64, helpers=False)["survey"] == 1.0


def test_without_helpers_the_thread_that_reads_bounds_small_files() -> None:
    assert simulate(costs(SMALL, 1000), 64, helpers=False)["pack"] == pytest.approx(1.0 + 1000 * 1.0, rel=0.02)
    assert simulate(costs(SMALL), 64)["pack"] < 40


def test_a_queue_makes_a_fast_thread_wait_for_a_slow_one() -> None:
    # The first half is slow to be digested, the second to be stored: four pieces of a queue do not balance them.
    halves = [Block(0.0, 1.0, 0.0, 0.1)] * 100 + [Block(0.0, 0.1, 0.0, 1.0)] * 100
    found = Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, halves)
    assert busy(found, 64)["diff_id"] == pytest.approx(110)
    assert simulate(found, 64)["pack"] > 190
