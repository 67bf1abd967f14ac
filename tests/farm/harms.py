"""What is done to a farm while its jobs run, one function per fault."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ground import until
from hosts import Cable, Host
from shim import Shim
from trial import Counts, Trial, client_settings

from jobs.errors import FarmUnreachable
from worker.address import Address
from worker.connection import client_of
from worker.steps import STEPS

ROOT = Path(__file__).parents[2]
Function = Callable[[Trial, Counts], None]


@dataclass(frozen=True)
class Fault:
    """``run`` does it; the rest says what farm it needs."""

    run: Function
    durable: bool = True
    """Redis keeps an append-only file."""
    networked: bool = False
    """Redis listens on a host of its own."""


# --- processes ---------------------------------------------------------------------------------------


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
    trial.settle(counts, may_fail="killed its worker process each time it was tried")
    trial.must_live(worker, counts)


# --- Redis --------------------------------------------------------------------------------------------


def pause_redis(shortest: float, longest: float) -> Function:
    """Redis stands still for a while, and nobody is told."""

    def fault(trial: Trial, counts: Counts) -> None:
        trial.start_worker()
        trial.submit()
        time.sleep(trial.rng.uniform(0, 1))
        os.kill(trial.ground.redis.pid, signal.SIGSTOP)
        time.sleep(trial.rng.uniform(shortest, longest))
        os.kill(trial.ground.redis.pid, signal.SIGCONT)
        trial.settle(counts)

    return fault


def restart_redis(trial: Trial, counts: Counts) -> None:
    """Redis is killed, and comes back with what its append-only file holds."""
    trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    trial.ground.redis.kill()
    trial.ground.redis.wait()
    trial.ground.redis = trial.ground.start_redis()
    trial.settle(counts)


def forget_redis(trial: Trial, counts: Counts) -> None:
    """Redis is killed, and comes back with nothing: who waits is told, and can ask again."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    trial.ground.redis.kill()
    trial.ground.redis.wait()
    trial.ground.redis = trial.ground.start_redis()
    trial.wait(counts, may_fail="Redis was restarted without its data")
    trial.must_live(worker, counts)
    # What still runs of the forgotten jobs ends with its process at the latest.
    worker.send_signal(signal.SIGTERM)
    worker.wait(60)
    trial.start_worker()
    trial.withdraw_bundle()
    trial.submit()
    trial.settle(counts)


def fill_redis(trial: Trial, counts: Counts) -> None:
    """Redis has no memory left for a while: it refuses what is new, and what is there goes on afterwards."""
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    with client_of(Address(trial.ground.url)) as client:
        client.config_set("maxmemory", 1)
        try:
            trial.ground.farm(**client_settings()).submit(trial.requests[0])
            counts.notes.append("a full Redis took a job")
            counts.lost += 1
        except FarmUnreachable as error:
            if "maxmemory" not in str(error):
                counts.notes.append(f"the cause is not named: {error}")
                counts.lost += 1
        time.sleep(trial.rng.uniform(1, 4))
        client.config_set("maxmemory", 0)
    trial.settle(counts)
    trial.must_live(worker, counts)


def fail_over(trial: Trial, counts: Counts) -> None:
    """Its replica is promoted, and the address leads there; the old one is dead, or still there and read-only."""
    worker = trial.start_worker()
    second = trial.ground.start_redis("second", port=6380)
    with client_of(Address(f"unix://{trial.ground.directory}/second.sock")) as replica:
        replica.replicaof("127.0.0.1", 6379)
        until(lambda: replica.info("replication").get("master_link_status") == "up")
        trial.submit()
        time.sleep(trial.rng.uniform(0, 1))
        first, dies = trial.ground.redis, trial.rng.random() < 0.5
        address = trial.ground.directory / "redis.sock"
        old = client_of(Address(trial.ground.url))
        old.ping()
        address.unlink()
        if dies:
            first.kill()
            first.wait()
        replica.replicaof("NO", "ONE")
        if not dies:
            old.replicaof("127.0.0.1", 6380)
        address.symlink_to("second.sock")
    trial.ground.redis = second
    trial.settle(counts)
    trial.must_live(worker, counts)


def deliver_twice(trial: Trial, counts: Counts) -> None:
    """Every message is doubled, before two workers take them."""
    trial.start_worker()
    trial.start_worker()
    trial.submit()
    farm = trial.ground.farm(**client_settings())
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline and farm.ledger.active():
        for job_id in farm.ledger.active():
            record = farm.job(job_id).record()
            stage = record.stage_number - 1
            farm.sender.advance(job_id, stage)
            farm.sender.units(job_id, stage, range(record.units_total))
        time.sleep(0.1)
    trial.settle(counts)


def short_visibility(trial: Trial, counts: Counts) -> None:
    """Redis hands messages out again while they are being worked on."""
    trial.start_worker(visibility_timeout=1)
    trial.start_worker(visibility_timeout=1)
    trial.submit()
    trial.settle(counts)


# --- the network --------------------------------------------------------------------------------------


def cut_off(trial: Trial, counts: Counts) -> None:
    """A whole host is cut off; another one does its work, and it comes back."""
    assert trial.hub is not None
    hosts = [Host(trial.stack) for _ in range(2)]
    cables = [Cable(trial.hub, host, number) for number, host in enumerate(hosts, 1)]
    workers = [
        trial.start_worker(at=host.enter, farm=f"redis://{cable.address}:6379/0")
        for host, cable in zip(hosts, cables, strict=True)
    ]
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    cables[0].cut()
    trial.wait(counts)
    cables[0].mend()
    farm = trial.ground.farm()
    until(lambda: {worker.pid for worker in workers} <= {info.pid for info in farm.workers()}, timeout=60)
    trial.judge(counts)


# --- the disk -----------------------------------------------------------------------------------------


def store_full(trial: Trial, counts: Counts) -> None:
    """There is room for a little when the jobs begin, and for nothing soon."""
    disk = os.statvfs(trial.disk)
    (trial.disk / "ballast").write_bytes(b"\1" * max(0, disk.f_bavail * disk.f_frsize - trial.rng.randrange(24_000)))
    trial.start_worker()
    trial.submit()
    trial.settle(counts, may_fail="No space left on device")


def store_read_only(trial: Trial, counts: Counts) -> None:
    trial.start_worker()
    subprocess.run(["mount", "-o", "remount,ro", trial.disk], check=True)
    trial.submit()
    trial.wait(counts, may_fail="Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", trial.disk], check=True)
    trial.judge(counts)


def break_disk(calls: str, error: int) -> Function:
    """Calls on files of the store fail from some time on, as those of a broken disk or a used-up quota do."""

    def fault(trial: Trial, counts: Counts) -> None:
        shim = Shim(trial.ground.directory)
        worker = trial.start_worker(extra=shim.failing(trial.store, calls, error))
        trial.submit()
        time.sleep(trial.rng.uniform(0, 0.3))
        shim.during.touch()
        trial.wait(counts, may_fail=os.strerror(error))
        shim.during.unlink()
        trial.must_live(worker, counts)
        trial.judge(counts)

    return fault


def slow_disk(trial: Trial, counts: Counts) -> None:
    """Every call on a file of the store takes 20 ms more, and so some do not end within the lease."""
    shim = Shim(trial.ground.directory)
    shim.during.touch()
    trial.start_worker(extra=shim.slow(trial.store, "rws", 20_000))
    trial.start_worker(extra=shim.slow(trial.store, "rws", 20_000))
    trial.submit()
    trial.settle(counts)


# --- clocks and versions --------------------------------------------------------------------------------


def wrong_clocks(trial: Trial, counts: Counts) -> None:
    """One host is 5 minutes ahead, another one behind, and a worker is killed between them."""
    shim = Shim(trial.ground.directory)
    workers = [trial.start_worker(extra=shim.clock(seconds)) for seconds in (300, -300)]
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    dead = workers.pop(trial.rng.randrange(2))
    dead.kill()
    dead.wait()
    trial.settle(counts)


def deploy(change: Callable[[Path], object], may_fail: str | None) -> Function:
    """Workers of a new version replace the old ones while jobs run."""

    def fault(trial: Trial, counts: Counts) -> None:
        new = trial.ground.directory / "new-version"
        for room in ("jobs", "worker"):
            shutil.copytree(ROOT / room, new / room, ignore=shutil.ignore_patterns("__pycache__"))
        change(new)
        old = trial.start_worker()
        trial.submit()
        # Before the jobs can have ended, so that the new version meets what the old one has begun.
        time.sleep(trial.rng.uniform(0, 0.3))
        old.send_signal(signal.SIGTERM)
        path = os.pathsep.join((str(new), str(Path(__file__).parent)))
        trial.start_worker(extra={"PYTHONPATH": path})
        trial.settle(counts, may_fail)
        if old.wait(60) != 0:
            counts.notes.append("the old worker left with an error")
            counts.lost += 1

    return fault


def understands_more(source: Path) -> None:
    """A request of the new version may have a field that those of the old one have not."""
    requests = source / "jobs" / "flows" / "requests.py"
    requests.write_text(
        requests.read_text().replace("class LayerOptions(Model):", "class LayerOptions(Model):\n    new: int = 0")
    )


def reads_another_format(source: Path) -> None:
    ledger = source / "worker" / "ledger.py"
    ledger.write_text(ledger.read_text().replace("FORMAT: Final = ", "FORMAT: Final = 1 + "))


FAULTS: dict[str, Fault] = {
    **{f"SIGKILL at {step}": Fault(kill_at(step)) for step in STEPS},
    "worker SIGKILLed": Fault(kill_worker),
    "worker SIGTERMed": Fault(stop_worker),
    "poison unit": Fault(poison),
    "delivered twice": Fault(deliver_twice),
    "visibility too short": Fault(short_visibility),
    "redis paused": Fault(pause_redis(1, 5)),
    "redis paused for 60 s": Fault(pause_redis(60, 60)),
    "redis restarted": Fault(restart_redis),
    "redis restarted empty": Fault(forget_redis, durable=False),
    "redis out of memory": Fault(fill_redis),
    "redis failed over": Fault(fail_over, networked=True),
    "host cut off": Fault(cut_off, networked=True),
    "store full": Fault(store_full),
    "store read-only": Fault(store_read_only),
    "store over quota": Fault(break_disk("w", errno.EDQUOT)),
    "disk fails to write": Fault(break_disk("w", errno.EIO)),
    "disk fails to read": Fault(break_disk("r", errno.EIO)),
    "disk fails to sync": Fault(break_disk("s", errno.EIO)),
    "disk slow": Fault(slow_disk),
    "clocks off by 5 min": Fault(wrong_clocks),
    "new version": Fault(deploy(understands_more, None)),
    "new format": Fault(deploy(reads_another_format, "job has format 1, this worker reads 2")),
}
"""By name, as the table shows it."""
