"""A failed job goes on where it failed; what is kept for that goes away in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from ground import Ground, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import JobFailed, JobNotFound, RequestError
from layerfarm.worker.client import Job
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.model import JobState

KEYS = Keys()


def failed(ground: Ground, **fields: object) -> Job:
    """A job of which unit 1 of the first stage failed, after unit 0, as in a worker of one process."""
    request = ToyRequest(directory=ground.allowed, trouble="error-until-repaired", **fields)  # type: ignore[arg-type]
    job = ground.farm().submit(request)
    with pytest.raises(JobFailed):
        job.result(90)
    return job


def repair(ground: Ground) -> None:
    (ground.allowed / "repaired").touch()


def runs(ground: Ground) -> list[int]:
    return [ground.marks(f"run-{number}") for number in range(4)]


def test_only_units_that_did_not_finish_run_again(ground: Ground) -> None:
    ground.start_worker(concurrency=1, retry_for=600)
    # 2 and 3 have not begun when 1 fails.
    job = failed(ground)
    assert runs(ground) == [1, 1, 0, 0]
    record = job.record()
    assert record.kept is not None and record.ended is not None and record.kept > record.ended
    assert (ground.allowed / "staged").exists()
    assert ground.marks("clean-False") == 0

    repair(ground)
    assert job.retry()
    assert job.result(90) == ToyResult(total=18)
    assert runs(ground) == [3, 4, 3, 3]
    assert [ground.marks(name) for name in ("begin", "clean-True", "clean-False")] == [1, 1, 0]
    record = job.record()
    assert (record.retries, record.kept, record.error) == (1, None, None)
    assert not (ground.allowed / "staged").exists()


def test_retried_job_that_fails_again_can_be_retried_again(ground: Ground) -> None:
    ground.start_worker(concurrency=1, retry_for=600)
    job = failed(ground)
    assert job.retry()
    with pytest.raises(JobFailed, match="not repaired"):
        job.result(90)
    repair(ground)
    assert job.retry()
    assert job.result(90) == ToyResult(total=18)
    assert job.record().retries == 2


def test_poison_unit_is_tried_as_often_once_more(ground: Ground) -> None:
    ground.start_worker(concurrency=1, retry_for=600, deliveries=2)
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, rounds=1, trouble="crash-until-repaired"))
    with pytest.raises(JobFailed, match="killed its worker process at every try"):
        job.result(90)
    assert ground.marks("run-1") == 2
    # Kept for inspection: what the unit was given.
    assert b"number" in bytes(ground.farm().client.hget(KEYS.job(job.id).units, "unit:1") or "", "utf-8")
    repair(ground)
    assert job.retry()
    assert job.result(90) == ToyResult(total=6)
    assert ground.marks("run-0") == 1


def test_kept_jobs_are_removed_when_they_expire(ground: Ground) -> None:
    ground.start_worker(concurrency=1, retry_for=2, look_every=0.5)
    job = failed(ground)
    until(lambda: ground.marks("clean-False"), timeout=40)
    until(lambda: job.record().kept is None)
    assert job.record().state is JobState.FAILED
    assert not (ground.allowed / "staged").exists()
    keys = KEYS.job(job.id)
    assert ground.farm().client.exists(keys.units, keys.claims, "layerfarm:kept") == 0

    # It can still be retried, from its beginning.
    repair(ground)
    assert not job.retry()
    assert job.result(90) == ToyResult(total=18)
    assert ground.marks("begin") == 2


def test_kept_jobs_are_removed_at_once_on_request(ground: Ground) -> None:
    ground.start_worker(concurrency=1, retry_for=600)
    job = failed(ground)
    assert job.discard()
    until(lambda: ground.marks("clean-False"))
    until(lambda: job.record().kept is None)
    assert not job.discard()
    assert ground.marks("clean-False") == 1


def test_job_that_failed_before_any_unit_is_not_kept(ground: Ground) -> None:
    ground.start_worker(retry_for=600)
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, trouble="begin-error"))
    with pytest.raises(JobFailed):
        job.result(90)
    assert job.record().kept is None


def test_retry_after_a_change_of_the_tree_restarts(ground: Ground) -> None:
    ground.start_worker(concurrency=1, retry_for=600)
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, trouble="changed-until-repaired"))
    with pytest.raises(JobFailed):
        job.result(90)
    assert job.record().kept is not None
    repair(ground)
    assert not job.retry()
    assert job.result(90) == ToyResult(total=18)
    assert ground.marks("begin") == 2


def test_only_a_failed_job_can_be_retried(shared: Ground, allowed: Path) -> None:
    farm = shared.farm()
    done = farm.submit(ToyRequest(directory=allowed))
    done.result(90)
    with pytest.raises(RequestError, match="only a job that failed"):
        done.retry()
    cancelled = farm.submit(ToyRequest(directory=allowed, sleep=5))
    cancelled.cancel()
    until(lambda: cancelled.record().state.final)
    with pytest.raises(RequestError, match="only a job that failed"):
        cancelled.retry()
    with pytest.raises(JobNotFound):
        Job(farm, "never-was").retry()
