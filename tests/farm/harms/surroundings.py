"""The network, clocks, versions, and others at work in the same store."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ground import Ground, until
from hosts import Cable, Host
from shim import Shim
from trial import SETTINGS, Counts, Trial, client_settings

from layerfarm.jobs.flows.requests import UnpackRequest
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.gc import collect

from .fault import Function
from .processes import suspended

ROOT = Path(__file__).parents[3]


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
    cables[0].repair()
    farm = trial.ground.farm()
    until(lambda: {worker.pid for worker in workers} <= {info.pid for info in farm.workers()}, timeout=60)
    trial.judge(counts)


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
            shutil.copytree(ROOT / room, new / "layerfarm" / room, ignore=shutil.ignore_patterns("__pycache__"))
        change(new / "layerfarm")
        old = trial.start_worker()
        trial.submit()
        # Before the jobs can have ended, so that the new version meets what the old one has begun.
        time.sleep(trial.rng.uniform(0, 0.3))
        old.send_signal(signal.SIGTERM)
        trial.start_worker(version=new)
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
    """A worker still reads the format before its own."""
    base = source / "jobs" / "flows" / "base.py"
    base.write_text(base.read_text().replace("FORMAT: Final = ", "FORMAT: Final = 2 + "))


def clock_jumps(trial: Trial, counts: Counts) -> None:
    """The clock of a worker's host jumps forth and back by an hour, while another one's is right."""
    shim = Shim(trial.ground.directory)
    worker = trial.start_worker(extra=shim.jumping(trial.rng.choice((3600, -3600))))
    trial.start_worker()
    trial.submit()
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        time.sleep(trial.rng.uniform(0.02, 0.5))
        shim.during.touch()
        time.sleep(trial.rng.uniform(0.02, 0.5))
        shim.during.unlink()
    trial.settle(counts)
    trial.must_live(worker, counts)


# --- others in the same store ---------------------------------------------------------------------------


@contextmanager
def collecting(store: Path) -> Iterator[None]:
    """Inside the block garbage is collected all the time, without any grace."""
    over = threading.Event()
    failed: list[Exception] = []

    def run() -> None:
        while not over.wait(0.05):
            try:
                collect(Layout(store), 0)
            except Exception as error:
                failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert not failed, f"garbage collection failed: {failed[0]!r}"


def collect_all_along(trial: Trial, counts: Counts) -> None:
    """Garbage is collected without any grace as long as the jobs run, and their worker is killed meanwhile."""
    with collecting(trial.store):
        worker = trial.start_worker()
        trial.submit()
        time.sleep(trial.rng.uniform(0, 1.2))
        worker.kill()
        worker.wait()
        trial.start_worker()
        trial.wait(counts)
    trial.judge(counts)


COLLECTOR = """
import sys
from pathlib import Path
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.gc import collect
while True:
    collect(Layout(Path(sys.argv[1])), float(sys.argv[2]))
"""


def kill_collectors(trial: Trial, counts: Counts) -> None:
    """Collections of garbage die in the middle, one after another, as long as there are jobs."""
    trial.start_worker()
    store = trial.ground.farm(**client_settings()).store
    trial.submit()
    deadline = time.monotonic() + 8
    while store.active() and time.monotonic() < deadline:
        command = [sys.executable, "-c", COLLECTOR, str(trial.store), trial.rng.choice(("0", "0.2"))]
        collector = subprocess.Popen(command, cwd=ROOT)
        time.sleep(trial.rng.uniform(0.3, 1))
        if collector.poll() is not None:
            counts.lost += 1
            counts.notes.append(f"the collector ended by itself: {collector.returncode}")
        collector.kill()
        collector.wait()
    trial.settle(counts)


def collect_past_the_lease(trial: Trial, counts: Counts) -> None:
    """A worker stands still for so long that the farm forgets its jobs, and garbage is collected meanwhile.

    Nothing that it does then may be half there. Submitted once more, the jobs are done.
    """
    short = {"job_expires": 2}
    worker = trial.start_worker(**short)
    trial.submit(**short)
    time.sleep(trial.rng.uniform(0, 1))
    with suspended(worker), collecting(trial.store):
        time.sleep(4)
    trial.wait(counts, may_fail="no record of the job any more|its record has expired")
    trial.begin_anew(worker, counts)


def two_farms(trial: Trial, counts: Counts) -> None:
    """Two farms that know nothing of each other do equal jobs in one store, and a worker of one is killed."""
    (trial.ground.directory / "other").mkdir()
    other = Ground(trial.ground.directory / "other", trial.stack, durable=True, allowed=trial.ground.allowed)
    worker = trial.start_worker()
    other.start_worker(**SETTINGS)
    trial.submit()
    unpack = trial.requests[1]
    assert isinstance(unpack, UnpackRequest)
    second = [
        trial.requests[0],
        unpack.model_copy(update={"bundle": trial.ground.allowed / "new-of-other"}),
        trial.requests[2],
    ]
    farm = other.farm(**client_settings())
    trial.jobs += [farm.submit(request) for request in second]
    trial.requests += second
    time.sleep(trial.rng.uniform(0, 1.2))
    worker.kill()
    worker.wait()
    trial.start_worker()
    trial.settle(counts)
