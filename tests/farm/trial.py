"""One trial of the torture: a farm of its own, real jobs on it, and the verdict afterwards."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

# The workers import the toy flow by this name.
sys.path.insert(0, str(Path(__file__).parent))

import redis
from ground import Ground, until
from hosts import Host

from layerfarm.jobs.errors import FarmError, JobCancelled, JobFailed, JobNotFound, LayerfarmError
from layerfarm.jobs.flows.base import Policy, Request
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, RepackRequest, UnpackRequest
from layerfarm.jobs.mtree import snapshot
from layerfarm.jobs.store import Layout, janitor
from layerfarm.jobs.store.leases import Leases
from layerfarm.jobs.store.reachability import reachable
from layerfarm.worker.client import Job
from layerfarm.worker.engine import local
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.model import JobState
from layerfarm.worker.settings import load_settings

KEYS = Keys()
OF_WORK = (KEYS.active, KEYS.queued, KEYS.kept, KEYS.works)
"""Keys that are gone when there is nothing to do."""

SETTINGS = {"lease": 2, "look_every": 0.5, "deliveries": 3, "drain": 0.5, "visibility_timeout": 60}
PATIENCE = 90.0
"""Seconds for three jobs that take one; only a job that is lost needs them."""


@dataclass
class Counts:
    """Outcome of the trials of one fault."""

    trials: int = 0
    right: int = 0
    failed: int = 0
    lost: int = 0
    duplicates: int = 0
    missing: int = 0
    leftovers: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> tuple[int, ...]:
        return (self.trials, self.right, self.failed, self.lost, self.duplicates, self.missing, self.leftovers)

    @property
    def clean(self) -> bool:
        return not any(self.numbers[3:])

    def add(self, other: Counts) -> None:
        self.trials += other.trials
        self.right += other.right
        self.failed += other.failed
        self.lost += other.lost
        self.duplicates += other.duplicates
        self.missing += other.missing
        self.leftovers += other.leftovers
        self.notes += other.notes


class Trial:
    """One farm, its jobs, and what the fault needs to do its harm."""

    def __init__(
        self, directory: Path, stack: ExitStack, rng: random.Random, *, durable: bool = True, hub: Host | None = None
    ) -> None:
        """``hub``: the host that Redis runs on; None: this one."""
        self.rng = rng
        self.stack = stack
        self.hub = hub
        self.ground = Ground(directory, stack, durable=durable, redis_at=hub.enter if hub else ())
        self.tree = self.ground.allowed / "tree"
        make_tree(self.tree)
        self.disk = self.ground.allowed / "disk"
        stack.enter_context(small_disk(self.disk))
        self.store = self.disk / "store"
        Layout.create(self.store)
        self.bundle = self.ground.allowed / "old"
        self.new = self.ground.allowed / "new"
        """The bundle that is made."""
        policy = Policy(shards=2, threads=2)
        local.run(BuildRequest(rootfs=self.tree, image=ImageRef(store=self.store, tag="base")), policy)
        base = ImageRef(store=self.store, tag="base")
        local.run(UnpackRequest(image=base, bundle=self.bundle), policy)
        (self.bundle / "rootfs" / "changed").write_bytes(b"changed")
        (self.tree / "more").write_bytes(b"more" * 1000)
        os.utime(self.tree / "more", (1, 1))
        os.utime(self.bundle / "rootfs" / "changed", (1, 1))
        self.requests: list[Request] = [
            BuildRequest(rootfs=self.tree, base=base, image=ImageRef(store=self.store, tag="built")),
            UnpackRequest(image=base, bundle=self.new),
            RepackRequest(bundle=self.bundle, image=ImageRef(store=self.store, tag="repacked")),
        ]
        self.expected = self._undisturbed(policy)
        self.jobs: list[Job] = []
        self.known: set[str] = set()
        """Ids of other jobs whose records may be there in the end."""
        self.store_was_away = False
        """A job keeps its lease in a store that is away at its end for as long as a farm remembers a job."""

    def submit(self, **values: object) -> None:
        farm = self.ground.farm(**(client_settings() | values))
        self.known |= {job.id for job in self.jobs}
        self.jobs = [farm.submit(request) for request in self.requests]

    def start_worker(
        self, *, at: Sequence[str] = (), extra: Mapping[str, str] | None = None, **values: object
    ) -> subprocess.Popen[bytes]:
        return self.ground.start_worker(at=at, extra=extra, **(SETTINGS | values))

    def must_live(self, worker: subprocess.Popen[bytes], counts: Counts) -> None:
        """Nothing that was done may have ended the worker."""
        if worker.poll() is not None:
            counts.notes.append("the worker did not outlive it")
            counts.lost += 1

    def fill_disk(self, room: int, place: Path | None = None) -> Path:
        """Leave ``room`` bytes on the disk of the store, or on another; returns what takes up the rest."""
        disk = os.statvfs(place or self.disk)
        ballast = (place or self.disk) / "ballast"
        # Others may have written meanwhile: then there is less room than that.
        with suppress(OSError):
            ballast.write_bytes(b"\1" * max(0, disk.f_bavail * disk.f_frsize - room))
        return ballast

    def begin_anew(self, worker: subprocess.Popen[bytes], counts: Counts) -> None:
        """Submit the jobs once more, because the farm has forgotten them, to another worker than theirs."""
        self.must_live(worker, counts)
        # Running units of the forgotten jobs end with their process at the latest.
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        self.start_worker()
        # A forgotten job may have given the bundle its place.
        shutil.rmtree(self.new, ignore_errors=True)
        self.submit()
        self.settle(counts)

    def settle(self, counts: Counts, may_fail: str | None = None) -> None:
        """Wait for the jobs and judge them. ``may_fail``: a pattern of the error that the fault may cause."""
        self.wait(counts, may_fail)
        self.judge(counts)

    def wait(self, counts: Counts, may_fail: str | None = None) -> None:
        deadline = time.monotonic() + PATIENCE
        for job, request in zip(self.jobs, self.requests, strict=True):
            try:
                job.result(max(1.0, deadline - time.monotonic()))
            except (JobFailed, JobCancelled, JobNotFound) as error:
                if may_fail is not None and re.search(may_fail, str(error)):
                    counts.failed += 1
                else:
                    counts.lost += 1
                    counts.notes.append(f"{type(request).__name__}: {error}")
                continue
            except FarmError as error:
                counts.lost += 1
                counts.notes.append(f"{type(request).__name__}: {error}; {job.record().model_dump()}")
                continue
            counts.right += 1

    def judge(self, counts: Counts) -> None:
        self._let_settle(counts)
        self._compare(counts)
        self._look_for_leftovers(counts)

    # --- what has to hold afterwards ------------------------------------------------------------------

    def _undisturbed(self, policy: Policy) -> dict[str, str]:
        """Tags and bundle of a run without faults; from a copy of the store."""
        other = self.ground.directory / "undisturbed"
        shutil.copytree(self.store, other / "store", symlinks=True)
        for tag, request in (("built", self.requests[0]), ("repacked", self.requests[2])):
            moved = request.model_copy(update={"image": ImageRef(store=other / "store", tag=tag)})
            if isinstance(moved, BuildRequest):
                moved = moved.model_copy(update={"base": ImageRef(store=other / "store", tag="base")})
            local.run(moved, policy)
        layout = Layout.open(other / "store")
        return {tag: layout.find(tag)[0].digest for tag in layout.tags()}

    def _compare(self, counts: Counts) -> None:
        layout = Layout.open(self.store)
        for tag in layout.tags():
            for descriptor in layout.find(tag):
                if descriptor.digest != self.expected[tag]:
                    counts.missing += 1
                    counts.notes.append(f"tag {tag} has other bytes")
        try:
            for digest in reachable(layout, layout.index().manifests):
                if not layout.blob_path(digest).is_file():
                    counts.missing += 1
                    counts.notes.append(f"blob {digest} is gone")
        except LayerfarmError as error:
            counts.missing += 1
            counts.notes.append(str(error))
        if "base" not in layout.tags():
            counts.missing += 1
        for job, tag in ((self.jobs[0], "built"), (self.jobs[2], "repacked")):
            if (job.record().state is JobState.SUCCEEDED) != (tag in layout.tags()):
                counts.missing += 1
                counts.notes.append(f"tag {tag} does not go with its job")
        new = self.new
        if (self.jobs[1].record().state is JobState.SUCCEEDED) != new.exists():
            counts.missing += 1
            counts.notes.append("bundle does not go with its job")
        elif new.exists():
            there = {e.path: e.sha256 for e in snapshot(new / "rootfs")}
            wanted = {e.path: e.sha256 for e in snapshot(self.bundle / "rootfs") if e.path != b"changed"}
            if there != wanted:
                counts.missing += 1
                counts.notes.append("bundle has another content")
        for job in self.jobs:
            record = job.record()
            if record.units_done > record.units_total or record.bytes_done > max(record.bytes_total, 0):
                counts.duplicates += 1
                counts.notes.append(f"counted twice: {record.model_dump()}")

    def _let_settle(self, counts: Counts) -> None:
        """A job that was seen to end may run once more, for a Redis that has forgotten it; it ends again. Staged files
        that could not be removed are tried again after a minute.
        """
        farm = self.ground.farm(**client_settings())
        try:
            until(lambda: not farm.client.exists(*OF_WORK), timeout=120)
        except AssertionError:
            left = [key for key in OF_WORK if farm.client.exists(key)]
            counts.notes.append(f"Redis does not settle: {left}, {farm.store.active()}")

    def _look_for_leftovers(self, counts: Counts) -> None:
        client = self.ground.farm(**client_settings()).client
        janitor(self.store, 0, now=time.time() + 10)
        Leases(self.store).sweep(time.time())
        self._let_forgotten_leases_run_out()
        left = [
            path
            for kind in ("ingest", "work", "unpack", "leases", "leases-of-others")
            for path in (self.store / ".layerfarm" / kind).glob("*")
        ]
        left += [path for path in self.ground.allowed.iterdir() if path.name.startswith(".")]
        names = {job.id for job in self.jobs} | self.known
        allowed = {*OF_WORK, *(f"layerfarm:job:{name}" for name in names)}
        keys = [*client.scan_iter("layerfarm:job:*"), *client.scan_iter("layerfarm:work:*:waiting")]
        stray = [key for key in keys if key not in allowed and not key.endswith(":events")]
        # Whatever Redis holds of a job, it forgets one day.
        stray += [f"{key} for ever" for key in client.scan_iter("layerfarm:*") if endless(client, key)]
        if left or stray or client.exists(*OF_WORK):
            counts.leftovers += 1
            counts.notes.append(f"left: {[str(path) for path in left]} {stray}")

    def _let_forgotten_leases_run_out(self) -> None:
        """A job that Redis forgot is never ended: its lease stays as long as a farm remembers a job."""
        leases = Leases(self.store)
        known = set() if self.store_was_away else {job.id for job in self.jobs}
        for lease in leases.live(time.time()):
            if lease.holder not in known and lease.expires <= time.time() + load_settings().job_expires + 10:
                leases.release(lease.holder)


LASTING = re.compile(r"layerfarm:(jobs|workers|refused|broker:.*|active|kept|queued|works|looking|probe.*)")
"""Keys of the farm, not of a job."""


def endless(client: redis.Redis, key: str) -> bool:
    """Return True if it is a job's and Redis never forgets it."""
    return not LASTING.fullmatch(key) and client.ttl(key) == -1


def client_settings() -> dict[str, object]:
    return {name: SETTINGS[name] for name in ("lease", "look_every", "visibility_timeout")}


def make_tree(tree: Path) -> None:
    rng = random.Random(7)
    for directory in range(6):
        (tree / f"d{directory}").mkdir(parents=True)
        for number in range(12):
            (tree / f"d{directory}" / f"f{number}").write_bytes(rng.randbytes(20_000))


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A file system of 16 MB."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "torture", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
