"""Runs mutations in processes of their own for a bounded time, and collects what went wrong."""

from __future__ import annotations

import gc
import hashlib
import mmap
import multiprocessing
import os
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import NamedTuple

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.flows import FLOWS
from tests.fuzz.sandbox import Look, Place, enter
from tests.fuzz.targets import TARGETS, Target

HANG = 10.0
"""Seconds for one input."""
_DEAD = 60.0
"""Seconds without any news after which a process is killed: it hangs where no signal reaches it."""
_MEMORY = 3 << 30
_BATCH = 256
_CURRENT = struct.Struct("<QI16s")
_LARGEST = 1 << 20
_FINDINGS = 50


@dataclass(frozen=True)
class Finding:
    """An input with which something went wrong."""

    target: str
    data: bytes
    what: str
    """The exception and where it came from, or what changed outside the root."""

    @property
    def name(self) -> str:
        return f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:16]}"


@dataclass
class Report:
    """Outcome of a run."""

    inputs: Counter[str] = field(default_factory=Counter)
    """By target."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """``ok`` or the name of the error class, behind the target's name."""
    figures: Counter[str] = field(default_factory=Counter)
    """Counters of the targets themselves, by name."""
    findings: dict[str, Finding] = field(default_factory=dict)
    """One for each different failure."""
    seconds: float = 0.0
    cpu: float = 0.0
    """Seconds of processor time of all processes."""
    slowest: float = 0.0
    """Seconds that the longest of all inputs took."""
    private: bool = False

    def add(self, other: Report) -> None:
        self.inputs += other.inputs
        self.outcomes += other.outcomes
        self.figures += other.figures
        self.findings |= other.findings
        self.cpu += other.cpu
        self.seconds = max(self.seconds, other.seconds)
        self.slowest = max(self.slowest, other.slowest)
        self.private = self.private or other.private

    def found(self, finding: Finding, key: str) -> None:
        if len(self.findings) < _FINDINGS:
            self.findings.setdefault(key, finding)


class _Bounds(NamedTuple):
    """When a process ends: whichever comes first."""

    seconds: float
    mutations: int | None


class Hang(BaseException):
    """One input took too long. No Exception, so that nothing below takes it for an error to be explained."""


def fuzz(
    seconds: float,
    seed: int,
    processes: int = 2,
    targets: Sequence[Target] = tuple(TARGETS.values()),
    mutations: int | None = None,
) -> Report:
    """Mutate for ``seconds`` in so many processes, or until ``mutations`` are done if that is earlier.

    The same seed gives each process the same sequence of inputs.
    """
    total = Report()
    for target in targets:
        target.build()
    context = multiprocessing.get_context("fork")
    workers = []
    with _directories(processes) as places:
        for number, top in enumerate(places):
            here, there = context.Pipe(duplex=False)
            current = mmap.mmap(-1, _CURRENT.size + _LARGEST)
            count = None if mutations is None else mutations // processes + (number < mutations % processes)
            arguments = (top, _Bounds(seconds, count), f"{seed}/{number}", targets, current, there)
            process = context.Process(target=_work, args=arguments)
            process.start()
            there.close()
            workers.append((process, here, current))
        for process, here, current in workers:
            total.add(_await(process, here, current))
    return total


def try_once(place: Place, target: Target, data: bytes, variant: int) -> tuple[str, Finding | None]:
    """Run one input; the outcome's name, and what is wrong with it."""
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        target.run(place, data, variant)
        outcome, finding = "ok", None
    except LayerfarmError as error:
        text = str(error)
        outcome, finding = type(error).__name__, None
        if not text.isprintable():
            finding = Finding(target.name, data, f"message is not one printable line: {text!r}")
    except Hang as error:
        outcome, finding = "hang", Finding(target.name, data, _place_of(error))
    except Exception as error:
        outcome, finding = "failure", Finding(target.name, data, _place_of(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    place.clear()
    return outcome, finding


def on_alarm(*_: object) -> None:
    raise Hang(f"no end after {HANG:g} s")


# --- inside a process ----------------------------------------------------------------------------


def _work(
    top: Path, bounds: _Bounds, seed: str, targets: Sequence[Target], current: mmap.mmap, out: Connection
) -> None:
    signal.signal(signal.SIGALRM, on_alarm)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for target in targets:
        target.figures.clear()
        target.start()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    rng = Random(seed)
    import_all()
    place = enter(top)
    report = Report(private=place.private)
    # Hundreds of thousands of small trees: what is alive now stays alive, so it is not looked at again.
    gc.freeze()
    chosen = [target for target in targets for _ in range(target.weight)]
    clean = place.look()
    begin = now = time.monotonic()
    done = 0
    while now - begin < bounds.seconds and done != bounds.mutations:
        batch: list[tuple[Target, bytes]] = []
        for _ in range(_BATCH if bounds.mutations is None else min(_BATCH, bounds.mutations - done)):
            target = rng.choice(chosen)
            data = target.mutate(rng)
            batch.append((target, data))
            _note(current, target, data)
            before = time.monotonic()
            outcome, finding = try_once(place, target, data, target.variant(data))
            now = time.monotonic()
            report.slowest = max(report.slowest, now - before)
            report.inputs[target.name] += 1
            report.outcomes[f"{target.name} {outcome}"] += 1
            if finding is not None:
                report.found(finding, finding.what)
            if now - begin >= bounds.seconds:
                break
        done += len(batch)
        if place.look() != clean:
            clean = _blame(place, batch, report)
    report.seconds, report.cpu = now - begin, time.process_time()
    for target in targets:
        report.figures.update({f"{target.name} {what}": count for what, count in target.figures.items()})
    out.send(report)
    out.close()


def import_all() -> None:
    """Modules that are imported on first use: inside a chroot they cannot be imported."""
    import concurrent.futures.thread
    import importlib

    for name in ("deflate", "isal.isal_zlib", "zstandard", "_strptime"):
        importlib.import_module(name)
    FLOWS.import_all()
    "\n".encode("unicode_escape")
    "a".encode("idna")
    assert concurrent.futures.thread


def _blame(place: Place, batch: list[tuple[Target, bytes]], report: Report) -> Look:
    """Which inputs of a batch changed the canary; it is put back before each."""
    blamed = False
    for target, data in batch:
        place.restore()
        clean = place.look()
        try_once(place, target, data, target.variant(data))
        if (now := place.look()) != clean:
            blamed = True
            changed = sorted(path for path in clean.keys() | now.keys() if clean.get(path) != now.get(path))
            report.found(Finding(target.name, data, f"escape: {changed}"), f"escape {target.name} {changed}")
    if not blamed:
        report.found(Finding(batch[0][0].name, batch[0][1], "escape by a batch that began so"), "escape by a batch")
    place.restore()
    return place.look()


def _note(current: mmap.mmap, target: Target, data: bytes) -> None:
    """Leave the input where the parent finds it if this process dies of it."""
    count = _CURRENT.unpack_from(current)[0]
    held = data[:_LARGEST]
    _CURRENT.pack_into(current, 0, count + 1, len(held), target.name.encode())
    current[_CURRENT.size : _CURRENT.size + len(held)] = held


def _place_of(error: BaseException) -> str:
    """The exception and the innermost frames, which tell one fault from another."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:200]!r} at {where}"


# --- in the parent -------------------------------------------------------------------------------


def _await(process: multiprocessing.process.BaseProcess, here: Connection, current: mmap.mmap) -> Report:
    report = Report()
    count = -1
    while True:
        try:
            if here.poll(_DEAD):
                report = here.recv()
                break
        except EOFError:
            process.join()
            report.found(_died(current, f"process died with {process.exitcode}"), "died")
            break
        now = _CURRENT.unpack_from(current)[0]
        if now == count:
            process.kill()
            report.found(_died(current, "process hung, no signal reached it"), "hung")
            break
        count = now
    process.join()
    return report


def _died(current: mmap.mmap, what: str) -> Finding:
    _, size, name = _CURRENT.unpack_from(current)
    return Finding(name.rstrip(b"\0").decode(), current[_CURRENT.size : _CURRENT.size + size], what)


@contextmanager
def _directories(count: int) -> Iterator[list[Path]]:
    # Memory is faster than a disk, also if the place has no tmpfs of its own.
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = [Path(tempfile.mkdtemp(prefix="layerfarm-fuzz-", dir=parent)) for _ in range(count)]
    try:
        yield made
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
