"""Queued jobs that have little to do: how many a warm farm ends in a second, and which process spends what on one.

``python -m tests.bench.queued [--jobs 1000] [--entries 7000] [--processes 2]`` prints one line of figures.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import psutil

from layerfarm.jobs.flows.requests import BuildRequest, ImageRef, RepackRequest, UnpackRequest
from layerfarm.jobs.store import Layout
from layerfarm.worker.client import Farm
from layerfarm.worker.embedded import EmbeddedFarm
from layerfarm.worker.engine.local import run


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--entries", type=int, default=7000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(measure(Path(scratch), options.jobs, options.entries, options.processes))


def measure(scratch: Path, jobs: int, entries: int, processes: int) -> str:
    """No-change repacks of as many bundles as there are processes, all queued at once."""
    layout = scratch / "layout"
    bundles = _bundles(scratch, layout, entries, processes)
    with EmbeddedFarm(concurrency=processes, roots=[scratch], stores=[layout]) as embedded, embedded.farm() as farm:
        _repack_all(farm, layout, bundles, 20)
        before = _spent()
        started = time.perf_counter()
        _repack_all(farm, layout, bundles, jobs)
        seconds = time.perf_counter() - started
        spent = {name: (cpu - before.get(name, 0.0)) / jobs * 1000 for name, cpu in _spent().items()}
    each = ", ".join(f"{name} {ms:.1f}" for name, ms in sorted(spent.items()) if ms >= 0.05)
    return (
        f"{jobs} no-change repacks of {entries} entries, {processes} processes: {jobs / seconds:.1f} jobs a second;"
        f" ms of CPU a job: {sum(spent.values()):.1f} ({each})"
    )


def _bundles(scratch: Path, layout: Path, entries: int, count: int) -> list[Path]:
    """Unpacked bundles of an image with so many entries, each repacked once: the stat cache is warm."""
    root = scratch / "root"
    for number in range(entries // 35):
        directory = root / "usr" / f"{number % 14:02}" / f"directory-{number:03}"
        directory.mkdir(parents=True)
        for file in range(34):
            (directory / f"file-{file:02}").write_bytes(b"%d %d\n" % (number, file))
    Layout.create(layout)
    image = ImageRef(store=layout, tag="base")
    run(BuildRequest(rootfs=root, image=image))
    bundles = [scratch / f"bundle-{number}" for number in range(count)]
    for bundle in bundles:
        run(UnpackRequest(image=image, bundle=bundle))
    time.sleep(2.5)  # Files changed less than two seconds ago are read again.
    for bundle in bundles:
        run(RepackRequest(bundle=bundle, image=ImageRef(store=layout, tag=bundle.name), refresh_bundle=True))
    return bundles


def _repack_all(farm: Farm, layout: Path, bundles: list[Path], jobs: int) -> None:
    waiting = []
    for number in range(jobs):
        bundle = bundles[number % len(bundles)]
        image = ImageRef(store=layout, tag=f"{bundle.name}-{number % 50}")
        waiting.append(farm.submit(RepackRequest(bundle=bundle, image=image)))
    for job in waiting:
        job.result(timeout=600)


def _spent() -> dict[str, float]:
    """CPU seconds of this process and its children by what they are: client, redis, worker's main process, workers."""
    me = psutil.Process()
    spent = {"client": sum(os.times()[:2])}
    for child in me.children(recursive=True):
        with child.oneshot():
            name = child.name()
            parent = child.ppid()
            cpu = child.cpu_times()
        what = "redis" if "redis" in name or "valkey" in name else "main" if parent == me.pid else "processes"
        spent[what] = spent.get(what, 0.0) + cpu.user + cpu.system
    return spent


if __name__ == "__main__":
    main()
