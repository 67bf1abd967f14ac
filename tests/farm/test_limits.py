"""Limits of one job: time, bytes, memory; a job that exceeds them harms no other."""

from __future__ import annotations

import pytest
from ground import Ground, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import JobFailed, RequestError
from layerfarm.worker.client import Job
from layerfarm.worker.settings import load_settings


def exceeded(job: Job, message: str) -> None:
    with pytest.raises(JobFailed, match=message) as caught:
        job.result(90)
    assert caught.value.error_type == "LimitExceeded"


def test_job_that_takes_too_long_is_ended_though_each_of_its_units_is_short(ground: Ground) -> None:
    ground.start_worker(job_time_limit=5, look_every=0.3)
    farm = ground.farm()
    job = farm.submit(ToyRequest(directory=ground.allowed, numbers=100, sleep=0.2))
    exceeded(job, r"job took longer than 5 s \(see LAYERFARM_JOB_TIME_LIMIT\)")
    record = job.record()
    assert record.started and record.ended and record.ended - record.started >= 5
    assert ground.marks("clean-False") == 1
    assert not (ground.allowed / "staged").exists()
    assert farm.submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)


def test_time_limit_of_a_retried_job_starts_again(ground: Ground) -> None:
    ground.start_worker(job_time_limit=5, look_every=0.3, retry_for=600)
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, trouble="wait-until-repaired"))
    exceeded(job, "job took longer than 5 s")
    (ground.allowed / "repaired").touch()
    assert job.retry()
    assert job.result(90) == ToyResult(total=18)
    assert ground.marks("run-0") == 3


def test_time_in_the_queue_does_not_count(ground: Ground) -> None:
    job = ground.farm().submit(ToyRequest(directory=ground.allowed))
    until(lambda: ground.farm().store.now() / 1000 - job.record().submitted > 1)
    ground.start_worker(job_time_limit=1, look_every=0.2)
    assert job.result(90) == ToyResult(total=18)


def test_job_of_too_many_bytes_is_refused_before_it_reads_them(ground: Ground) -> None:
    ground.start_worker(job_bytes_limit="1M")
    farm = ground.farm()
    job = farm.submit(ToyRequest(directory=ground.allowed, numbers=2, rounds=3, unit_bytes=200_000))
    # Two stages are within the limit, the third one is not.
    exceeded(job, r"job would read and write 1200000 bytes, more than 1048576")
    assert [ground.marks(name) for name in ("run-0", "run-1", "clean-False")] == [2, 2, 1]
    assert farm.submit(ToyRequest(directory=ground.allowed, unit_bytes=1)).result(90) == ToyResult(total=18)


def test_unit_that_needs_too_much_memory_fails_its_job_and_not_the_process(ground: Ground) -> None:
    worker = ground.start_worker(unit_memory_limit="512M")
    farm = ground.farm()
    job = farm.submit(ToyRequest(directory=ground.allowed, numbers=2, trouble="greedy"))
    exceeded(job, "unit ran out of memory")
    assert ground.marks("run-1") == 1
    assert worker.poll() is None
    assert farm.submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)


def test_sizes_are_written_as_limits_are() -> None:
    assert load_settings(unit_memory_limit="2G", job_bytes_limit="3T").unit_memory_limit == 2 << 30
    for bad in ("2 G", "many", "-1"):
        with pytest.raises(RequestError, match="unit_memory_limit"):
            load_settings(unit_memory_limit=bad)
