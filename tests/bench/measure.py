"""Run a command and say what it cost: wall, user and system seconds, and peak memory of all its processes."""

from __future__ import annotations

import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

_SAMPLE_SECONDS = 0.02
_PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Run:
    """One run of one command."""

    wall: float
    user: float
    system: float
    peak_rss: int
    """Bytes; the largest sum over the process tree that a sampler saw."""


@dataclass
class Series:
    """All runs of one command."""

    runs: list[Run] = field(default_factory=list)
    size: int | None = None
    """Bytes of what the command made, if it makes something."""

    def wall(self) -> float:
        return median(run.wall for run in self.runs)

    def user(self) -> float:
        return median(run.user for run in self.runs)

    def system(self) -> float:
        return median(run.system for run in self.runs)

    def processor(self) -> float:
        return median(run.user + run.system for run in self.runs)

    def peak_rss(self) -> int:
        return max(run.peak_rss for run in self.runs)


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Run:
    """Run ``command`` to its end.

    Raises:
        RuntimeError: it ends with an error; the message holds its standard error.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=None if environment is None else {**os.environ, **environment},
    )
    sampler = _Sampler(process.pid)
    _, stderr = process.communicate()
    wall = time.perf_counter() - begin
    peak = sampler.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        raise RuntimeError(f"{command} ended with {process.returncode}: {stderr.decode(errors='replace')[-2000:]}")
    return Run(wall, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, peak)


def run_and_sync(command: Sequence[str | Path], directory: Path) -> Run:
    """Run ``command``, and count the time until all that it wrote to the file system of ``directory`` is on the disk.

    Some tools sync what they write and others leave it to the kernel: without this, those would look faster.
    """
    found = run(command)
    synced = run(["sync", "--file-system", directory])
    return Run(found.wall + synced.wall, found.user + synced.user, found.system + synced.system, found.peak_rss)


def drop_caches() -> None:
    """Forget what the kernel has cached of the disk (root only), for a cold run."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def alternate(
    subjects: Mapping[str, Callable[[], Run]], times: int, before: Callable[[], object] | None = None
) -> dict[str, Series]:
    """Run every subject ``times`` times, in turns, so that a slow minute of the machine hits all alike.

    ``before`` is called before each run.
    """
    series = {name: Series() for name in subjects}
    for _ in range(times):
        for name, subject in subjects.items():
            if before is not None:
                before()
            series[name].runs.append(subject())
    return series


def largest_below(pid: int) -> int:
    """The most memory in bytes that any one process below ``pid`` has ever had, of those that still live."""
    return max(map(_peak_rss, _and_below(pid)[1:]), default=0)


def _peak_rss(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class _Sampler:
    """Adds up the memory of a process and all below it every few milliseconds.

    What the machine has besides is not looked at: that took 4 % of a processor, which is of those that are measured.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._peak = max(self._peak, sum(_rss(pid) for pid in _and_below(self._root)))


def _and_below(pid: int) -> list[int]:
    """A process and all that came of it; a list that grows while it is gone through."""
    found = [pid]
    for each in found:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{each}/task"):
                found += map(int, Path(f"/proc/{each}/task/{thread}/children").read_text().split())
    return found


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except OSError:
        return 0
