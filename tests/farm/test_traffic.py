"""Classes of traffic, turns of submitters, and a queue that is full."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest
from ground import Ground, running, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import FarmFull, RequestError
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.owner import this_process

KEYS = Keys()


def test_interactive_job_overtakes_bulk_work_between_units(ground: Ground) -> None:
    ground.start_worker(concurrency=1)
    (ground.allowed / "bulk").mkdir()
    farm = ground.farm()
    bulk = farm.submit(
        ToyRequest(directory=ground.allowed / "bulk", numbers=40, rounds=3, sleep=0.2), traffic=Traffic.BULK
    )
    running(bulk, units=1)
    assert farm.submit(ToyRequest(directory=ground.allowed, numbers=2)).result(90) == ToyResult(total=3)
    # Its 6 units overtook nearly all of the 120.
    record = bulk.record()
    assert (record.stage, record.traffic) == ("first", "bulk")
    assert record.units_done < 30
    bulk.cancel()


def test_bulk_work_goes_on_while_there_is_always_something_interactive(ground: Ground) -> None:
    (ground.allowed / "bulk").mkdir()
    farm = ground.farm()
    busy = [farm.submit(ToyRequest(directory=ground.allowed, numbers=40, rounds=1, sleep=0.06)) for _ in range(4)]
    bulk = farm.submit(ToyRequest(directory=ground.allowed / "bulk", numbers=2, rounds=1), traffic=Traffic.BULK)
    ground.start_worker(concurrency=1)
    assert bulk.result(60) == ToyResult(total=1)
    assert not all(job.record().state.final for job in busy)
    for job in busy:
        job.cancel()


def test_submitters_take_turns(ground: Ground) -> None:
    farm = ground.farm()
    many = [
        farm.submit(ToyRequest(directory=ground.allowed, numbers=1, rounds=1, sleep=0.1), submitter="many@here")
        for _ in range(8)
    ]
    one = farm.submit(ToyRequest(directory=ground.allowed, numbers=1, rounds=1), submitter="one@there")
    assert one.record().submitter == "one@there"
    ground.start_worker(concurrency=1)
    for job in (*many, one):
        job.result(90)
    started = sorted((job.record().started or 0, job.id) for job in (*many, one))
    assert started.index(((one.record().started or 0), one.id)) <= 2


def test_bulk_jobs_begin_when_those_before_them_have_no_units_left(ground: Ground) -> None:
    farm = ground.farm(traffic="bulk")
    jobs = [farm.submit(ToyRequest(directory=ground.allowed, numbers=4, rounds=1, sleep=0.1)) for _ in range(3)]
    ground.start_worker(concurrency=1)
    for job in jobs:
        job.result(90)
    records = sorted((job.record() for job in jobs), key=lambda record: record.started or 0)
    assert [record.id for record in records] == [job.id for job in jobs]
    # The last unit of one is taken before the next one begins, so no two have trees half done.
    assert [ground.marks(name) for name in ("begin", "clean-True")] == [3, 3]


def test_class_of_a_job_comes_from_the_environment(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERFARM_CLASS", "bulk")
    monkeypatch.setenv("LAYERFARM_SUBMITTER", "ci@build-7")
    record = ground.farm().submit(ToyRequest(directory=ground.allowed)).record()
    assert (record.traffic, record.submitter) == ("bulk", "ci@build-7")
    monkeypatch.setenv("LAYERFARM_CLASS", "urgent")
    with pytest.raises(RequestError, match=r"LAYERFARM_CLASS"):
        ground.farm()


def test_full_queue_refuses_at_once(ground: Ground) -> None:
    farm = ground.farm(most_queued=2)
    jobs = [farm.submit(ToyRequest(directory=ground.allowed)) for _ in range(2)]
    with pytest.raises(FarmFull, match="2 jobs are already waiting"):
        farm.submit(ToyRequest(directory=ground.allowed))
    with pytest.raises(FarmFull):
        farm.submit(ToyRequest(directory=ground.allowed), block=True, timeout=0.5)
    assert len(farm.jobs()) == 2
    # A job that ends before it began makes room.
    jobs[0].cancel()
    farm.submit(ToyRequest(directory=ground.allowed))


def test_submitter_that_waits_is_let_in_when_there_is_room(ground: Ground) -> None:
    first = ground.farm().submit(ToyRequest(directory=ground.allowed))
    second: list[object] = []

    def submit() -> None:
        with ExitStack() as stack:
            farm = stack.enter_context(ground.farm(most_queued=1))
            second.append(farm.submit(ToyRequest(directory=ground.allowed), block=True, timeout=60).result(60))

    waiting = threading.Thread(target=submit)
    waiting.start()
    ground.start_worker()
    waiting.join(80)
    assert second == [ToyResult(total=18)]
    # The worker runs two jobs at a time, and either can be the first to end.
    assert first.result(60) == ToyResult(total=18)


def test_long_queue_is_no_reason_to_send_first_messages_again(ground: Ground) -> None:
    farm = ground.farm(look_every=0.01)
    for _ in range(3):
        farm.submit(ToyRequest(directory=ground.allowed))
    client = farm.client
    recovery = replace(farm.recovery, every=0.0)
    for job_id in farm.store.active():
        recovery._look(job_id, -1.0, recovery.backlog.has_all_starts())
    assert client.llen("layerfarm:broker:layerfarm.start") == client.scard(KEYS.queued) == 3

    client.rpop("layerfarm:broker:layerfarm.start")
    recovery._look(farm.store.active()[0], -1.0, recovery.backlog.has_all_starts())
    assert client.llen("layerfarm:broker:layerfarm.start") == 3


def test_first_message_that_is_lost_after_its_job_was_chosen_is_made_good(ground: Ground) -> None:
    farm = ground.farm(look_every=0.5)
    one, two = (farm.submit(ToyRequest(directory=ground.allowed), submitter=name) for name in ("one", "two"))
    # A process takes the second one's message, chooses the first one by its turn, and dies.
    farm.client.rpop("layerfarm:broker:layerfarm.start")
    assert farm.store.next(two.id, 1, this_process()) == (one.id, 1)
    ground.start_worker(look_every=0.5)
    assert [job.result(90) for job in (one, two)] == [ToyResult(total=18)] * 2
    until(lambda: farm.client.scard(KEYS.queued) == 0)
