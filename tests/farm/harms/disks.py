"""Stores and bundles on disks that are full, broken, slow or gone."""

from __future__ import annotations

import os
import subprocess
import time

from shim import Shim
from trial import Counts, Trial, small_disk

from layerfarm.jobs.flows.requests import UnpackRequest

from .fault import Function


def store_full(trial: Trial, counts: Counts) -> None:
    """There is room for a little when the jobs begin, and for nothing soon."""
    trial.fill_disk(trial.rng.randrange(24_000))
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


def store_out_of_inodes(trial: Trial, counts: Counts) -> None:
    """There is room for bytes, and none for files."""
    disk = os.statvfs(trial.disk)
    most = disk.f_files - disk.f_ffree + trial.rng.randrange(12)
    subprocess.run(["mount", "-o", f"remount,nr_inodes={most}", trial.disk], check=True)
    trial.start_worker()
    trial.submit()
    trial.wait(counts, may_fail="No space left on device")
    subprocess.run(["mount", "-o", "remount,nr_inodes=0", trial.disk], check=True)
    trial.judge(counts)


def bundle_full(trial: Trial, counts: Counts) -> None:
    """The bundle's disk, another one than the store's, has room for a part of it."""
    place = trial.ground.allowed / "bundles"
    trial.stack.enter_context(small_disk(place))
    trial.fill_disk(trial.rng.randrange(1_400_000), place)
    request = trial.requests[1]
    assert isinstance(request, UnpackRequest)
    trial.new = place / "new"
    trial.requests[1] = request.model_copy(update={"bundle": trial.new})
    trial.start_worker()
    trial.submit()
    trial.settle(counts, may_fail="No space left on device")
    if sorted(os.listdir(place)) != ["ballast"]:
        counts.leftovers += 1
        counts.notes.append(f"left: {os.listdir(place)}")


GONE = "no OCI image layout here|layout no longer exists|work file of the job was removed|No such file|not hold"
"""Errors that are allowed where the store was, by operation."""


def store_unmounted(trial: Trial, counts: Counts) -> None:
    """The store is away for some seconds, as after ``umount --lazy``; nothing may be written where it was."""
    elsewhere = trial.ground.directory / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["mount", "--bind", trial.disk, elsewhere], check=True)
    trial.stack.callback(subprocess.run, ["umount", "--lazy", elsewhere], check=True)
    worker = trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    subprocess.run(["umount", "--lazy", trial.disk], check=True)
    trial.store_was_away = True
    trial.wait(counts, may_fail=GONE)
    beneath = os.listdir(trial.disk)
    subprocess.run(["mount", "--bind", elsewhere, trial.disk], check=True)
    if beneath:
        counts.leftovers += 1
        counts.notes.append(f"written beneath the store: {beneath}")
    trial.must_live(worker, counts)
    trial.judge(counts)


def store_corrupt(trial: Trial, counts: Counts) -> None:
    """A bit of a layer is another one than was stored. Who needs the layer says so."""
    largest = max(trial.store.glob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[trial.rng.randrange(len(content))] ^= 1 << trial.rng.randrange(8)
    largest.write_bytes(content)
    trial.start_worker()
    trial.submit()
    trial.settle(counts, may_fail=f"{largest.name}|damaged")
