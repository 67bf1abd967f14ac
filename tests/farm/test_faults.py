"""Faults: killed processes, poison, lost messages, a Redis that is away, no worker at all."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import redis
from ground import Ground, running, until
from hosts import Host
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import FarmUnreachable, JobCancelled, JobFailed, JobNotFound, RequestError
from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.client import Farm
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.model import JobState
from layerfarm.worker.settings import load_settings
from layerfarm.worker.worker_main import run_worker
from tests.redis_server import server

KEYS = Keys()


def test_unit_whose_process_is_killed_is_run_again(ground: Ground) -> None:
    ground.start_worker()
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, numbers=6, trouble="crash-once"))

    assert job.result(90) == ToyResult(total=45)
    assert ground.marks("run-1") == 4
    assert [ground.marks(name) for name in ("begin", "join", "clean-True")] == [1, 3, 1]


def test_unit_that_kills_its_process_each_time_fails_the_job_and_not_the_worker(ground: Ground) -> None:
    worker = ground.start_worker(deliveries=3)
    farm = ground.farm()

    with pytest.raises(JobFailed, match="unit 1 of stage 1 killed its worker process at every try"):
        farm.submit(ToyRequest(directory=ground.allowed, trouble="crash")).result(90)
    assert ground.marks("run-1") == 3
    assert ground.marks("clean-False") == 1
    assert worker.poll() is None
    assert farm.submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)


def test_work_of_a_dead_process_is_taken_over_at_once(ground: Ground) -> None:
    """Its message, which comes again, is of an earlier step; leases and looks would take an hour."""
    ground.start_worker(lease=3000, look_every=1000)
    farm = ground.farm(look_every=1000)
    job = farm.submit(ToyRequest(directory=ground.allowed, numbers=1, trouble="crash-once"))
    assert job.result(60) == ToyResult(total=0)
    assert ground.marks("begin") == 1
    with pytest.raises(JobFailed, match="unit 0 of stage 1 killed its worker process at every try"):
        farm.submit(ToyRequest(directory=ground.allowed, numbers=1, trouble="crash")).result(60)


def test_whole_worker_killed_in_the_middle_of_units_loses_nothing(ground: Ground) -> None:
    worker = ground.start_worker(lease=2, look_every=1)
    job = ground.farm(look_every=1).submit(ToyRequest(directory=ground.allowed, numbers=4, rounds=1, sleep=1.5))
    until(lambda: ground.marks("run-0") and ground.marks("run-1"))
    children = psutil.Process(worker.pid).children()
    worker.kill()
    worker.wait()
    # Its processes do not outlive it: their work would be lost.
    assert psutil.wait_procs(children, timeout=60)[1] == []

    ground.start_worker(lease=2, look_every=1)
    assert job.result(90) == ToyResult(total=6)
    assert ground.marks("clean-True") == 1


def test_unit_running_twice_at_once_has_one_effect(ground: Ground) -> None:
    """The first holder is paused past its lease, and goes on when the second has begun."""
    worker = ground.start_worker(lease=3, look_every=0.5)
    job = ground.farm(look_every=0.5).submit(
        ToyRequest(directory=ground.allowed, numbers=2, rounds=1, deaf=3, unit_bytes=10)
    )
    until(lambda: ground.marks("run-0") and ground.marks("run-1"))
    paused = psutil.Process(worker.pid).children()
    for process in paused:
        process.suspend()
    ground.start_worker(lease=3, look_every=0.5)
    until(lambda: ground.marks("run-0") >= 2 and ground.marks("run-1") >= 2)
    for process in paused:
        process.resume()

    assert job.result(90) == ToyResult(total=1)
    record = job.record()
    assert (record.units_done, record.units_total) == (2, 2)
    assert (record.bytes_done, record.bytes_total) == (20, 20)
    assert ground.marks("clean-True") == 1


def test_lost_messages_are_sent_again(ground: Ground) -> None:
    farm = ground.farm(look_every=0.5)
    job = farm.submit(ToyRequest(directory=ground.allowed))
    assert farm.client.delete(KEYS.broker + "layerfarm.start") == 1
    ground.start_worker(look_every=0.5)
    assert job.result(90) == ToyResult(total=18)


def test_messages_lost_between_the_stages_are_sent_again(ground: Ground) -> None:
    worker = ground.start_worker(look_every=0.5)
    farm = ground.farm(look_every=0.5)
    job = farm.submit(ToyRequest(directory=ground.allowed, numbers=20, sleep=0.2))
    running(job, units=2)
    worker.terminate()
    worker.wait(90)
    farm.client.delete(KEYS.broker + "layerfarm.units", KEYS.broker + "layerfarm.control")
    assert job.record().state is JobState.RUNNING
    ground.start_worker(look_every=0.5)
    assert job.result(90) == ToyResult(total=3 * 190)
    assert ground.marks("join") == 3


def test_stopped_worker_finishes_running_units(ground: Ground) -> None:
    worker = ground.start_worker()
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, numbers=2, rounds=1, sleep=1))
    until(lambda: ground.marks("run-0") and ground.marks("run-1"))
    worker.terminate()
    assert worker.wait(90) == 0
    assert ground.farm().workers() == []
    assert job.record().units_done == 2
    assert ground.marks("stopped") == 0


def test_job_queued_while_no_worker_is_there_says_so_and_waits_for_one(ground: Ground) -> None:
    job = ground.farm().submit(ToyRequest(directory=ground.allowed))
    watch = job.watch()
    first, second = next(watch), next(watch)
    assert (first.state, first.notice) == (JobState.QUEUED, None)
    assert (second.state, second.notice) == (JobState.QUEUED, f"no worker is listening at {ground.url}")

    ground.start_worker()
    rest = list(watch)
    assert rest[-1].state is JobState.SUCCEEDED
    assert not any(progress.notice for progress in rest)


def test_queued_job_is_cancelled_without_a_worker(ground: Ground) -> None:
    job = ground.farm().submit(ToyRequest(directory=ground.allowed))
    assert job.cancel()
    with pytest.raises(JobCancelled):
        job.result(60)
    ground.start_worker()
    assert ground.farm().submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
    assert ground.marks("begin") == 1


def test_record_of_an_ended_job_expires(ground: Ground) -> None:
    ground.start_worker(result_expires=1)
    farm = ground.farm()
    job = farm.submit(ToyRequest(directory=ground.allowed))
    job.result(90)
    until(lambda: farm.jobs() == [])
    with pytest.raises(JobNotFound):
        job.record()
    assert list(farm.client.scan_iter("layerfarm:job:*")) == []


def test_waiting_client_reports_a_redis_restarted_without_its_data(ground: Ground) -> None:
    ground.start_worker()
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, numbers=2, sleep=3))
    running(job)
    watch = job.watch()
    next(watch)
    ground.redis.kill()
    ground.redis.wait()
    (ground.directory / "redis.sock").unlink()
    away = next(p for p in watch if p.notice)
    assert away.notice == f"Redis does not answer at {ground.url}, waiting for it"

    ground.start_redis()
    with pytest.raises(JobNotFound, match=r"no record of the job any more: .*Redis was restarted without its data"):
        list(watch)
    # The worker has come back and takes new jobs.
    assert ground.farm().submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)


def test_paused_redis_delays_a_job_and_does_no_harm(ground: Ground) -> None:
    ground.start_worker()
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, numbers=8, sleep=0.3))
    running(job)
    os.kill(ground.redis.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(ground.redis.pid, signal.SIGCONT)
    assert job.result(90) == ToyResult(total=3 * 28)


def test_unit_keeps_its_claim_while_redis_is_away_for_longer_than_its_lease(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ground = Ground(tmp_path, stack, durable=True)
        worker = ground.start_worker(lease=4, look_every=0.3, deliveries=1)
        request = ToyRequest(directory=ground.allowed, numbers=2, rounds=1, trouble="wait-until-repaired")
        job = ground.farm().submit(request)
        until(lambda: ground.marks("run-0") and ground.marks("run-1"))
        for _ in range(2):
            ground.redis.terminate()
            ground.redis.wait()
            time.sleep(5)
            # The search for lost jobs comes before the first beat, as it may.
            children = psutil.Process(worker.pid).children()
            for process in children:
                process.suspend()
            ground.redis = ground.start_redis()
            time.sleep(1.5)
            for process in children:
                process.resume()
            time.sleep(2)
        (ground.allowed / "repaired").touch()
        assert job.result(90) == ToyResult(total=1)
        assert ground.marks("run-0") == ground.marks("run-1") == 1


def test_client_and_worker_follow_a_failover(tmp_path: Path) -> None:
    """The old primary lives on as a replica of the new one: what still leads there is refused, and goes elsewhere."""
    with ExitStack() as stack:
        ground = Ground(tmp_path, stack, redis_at=Host(stack).enter)
        worker = ground.start_worker()
        farm = ground.farm()
        assert farm.submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
        ground.start_redis("second", port=6380)
        with client_of(Address(f"unix://{tmp_path}/second.sock")) as second, client_of(Address(ground.url)) as first:
            second.replicaof("127.0.0.1", 6379)  # type: ignore[no-untyped-call]
            until(lambda: second.info("replication").get("master_link_status") == "up")
            second.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]
            first.replicaof("127.0.0.1", 6380)  # type: ignore[no-untyped-call]
        # Until the address leads to the new primary, nothing is accepted, and the reason is reported.
        with pytest.raises(FarmUnreachable, match="read only replica"):
            farm.submit(ToyRequest(directory=ground.allowed))
        (tmp_path / "redis.sock").unlink()
        (tmp_path / "redis.sock").symlink_to("second.sock")
        assert farm.submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
        assert worker.poll() is None


def test_worker_follows_a_redis_that_is_elsewhere_at_once(ground: Ground) -> None:
    """No moment without an answer: a new connection gets through, and must not wait for data that never comes."""
    worker = ground.start_worker()
    ground.start_redis("second")
    (ground.directory / "new").symlink_to("second.sock")
    (ground.directory / "new").rename(ground.directory / "redis.sock")
    ground.redis.kill()
    assert ground.farm().submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
    assert worker.poll() is None


def test_full_redis_refuses_jobs_and_goes_on_when_there_is_room(ground: Ground) -> None:
    worker = ground.start_worker(lease=2, look_every=0.5)
    farm = ground.farm(look_every=0.5)
    job = farm.submit(ToyRequest(directory=ground.allowed, numbers=8, sleep=0.3))
    running(job)
    with client_of(Address(ground.url)) as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(FarmUnreachable, match="maxmemory"):
            farm.submit(ToyRequest(directory=ground.allowed))
        time.sleep(1)
        client.config_set("maxmemory", 0)
    assert job.result(60) == ToyResult(total=3 * 28)
    assert worker.poll() is None


# --- Redis that cannot be reached at all -----------------------------------------------------------


def unreachable(kind: str, tmp_path: Path) -> str:
    if kind == "socket":
        return f"unix://{tmp_path}/none.sock"
    if kind == "refused":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"redis://user:hunter2@127.0.0.1:{probe.getsockname()[1]}/0"
    return "redis://user:hunter2@does-not-exist.invalid:6379/0"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["socket", "refused", "no-such-name"])
def test_unreachable_redis_is_an_error_with_its_address_and_no_hang(kind: str, tmp_path: Path) -> None:
    url = unreachable(kind, tmp_path)
    with pytest.raises(FarmUnreachable, match="Redis does not answer") as caught:
        Farm(url)
    assert url.replace("hunter2", "***") in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.timeout(60)
def test_silent_redis_is_an_error_and_no_hang() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(FarmUnreachable, match=r"127\.0\.0\.1"):
            Farm(f"redis://127.0.0.1:{silent.getsockname()[1]}")


def test_every_call_reports_an_unreachable_redis(ground: Ground) -> None:
    farm = ground.farm()
    job = farm.submit(ToyRequest(directory=ground.allowed))
    ground.redis.kill()
    ground.redis.wait()
    for call in (farm.jobs, farm.workers, farm.ping, job.record, job.cancel, lambda: farm.job(job.id)):
        with pytest.raises(FarmUnreachable):
            call()
    with pytest.raises(FarmUnreachable):
        farm.submit(ToyRequest(directory=ground.allowed))


def test_wrong_password_is_reported_and_not_shown(tmp_path: Path) -> None:
    ground_socket = tmp_path / "redis.sock"
    started = subprocess.Popen(
        [server(), "--port", "0", "--unixsocket", str(ground_socket), "--requirepass", "right", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        until(ground_socket.exists)
        with pytest.raises(FarmUnreachable) as caught:
            Farm(f"unix://:hunter2@{ground_socket}")
        assert "hunter2" not in str(caught.value)
        assert Farm(f"unix://:right@{ground_socket}").ping() < 5
    finally:
        started.kill()
        started.wait()


def test_worker_says_that_redis_is_unreachable(tmp_path: Path) -> None:
    settings = load_settings(farm=f"unix://{tmp_path}/none.sock", stores=(tmp_path,), roots=(tmp_path,))
    with pytest.raises(FarmUnreachable):
        run_worker(settings)


def test_worker_without_a_store_or_with_an_empty_one_does_not_start(tmp_path: Path) -> None:
    farm = f"unix://{tmp_path}/none.sock"
    with pytest.raises(RequestError, match="no store"):
        run_worker(load_settings(farm=farm, roots=(tmp_path,)))
    with pytest.raises(RequestError, match="no root"):
        run_worker(load_settings(farm=farm, stores=(tmp_path,)))
    with pytest.raises(RequestError, match="'stores' is wrong: empty path"):
        load_settings(farm=farm, stores=("",), roots=(tmp_path,))


def test_password_is_in_no_log_and_no_process_list(tmp_path: Path) -> None:
    import sys

    redis_socket = tmp_path / "redis.sock"
    started = subprocess.Popen(
        [server(), "--port", "0", "--unixsocket", str(redis_socket), "--requirepass", "hunter2", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    url = f"unix://:hunter2@{redis_socket}"
    environment = {"LAYERFARM_FARM": url, "LAYERFARM_ROOTS": str(tmp_path), "LAYERFARM_STORES": str(tmp_path)}
    log = tmp_path / "log"
    try:
        until(redis_socket.exists)
        worker = subprocess.Popen(
            [sys.executable, "-m", "layerfarm.worker"],
            env=os.environ | environment,
            stderr=log.open("wb"),
            stdout=log.open("ab"),
        )
        try:
            until(Farm(url).workers)
            processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
            assert not any("hunter2" in " ".join(process.cmdline()) for process in processes)
        finally:
            worker.terminate()
            worker.wait(90)
    finally:
        started.kill()
        started.wait()
    assert "worker starts" in log.read_text()
    assert "hunter2" not in log.read_text()


def test_two_clients_may_wait_for_one_job(ground: Ground) -> None:
    ground.start_worker()
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, sleep=0.2))
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(ground.farm().job(job.id).result(90))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [ToyResult(total=18)] * 2


def test_unit_that_takes_too_long_fails_the_job(ground: Ground) -> None:
    ground.start_worker(unit_time_limit=1)
    job = ground.farm().submit(ToyRequest(directory=ground.allowed, numbers=1, sleep=20))
    with pytest.raises(JobFailed, match="exceeded its time limit") as caught:
        job.result(90)
    assert caught.value.error_type == "LimitExceeded"
    assert ground.marks("clean-False") == 1


def test_redis_client_errors_do_not_leak(ground: Ground) -> None:
    """Every public call reports the farm, not redis-py."""
    assert not issubclass(FarmUnreachable, redis.RedisError)
