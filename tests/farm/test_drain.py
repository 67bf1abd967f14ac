"""Workers that are stopped while they work, and workers and clients of different versions."""

from __future__ import annotations

from pathlib import Path

import pytest
from ground import Ground, running, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import JobFailed
from layerfarm.jobs.flows.base import FORMAT
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.model import JobState


def test_unit_that_listens_is_handed_back_when_the_grace_is_over(ground: Ground) -> None:
    worker = ground.start_worker(drain=0.2, deliveries=1)
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, numbers=2, rounds=1, sleep=30))
    until(lambda: ground.marks("run-0") and ground.marks("run-1"))
    worker.terminate()
    assert worker.wait(90) == 0
    assert ground.marks("stopped") == 2
    assert job.record().units_done == 0
    assert ground.farm().store.look(job.id, -1).items == tuple(Item(job.id, 1, "unit", 0, index) for index in (0, 1))
    assert ground.log().count("handed back") == 2


def test_job_of_a_worker_that_was_stopped_is_finished_by_another(ground: Ground) -> None:
    worker = ground.start_worker(drain=0.2, deliveries=1)
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, numbers=3, rounds=2, sleep=2))
    until(lambda: ground.marks("run-0") and ground.marks("run-1"))
    ground.start_worker(deliveries=1)
    worker.terminate()
    assert worker.wait(90) == 0
    assert job.result(60) == ToyResult(total=6)
    assert ground.marks("clean-True") == 1


def test_the_worker_of_the_last_unit_decides_the_end_of_the_job(ground: Ground) -> None:
    """Else a worker of another version may come by the job when its tag is given, and refuse it."""
    worker = ground.start_worker()
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, numbers=1, rounds=3, sleep=1))
    until(lambda: ground.marks("run-0") == 3)
    worker.terminate()
    assert worker.wait(90) == 0
    assert ground.farm().store.view(job.id).ending is JobState.SUCCEEDED
    ground.start_worker()
    assert job.result(90) == ToyResult(total=0)


def test_unit_that_does_not_listen_is_killed_and_handed_back(ground: Ground) -> None:
    # The lease is long: nothing but the hand-back can give the units to the second worker in time.
    worker = ground.start_worker(drain=0.2, deliveries=1, lease=3000, look_every=1000)
    job = ground.farm(look_every=1000).submit(ToyRequest(directory=ground.allowed, numbers=2, rounds=1, deaf=12))
    until(lambda: ground.marks("run-0") and ground.marks("run-1"))
    worker.terminate()
    assert worker.wait(90) == 0
    assert job.record().units_done == 0

    ground.start_worker(deliveries=1, lease=3000, look_every=1000)
    until(lambda: ground.marks("run-0") == 2 and ground.marks("run-1") == 2)
    assert job.result(60) == ToyResult(total=1)


def test_job_of_another_format_is_refused_and_says_why(shared: Ground, allowed: Path) -> None:
    farm = shared.farm()
    request = ToyRequest(directory=allowed).model_dump_json()
    farm.store.submit("from-the-future", "toy", request, 3, version=FORMAT + 1)
    farm.sender.send([Item("from-the-future", 1, "advance")])
    with pytest.raises(JobFailed, match=f"job has format {FORMAT + 1}, this worker reads {FORMAT - 1} and {FORMAT}"):
        farm.job("from-the-future").result(90)
    # Nothing of it is begun; what a worker of its version may have staged is removed.
    assert {path.name.partition(".")[0] for path in allowed.iterdir()} == {"clean-False"}


def test_job_of_the_first_version_is_refused_and_says_why(shared: Ground, allowed: Path) -> None:
    farm = shared.farm()
    farm.store.submit("from-the-past", "toy", ToyRequest(directory=allowed).model_dump_json(), 3)
    farm.client.hdel("layerfarm:job:from-the-past", "format", "traffic", "submitter", "attempt")
    farm.sender.send([Item("from-the-past", 0, "advance")])
    with pytest.raises(JobFailed, match=f"job has format 1, this worker reads {FORMAT - 1} and {FORMAT}"):
        farm.job("from-the-past").result(90)


def test_state_that_another_version_wrote_fails_the_job_clearly(ground: Ground) -> None:
    farm = ground.farm(look_every=0.5)
    worker = ground.start_worker()
    job = farm.submit(ToyRequest(directory=ground.allowed, numbers=2, rounds=1, sleep=2))
    running(job)
    until(lambda: ground.marks("run-0") and ground.marks("run-1"))
    farm.client.hset(f"layerfarm:job:{job.id}", "flow_state", '{"of": "another version"}')
    with pytest.raises(JobFailed, match="begun by another version of layerfarm"):
        job.result(90)
    assert worker.poll() is None
