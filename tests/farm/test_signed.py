"""A farm whose workers take signed requests only, and clients that send none, or another user's."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest
from ground import Ground, running, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import JobFailed, RequestError
from layerfarm.worker.client import Farm, Job
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.worker_main import run_worker

KEYS = Keys()


class Keys:
    """The keys of a farm: one for each of two submitters."""

    def __init__(self, ground: Ground) -> None:
        self.directory = ground.directory / "keys"
        self.directory.mkdir(mode=0o700)
        self.secrets = {name: os.urandom(32).hex() for name in ("ci", "other")}
        for name, secret in self.secrets.items():
            path = self.directory / name
            path.write_text(secret + "\n")
            path.chmod(0o600)

    def farm(self, ground: Ground, submitter: str, key: str | None = None, **settings: object) -> Farm:
        return ground.farm(submitter=submitter, key_file=self.directory / (key or submitter), **settings)


@pytest.fixture
def keys(ground: Ground) -> Keys:
    return Keys(ground)


def refused(job: Job, message: str) -> None:
    with pytest.raises(JobFailed, match=message) as caught:
        job.result(90)
    assert caught.value.error_type == "Untrusted"


def test_signed_request_is_done_and_no_key_is_shown(ground: Ground, keys: Keys) -> None:
    worker = ground.start_worker(keys=keys.directory, log_level="debug")
    farm = keys.farm(ground, "ci")
    job = farm.submit(ToyRequest(directory=ground.allowed))
    assert job.result(90) == ToyResult(total=18)
    processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
    shown = [" ".join(process.cmdline()) for process in processes]
    shown += [job.record().model_dump_json(), ground.log(), repr(farm.workers())]
    shown += [json.dumps([*farm.client.hgetall(KEYS.job(job.id).job).items()])]
    assert not any(secret in "".join(shown) for secret in keys.secrets.values())


def test_unsigned_forged_and_borrowed_requests_are_refused(ground: Ground, keys: Keys) -> None:
    ground.start_worker(keys=keys.directory)
    request = ToyRequest(directory=ground.allowed)
    refused(ground.farm(submitter="ci").submit(request), "request is not signed")
    refused(keys.farm(ground, "ci", key="other").submit(request), "not valid for its submitter: ci")
    refused(keys.farm(ground, "nobody", key="ci").submit(request), "not valid for its submitter: nobody")
    refused(keys.farm(ground, "ci").submit(request, submitter="other"), "not valid for its submitter: other")
    assert list(ground.allowed.iterdir()) == []


def test_altered_expired_and_replayed_requests_are_refused(ground: Ground, keys: Keys) -> None:
    farm = keys.farm(ground, "ci")
    client = farm.client
    altered = farm.submit(ToyRequest(directory=ground.allowed))
    elsewhere = ToyRequest(directory=ground.allowed / "..").model_dump_json()
    client.hset(KEYS.job(altered.id).job, "request", elsewhere)
    # The first of these expires before there is a worker, the other one outlives what workers take.
    late = keys.farm(ground, "ci", signature_valid=0.01).submit(ToyRequest(directory=ground.allowed))
    long = keys.farm(ground, "ci", signature_valid=2 * 24 * 3600).submit(ToyRequest(directory=ground.allowed))
    good = farm.submit(ToyRequest(directory=ground.allowed, numbers=1))
    record = client.hgetall(KEYS.job(good.id).job)
    ground.start_worker(keys=keys.directory)
    refused(altered, "not valid for its submitter")
    refused(late, "signature of the request has expired")
    refused(long, "valid for too long")
    assert good.result(90) == ToyResult(total=0)

    # Under another id, it is another request; under its own, it was used before.
    client.hset(KEYS.job("another").job, mapping=record | {"id": "another"})
    farm.sender.send([Item("another", 1, "advance")])
    refused(farm.job("another"), "not valid for its submitter")
    client.delete(*KEYS.job(good.id)[:4])
    client.hset(KEYS.job(good.id).job, mapping=record)
    farm.sender.send([Item(good.id, 1, "advance")])
    refused(good, "was used before")
    assert ground.marks("begin") == 1


def test_request_that_is_altered_while_its_job_runs_ends_it(ground: Ground, keys: Keys) -> None:
    ground.start_worker(keys=keys.directory, concurrency=1)
    farm = keys.farm(ground, "ci")
    job = farm.submit(ToyRequest(directory=ground.allowed, numbers=8, rounds=1, sleep=0.4))
    running(job, units=1)
    farm.client.hset(KEYS.job(job.id).job, "request", ToyRequest(directory=ground.allowed).model_dump_json())
    refused(job, "not valid for its submitter")


def test_signed_job_goes_on_after_a_crash_at_its_beginning(ground: Ground, keys: Keys) -> None:
    """The nonce is spent when the first stage is open, and not before: so a job can begin again."""
    once = ground.allowed / "once"
    ground.start_worker(keys=keys.directory, kill_at="advance.claimed", kill_once=once)
    job = keys.farm(ground, "ci").submit(ToyRequest(directory=ground.allowed))
    assert job.result(60) == ToyResult(total=18)
    assert once.exists()


def test_only_the_submitter_can_restart_a_failed_job(ground: Ground, keys: Keys) -> None:
    ground.start_worker(keys=keys.directory, retry_for=0)
    farm = keys.farm(ground, "ci")
    job = farm.submit(ToyRequest(directory=ground.allowed, trouble="error-until-repaired"))
    with pytest.raises(JobFailed, match="not repaired"):
        job.result(90)
    (ground.allowed / "repaired").touch()
    assert not keys.farm(ground, "other").job(job.id).retry(restart=True)
    refused(job, "was used before")
    assert not job.retry(restart=True)
    assert job.result(90) == ToyResult(total=18)


def test_the_record_of_a_signature_expires_with_it(ground: Ground, keys: Keys) -> None:
    ground.start_worker(keys=keys.directory)
    farm = keys.farm(ground, "ci", signature_valid=3)
    assert farm.submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
    assert len(list(farm.client.scan_iter(KEYS.nonce + "*"))) <= 1
    until(lambda: not list(farm.client.scan_iter(KEYS.nonce + "*")))


def test_worker_whose_keys_cannot_be_used_does_not_start(ground: Ground, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="directory of keys cannot be read"):
        run_worker(ground.settings(keys=tmp_path / "none"))
