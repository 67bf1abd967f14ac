"""Jobs that older versions queued are run, shown and retried by this one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from layerfarm.jobs.flows import Flows
from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.model import JobState
from tests.compatibility.write import PLACE, restore
from tests.farm.ground import Ground

pytestmark = pytest.mark.usefixtures("as_root")


@pytest.fixture
def ground(written: Path, disk: Path, expected: dict[str, Any], tmp_path: Path) -> Iterator[Ground]:
    """A Redis with the keys of that version, whose jobs are about ``disk``; no worker."""
    with ExitStack() as stack:
        ground = Ground(tmp_path, stack, allowed=disk)
        client = client_of(ground.settings().address)
        restore(client, json.loads((written / "queue.json").read_text().replace(PLACE, str(disk))))
        # As if it had been written just now: the work of the failed job is not yet due for removal.
        keys, until = Keys(), int((time.time() + 3600) * 1000)
        client.zadd(keys.kept, {expected["failed"]: until})
        client.hset(keys.job(expected["failed"]).job, "kept", str(until))
        yield ground


def test_records_are_shown(ground: Ground, expected: dict[str, Any]) -> None:
    records = {record.id: record for record in ground.farm().jobs()}
    assert {records[job].kind for job in expected["waiting"].values()} == set(expected["waiting"])
    assert {records[job].state for job in expected["waiting"].values()} == {JobState.QUEUED}
    failed = records[expected["failed"]]
    assert failed.state is JobState.FAILED and failed.error is not None and failed.error.type
    done = ground.farm().job(expected["done"])
    assert json.loads(done.result(5).model_dump_json()) == expected["result"]


def test_waiting_jobs_of_every_kind_are_run(ground: Ground, expected: dict[str, Any]) -> None:
    assert set(expected["waiting"]) <= set(Flows())
    ground.start_worker(flows="")
    for kind, job in expected["waiting"].items():
        assert ground.farm().job(job).result(120), kind
    census = ground.farm().census()
    assert (sum(census.jobs.values()), census.refused) == (0, 0)


def test_failed_job_continues_with_its_work(ground: Ground, expected: dict[str, Any]) -> None:
    ground.start_worker(flows="", retry_for=3600)
    job = ground.farm().job(expected["failed"])
    assert job.retry()
    result = json.loads(job.result(120).model_dump_json())
    assert result["layer"] == expected["result"]["layer"]
