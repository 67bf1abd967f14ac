"""Equal work of different jobs is done once, although processes die, are stopped or are cancelled meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from ground import Ground, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import JobCancelled, JobFailed
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef
from layerfarm.jobs.store import Layout
from layerfarm.worker.client import Job
from layerfarm.worker.jobstore.keys import Keys

KEYS = Keys()


def submitted(ground: Ground, count: int, **fields: object) -> list[Job]:
    """Jobs of the same first stage, each in a directory of its own, whose units leave their marks in one."""
    farm = ground.farm()
    jobs = []
    for _ in range(count):
        directory = ground.allowed / os.urandom(4).hex()
        directory.mkdir()
        request = ToyRequest(directory=directory, marks=ground.allowed, rounds=1, shared="x", **fields)  # type: ignore[arg-type]
        jobs.append(farm.submit(request))
    return jobs


def executions(ground: Ground) -> list[int]:
    """Number of times that each equal piece of work was begun, by its fencing numbers."""
    client = ground.farm().client
    return [int(client.hget(key, "executions") or 0) for key in client.scan_iter(KEYS.prefix + "work:*", _type="hash")]


def test_ten_jobs_of_equal_units_do_each_once(ground: Ground) -> None:
    ground.start_worker()
    ground.start_worker()
    for job in submitted(ground, 10, numbers=3, sleep=0.3):
        assert job.result(60) == ToyResult(total=3)
    assert [ground.marks(f"run-{number}") for number in range(3)] == [1, 1, 1]
    assert executions(ground) == [1, 1, 1]
    client = ground.farm().client
    assert client.exists(KEYS.works) == 0
    assert list(client.scan_iter(KEYS.prefix + "work:*:waiting")) == []


def test_units_that_are_not_equal_are_all_done(ground: Ground) -> None:
    ground.start_worker()
    farm = ground.farm()
    jobs = [farm.submit(ToyRequest(directory=ground.allowed, rounds=1, shared=word)) for word in ("a", "b", "", "")]
    for job in jobs:
        job.result(90)
    assert ground.marks("run-0") == 4


def test_waiting_for_equal_work_keeps_no_process_from_other_work(ground: Ground) -> None:
    ground.start_worker(concurrency=2)
    jobs = submitted(ground, 6, numbers=1, trouble="wait-until-repaired")
    until(lambda: ground.marks("run-0"))
    # One process is at it, and waits for us; were the other one waiting for it, this would never end.
    assert ground.farm().submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
    assert not any(job.record().state.final for job in jobs)
    for job in jobs:
        (Path(job.record().request["directory"]) / "repaired").touch()
    for job in jobs:
        job.result(90)
    assert executions(ground) == [1]


def test_work_whose_worker_is_killed_is_taken_over(ground: Ground) -> None:
    worker = ground.start_worker(concurrency=1, lease=2, look_every=0.5)
    jobs = submitted(ground, 3, numbers=1, sleep=4)
    until(lambda: ground.marks("run-0"))
    worker.kill()
    worker.wait()
    # Its own lease is the usual one: it is not lost on a busy machine.
    ground.start_worker(look_every=0.5)
    for job in jobs:
        assert job.result(60) == ToyResult(total=0)
    assert ground.marks("run-0") == 2
    assert executions(ground) == [2]


def test_holder_that_was_paused_past_its_lease_does_no_harm(ground: Ground) -> None:
    worker = ground.start_worker(concurrency=1, lease=3, look_every=0.5)
    jobs = submitted(ground, 2, numbers=1, deaf=2)
    until(lambda: ground.marks("run-0"))
    paused = psutil.Process(worker.pid).children()
    for process in paused:
        process.suspend()
    ground.start_worker(lease=3, look_every=0.5)
    until(lambda: ground.marks("run-0") >= 2)
    for process in paused:
        process.resume()
    for job in jobs:
        assert job.result(60) == ToyResult(total=0)
    assert executions(ground) == [2]


def test_cancel_of_the_job_that_does_the_work_lets_another_do_it(ground: Ground) -> None:
    ground.start_worker()
    first, second = submitted(ground, 2, numbers=1, sleep=6)
    until(lambda: ground.marks("run-0"))
    holder, waiting = (first, second) if first.record().state == "running" else (second, first)
    until(lambda: "waiting for equal work" in ground.log())
    holder.cancel()
    outcomes = []
    for job in (holder, waiting):
        try:
            outcomes.append(job.result(60))
        except JobCancelled:
            outcomes.append(None)
    # Which of the two was at work is the machine's affair; the other one was not harmed.
    assert outcomes[1] == ToyResult(total=0)
    assert outcomes[0] is None


def test_error_in_equal_work_is_each_jobs_own(ground: Ground) -> None:
    ground.start_worker()
    jobs = submitted(ground, 3, numbers=2, trouble="error")
    for job in jobs:
        with pytest.raises(JobFailed, match="number one is odd"):
            job.result(90)
    assert ground.marks("run-1") == 3


def test_result_that_holds_no_more_is_not_used(ground: Ground) -> None:
    ground.start_worker()
    (first,) = submitted(ground, 1, numbers=1)
    first.result(90)
    directory = ground.allowed / "other"
    directory.mkdir()
    (directory / "lost").touch()
    request = ToyRequest(directory=directory, marks=ground.allowed, numbers=1, rounds=1, shared="x")
    assert ground.farm().submit(request).result(90) == ToyResult(total=0)
    assert ground.marks("run-0") == 2


def test_two_builds_of_one_tree_pack_and_import_once(ground: Ground) -> None:
    """The real flow: equal bytes, one execution of each import and of the pack; gone blobs are made again."""
    tree = ground.allowed / "tree"
    tree.mkdir()
    for number in range(50):
        (tree / f"file-{number}").write_bytes(os.urandom(2000))
    other, store = (Layout.create(ground.allowed / name).path for name in ("other", "store"))
    ground.start_worker(concurrency=2)
    farm = ground.farm()
    farm.submit(BuildRequest(rootfs=tree, image=ImageRef(store=other, tag="base"))).result(60)
    (tree / "more").write_bytes(b"more")
    client = farm.client
    for key in client.scan_iter(KEYS.prefix + "work:*"):
        client.delete(key)

    base = ImageRef(store=other, tag="base")
    jobs = [
        farm.submit(BuildRequest(rootfs=tree, base=base, image=ImageRef(store=store, tag=f"v{number}")))
        for number in range(4)
    ]
    results = [job.result(60) for job in jobs]
    assert len({result.layer for result in results}) == len({result.manifest for result in results}) == 1  # type: ignore[attr-defined]
    # A layer, a config and a manifest are imported, one layer is packed.
    assert executions(ground) == [1, 1, 1, 1]

    _remove_blob(store, results[0].layer)  # type: ignore[attr-defined]
    again = farm.submit(BuildRequest(rootfs=tree, base=base, image=ImageRef(store=store, tag="v5"))).result(60)
    assert again.manifest == results[0].manifest  # type: ignore[attr-defined]
    assert sorted(executions(ground)) == [1, 1, 1, 2]


def _remove_blob(store: Path, digest: str) -> None:
    Layout.open(store).blob_path(digest).unlink()
