"""Coalescing of pushes, and the times of new attempts."""

from __future__ import annotations

import random

from layerfarm.worker.catalog.serve.backlog import LONGEST_BATCH, Backlog
from layerfarm.worker.catalog.serve.times import Times


def test_a_run_waits_until_pushes_have_settled() -> None:
    backlog = Backlog(Times(5.0))
    assert backlog.next_time() is None and backlog.take(0.0) == []
    backlog.pushed(["a:1"], 100.0)
    backlog.pushed(["b:1", "a:1"], 103.0)
    assert backlog.next_time() == 108.0
    assert backlog.take(107.9) == []
    assert backlog.take(108.0) == ["a:1", "b:1"]
    assert backlog.take(200.0) == [] and len(backlog) == 2 and backlog.oldest == 100.0
    backlog.ended([], 109.0)
    assert len(backlog) == 0 and backlog.oldest is None


def test_pushes_that_never_settle_do_not_wait_for_ever() -> None:
    backlog = Backlog(Times(5.0))
    for second in range(49):
        backlog.pushed([f"a:{second}"], float(second))
        assert backlog.take(float(second)) == []
    backlog.pushed(["a:49"], 49.0)
    assert backlog.next_time() == 50.0
    assert len(backlog.take(50.0)) == 50


def test_a_push_during_the_run_is_run_again_whether_it_fails_or_not() -> None:
    for failed in ([], ["a:1"]):
        backlog = Backlog(Times(5.0))
        backlog.pushed(["a:1"], 0.0)
        assert backlog.take(5.0) == ["a:1"]
        backlog.pushed(["a:1"], 6.0)
        backlog.ended(failed, 7.0)
        assert backlog.next_time() == 11.0
        assert backlog.take(11.0) == ["a:1"]


def test_a_failed_name_is_tried_after_a_growing_time_and_stops_no_other() -> None:
    backlog = Backlog(Times(1.0))
    backlog.pushed(["a:1", "b:1"], 0.0)
    now, waits = 1.0, []
    assert backlog.take(now) == ["a:1", "b:1"]
    for _ in range(12):
        backlog.ended(["a:1"], now)
        due = backlog.next_time()
        assert due is not None and backlog.take(due - 0.1) == []
        waits.append(due - now)
        now = due
        assert backlog.take(now) == ["a:1"]
    assert waits[:4] == [10.0, 20.0, 40.0, 80.0] and waits[-1] == 3600.0
    backlog.ended(["a:1"], now)
    backlog.pushed(["c:1"], now)
    assert backlog.take(now + 1.0) == ["c:1"]
    assert Times().wait_after(10_000) == 3600.0


def test_a_new_push_of_a_failed_name_is_tried_at_once() -> None:
    backlog = Backlog(Times(1.0))
    backlog.pushed(["a:1"], 0.0)
    backlog.take(1.0)
    backlog.ended(["a:1"], 1.0)
    backlog.pushed(["a:1"], 2.0)
    assert backlog.take(3.0) == ["a:1"]


def test_a_batch_is_bounded_and_takes_those_that_wait_longest() -> None:
    backlog = Backlog(Times(0.0))
    names = [f"a:{number:04}" for number in range(LONGEST_BATCH + 3)]
    for number, name in enumerate(reversed(names)):
        backlog.pushed([name], float(number))
    assert sorted(backlog.take(1e6)) == names[3:]
    backlog.ended([], 1e6)
    assert sorted(backlog.take(1e6)) == names[:3]


def test_the_next_time_is_the_first_at_which_a_name_is_due() -> None:
    """Whatever happened before: else a loop would wait too long, or not at all."""
    for seed in range(300):
        rng = random.Random(seed)
        backlog, now = Backlog(Times(rng.choice([0.0, 1.0, 5.0]))), 0.0
        for _ in range(30):
            now += rng.random() * 8
            if rng.random() < 0.5:
                backlog.pushed([f"a:{rng.randrange(5)}"], now)
            else:
                taken = backlog.take(now)
                backlog.ended([name for name in taken if rng.random() < 0.5], now)
            due = backlog.next_time()
            if due is not None and due > now:
                assert backlog.take((now + due) / 2) == []
        if (due := backlog.next_time()) is not None:
            assert backlog.take(max(due, now)) != []
