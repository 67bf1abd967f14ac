"""Processes of workers that die, stop, stand still or come back."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import psutil
from trial import SETTINGS, Counts, Trial, client_settings

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.client import Job

from .fault import Function


def kill_at(step: str) -> Function:
    """A process of the worker dies at a step, once."""

    def fault(trial: Trial, counts: Counts) -> None:
        once = trial.ground.allowed / "killed"
        trial.start_worker(kill_at=step, kill_once=once)
        trial.submit()
        trial.settle(counts)
        if not once.exists():
            counts.notes.append(f"nothing came by the step {step}")
            counts.lost += 1

    return fault


def kill_worker(trial: Trial, counts: Counts) -> None:
    """A whole worker dies at any time, and another one comes."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1.5))
    worker.kill()
    worker.wait()
    trial.start_worker()
    trial.settle(counts)


def stop_worker(trial: Trial, counts: Counts) -> None:
    """A worker is asked to stop at any time, and another one comes."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1.5))
    worker.send_signal(signal.SIGTERM)
    trial.start_worker()
    trial.settle(counts)
    if worker.wait(60) != 0:
        counts.notes.append("the stopped worker left with an error")
        counts.lost += 1


def poison(trial: Trial, counts: Counts) -> None:
    """A unit kills its process each time: its job fails, and names the unit; the worker lives."""
    worker = trial.start_worker(kill_at="unit.claimed")
    trial.submit()
    trial.settle(counts, may_fail="killed its worker process at every try")
    trial.must_live(worker, counts)


def pause_worker(trial: Trial, counts: Counts) -> None:
    """A worker stands still for longer than its lease, and goes on beside the one that took over."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    with suspended(worker):
        trial.start_worker()
        time.sleep(SETTINGS["lease"] * trial.rng.uniform(0.5, 2))
    trial.settle(counts)
    trial.must_live(worker, counts)


@contextmanager
def suspended(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    """Inside the block neither the worker nor its processes move."""
    main = psutil.Process(worker.pid)
    processes = [main, *main.children()]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def storm(trial: Trial, counts: Counts) -> None:
    """Whole workers and single processes die one after another, as long as there are jobs."""
    workers = [trial.start_worker(deliveries=20) for _ in range(2)]
    trial.submit()
    store = trial.ground.farm(**client_settings()).store
    deadline = time.monotonic() + 8
    while store.active() and time.monotonic() < deadline:
        time.sleep(trial.rng.uniform(0.05, 0.8))
        number = trial.rng.randrange(2)
        children = psutil.Process(workers[number].pid).children()
        if children and trial.rng.random() < 0.5:
            trial.rng.choice(children).kill()
            continue
        workers[number].kill()
        workers[number].wait()
        workers[number] = trial.start_worker(deliveries=20)
    trial.settle(counts)


def end_everything(trial: Trial, counts: Counts) -> None:
    """Redis and the worker die at once, and come back."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1.2))
    for process in trial.rng.sample([worker, trial.ground.redis], 2):
        process.kill()
        process.wait()
    trial.ground.redis = trial.ground.start_redis()
    trial.start_worker()
    trial.settle(counts)


def cancel(trial: Trial, counts: Counts) -> None:
    """Jobs are cancelled at any time, and of two times once their worker is killed meanwhile."""
    worker = trial.start_worker()
    trial.submit()
    if trial.rng.random() < 0.5:
        time.sleep(trial.rng.uniform(0, 0.8))
        worker.kill()
        worker.wait()
        trial.start_worker()
    for job in trial.rng.sample(trial.jobs, 3):
        time.sleep(trial.rng.uniform(0, 0.4))
        job.cancel()
    trial.settle(counts, may_fail="job was cancelled")


def retry_at_once(trial: Trial, counts: Counts) -> None:
    """Jobs fail for want of room; when there is some, many retry each of them at once, and it goes on once."""
    ballast = trial.fill_disk(24_000)
    worker = trial.start_worker(retry_for=600)
    trial.submit()
    trial.wait(Counts(), may_fail="No space left on device")
    ballast.unlink()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(_retry, trial.jobs * 4))
    trial.settle(counts)
    trial.must_live(worker, counts)


def _retry(job: Job) -> None:
    with suppress(RequestError):
        job.retry()
