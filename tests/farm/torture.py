"""``make torture``: real jobs while everything around them breaks, and a count of what was lost (nothing may be).

Each trial runs a build, an unpack and a repack of one image at once, on a farm of its own with an append-only
Redis, and does one harm to it. Then the jobs have ended, right or with an error that names the cause; the
bytes are those of an undisturbed run; no tag leads to a blob that is not there; and after the janitor nothing
is left.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

# The workers import the toy flow by this name.
sys.path.insert(0, str(Path(__file__).parent))

from trial import Counts, Trial, client_settings

from worker.signals import terminable
from worker.steps import STEPS

# --- the faults ------------------------------------------------------------------------------------

LONGEST = 240
"""Seconds for one trial."""
Fault = Callable[[Trial, Counts], None]


def kill_at(step: str) -> Fault:
    """A process of the worker dies at a step, once."""

    def fault(trial: Trial, counts: Counts) -> None:
        once = trial.ground.directory / "killed"
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


def pause_redis(trial: Trial, counts: Counts) -> None:
    trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    os.kill(trial.ground.redis.pid, signal.SIGSTOP)
    time.sleep(trial.rng.uniform(1, 5))
    os.kill(trial.ground.redis.pid, signal.SIGCONT)
    trial.settle(counts)


def restart_redis(trial: Trial, counts: Counts) -> None:
    """Redis is killed, and comes back with what its append-only file holds."""
    trial.start_worker()
    trial.submit()
    time.sleep(trial.rng.uniform(0, 1))
    trial.ground.redis.kill()
    trial.ground.redis.wait()
    trial.ground.redis = trial.ground.start_redis()
    trial.settle(counts)


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


def poison(trial: Trial, counts: Counts) -> None:
    """A unit kills its process each time: its job fails, and names the unit; the worker lives."""
    worker = trial.start_worker(kill_at="unit.claimed")
    trial.submit()
    trial.settle(counts, may_fail="killed its worker process each time it was tried")
    if worker.poll() is not None:
        counts.notes.append("the worker did not outlive the poison")
        counts.lost += 1


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


FAULTS: dict[str, Fault] = {
    **{f"SIGKILL at {step}": kill_at(step) for step in STEPS},
    "worker SIGKILLed": kill_worker,
    "worker SIGTERMed": stop_worker,
    "redis paused": pause_redis,
    "redis restarted": restart_redis,
    "delivered twice": deliver_twice,
    "visibility too short": short_visibility,
    "poison unit": poison,
    "store full": store_full,
    "store read-only": store_read_only,
}


# --- the runs --------------------------------------------------------------------------------------


def run_trial(name: str, directory: Path, seed: int) -> Counts:
    counts = Counts(trials=1)
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        try:
            FAULTS[name](Trial(directory, stack, random.Random(seed)), counts)
        except AssertionError as error:
            counts.lost += 1
            counts.notes.append(str(error))
    return counts


def main() -> int:
    seconds = float(os.environ.get("SECONDS") or 300)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    names = [name.strip() for name in os.environ.get("FAULTS", "").split(",") if name.strip()] or list(FAULTS)
    print(f"torture for {seconds:g} s, SEED={seed}", flush=True)
    # Ended by SIGTERM it leaves no mount and no process behind either.
    with terminable():
        totals = torture(names, seconds, seed)
    for line in table(totals):
        print(line)
    print(f"SEED={seed}")
    return 0 if all(counts.clean for counts in totals.values()) else 1


def torture(names: Sequence[str], seconds: float, seed: int) -> dict[str, Counts]:
    """Trials of the faults in turn, in an order of ``seed``, until the time is over."""
    rng = random.Random(seed)
    order = list(names)
    rng.shuffle(order)
    totals: dict[str, Counts] = {}
    deadline = time.monotonic() + seconds
    for number, name in enumerate(itertools.cycle(order)):
        if number and time.monotonic() >= deadline:
            return totals
        with tempfile.TemporaryDirectory(prefix="lf-torture-") as directory, _bounded():
            found = run_trial(name, Path(directory) / "trial", rng.randrange(1 << 32))
        totals.setdefault(name, Counts()).add(found)
        print(f"  {name}: {'; '.join(found.notes) or 'ok'}", flush=True)
    return totals


@contextmanager
def _bounded() -> Iterator[None]:
    """A trial that never ends is one in which something was lost: it fails where it stands."""

    def ends(*_: object) -> None:
        faulthandler.dump_traceback()
        raise AssertionError(f"trial did not end within {LONGEST} s")

    signal.signal(signal.SIGALRM, ends)
    signal.alarm(LONGEST)
    try:
        yield
    finally:
        signal.alarm(0)


def table(totals: Mapping[str, Counts]) -> list[str]:
    rows = [("FAULT", "TRIALS", "RIGHT", "FAILED CLEARLY", "LOST", "DUPLICATE", "BLOBS OR TAGS LOST", "LEFT")]
    rows += [(name, *(str(number) for number in counts.numbers)) for name, counts in totals.items()]
    rows.append(("all", *(str(sum(column)) for column in zip(*(c.numbers for c in totals.values()), strict=True))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
