"""``make scaling``: how a build grows with entries, bytes and processes; writes SCALING.md from what was measured."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import click
import redis

from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef
from layerfarm.jobs.store import Layout
from layerfarm.worker.embedded import EmbeddedFarm
from layerfarm.worker.engine.local import run
from layerfarm.worker.model import Progress
from tests.bench import pipeline, trees
from tests.bench.__main__ import CACHE

PAGE = Path(__file__).with_name("SCALING.md")
ENTRIES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
GIGABYTES = (0.2, 1, 4, 10)
_FILE = 100_000_000
STAGES = {
    "survey": "Serial up to 3 processors. From 4 processors and 50,000 entries on up to 8 processes walk some"
    " directories each, which are joined in the order of the tree.",
    "hash": "Parallel. Shards of equal cost, a process each; nothing is shared.",
    "compare": "Serial, and short here: there is no old tree, so the lines of the shards become deltas without being"
    " parsed. With an old tree one process holds both against each other, and another one digests the new manifest.",
    "pack": "Partly parallel. One thread joins the tar: it reads the files, or from 3 processors and 100,000 entries on"
    " only the large ones, while up to 16 processes read the small ones. As many threads as there are processors"
    " compress the blocks. Beside it another process digests the new manifest, of which each line depends on those"
    " above it. The diff_id, a SHA-256 over all of the tar, the writing of the blob and its digest are serial, each in"
    " a thread of its own.",
    "publish": "Serial, and the same for any tree: three small documents and the lock of the index.",
}


@dataclass(frozen=True)
class Cost:
    """One size of tree."""

    entries: int
    bytes: int
    wall: dict[int, float]
    """Seconds by number of processes."""
    stages: dict[int, dict[str, float]]
    """Seconds of each stage by number of processes."""
    commands: int
    """That Redis was given while one build ran on a farm: round trips, of which a pipeline saves some."""
    traffic: int
    """Bytes to Redis and from it, the worker's heartbeats included."""
    farm_wall: float
    parts: pipeline.Costs | None = None
    """Processor time of each step; of the largest trees only."""

    def serial(self, stage: str | None = None) -> float:
        """Amdahl's serial fraction, from 1 and 2 processes: T2/T1 = s + (1 - s)/2."""
        one, two = (self.wall[n] if stage is None else self.stages[n].get(stage, 0.0) for n in (1, 2))
        return min(1.0, max(0.0, 2 * two / one - 1)) if one > 0 else 1.0


@click.command()
@click.option("--times", default=3, show_default=True, type=click.IntRange(1), help="Builds of each kind; the median.")
@click.option("--most-entries", default=ENTRIES[-1], show_default=True, type=int)
@click.option("--most-gigabytes", default=float(GIGABYTES[-1]), show_default=True, type=float)
@click.option("--output", default=PAGE, show_default=True, type=click.Path(path_type=Path))
def main(times: int, most_entries: int, most_gigabytes: float, output: Path) -> None:
    """Measure builds of growing trees, locally with 1 and 2 processes and through a farm."""
    entries = _measured([_tiny(n) for n in ENTRIES if n <= most_entries], times)
    sizes = _measured([_large(n) for n in GIGABYTES if n <= most_gigabytes], times)
    output.write_text(_page(entries, sizes, times))
    click.echo(output.read_text())


def _tiny(count: int) -> Path:
    return _tree(f"tiny-{count}", lambda path: trees.tiny_files(path, count))


def _large(gigabytes: float) -> Path:
    return _tree(f"large-{gigabytes}", lambda path: trees.large_files(path, round(gigabytes * 1e9 / _FILE), _FILE))


def _tree(name: str, make: Callable[[Path], None]) -> Path:
    path = CACHE.absolute() / "scaling" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        make(unfinished)
        unfinished.rename(path)
    return path


# --- measuring -----------------------------------------------------------------------------------


def _measured(roots: list[Path], times: int) -> list[Cost]:
    costs = [_measure(root, times) for root in roots]
    return [*costs[:-1], replace(costs[-1], parts=pipeline.measure(roots[-1], CACHE.absolute()))]


def _measure(root: Path, times: int) -> Cost:
    entries, size = trees.census(root)
    _build(root, 2)  # The cache is warm then.
    click.echo(f"{root.name}: {entries:,} entries, {size / 1e6:,.0f} MB", err=True)
    wall: dict[int, list[float]] = {1: [], 2: []}
    stages: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(times):
        for processes in wall:
            begin = time.perf_counter()
            stages[processes].append(_build(root, processes))
            wall[processes].append(time.perf_counter() - begin)
    farm_wall, commands, traffic = _through_redis(root)
    names = stages[1][0]
    return Cost(
        entries,
        size,
        {n: median(found) for n, found in wall.items()},
        {n: {name: median(one[name] for one in found) for name in names} for n, found in stages.items()},
        commands,
        traffic,
        farm_wall,
    )


def _build(root: Path, processes: int) -> dict[str, float]:
    """Seconds of each stage."""
    begun: dict[str, float] = {}

    def note(progress: Progress) -> None:
        begun.setdefault(progress.stage or progress.state.value, time.perf_counter())

    with tempfile.TemporaryDirectory(prefix="layerfarm-scaling-", dir=CACHE.absolute()) as scratch:
        layout = Layout.create(Path(scratch, "layout"))
        request = BuildRequest(rootfs=root, image=ImageRef(store=layout.path))
        run(request, Policy(shards=processes, threads=processes), processes, note)
    spans = {name: after - at for (name, at), (_, after) in pairwise(begun.items())}
    return {name: spans.get(name, 0.0) for name in STAGES}


def _through_redis(root: Path) -> tuple[float, int, int]:
    """Seconds of one build on a farm of two processes; what Redis was asked meanwhile, and its bytes."""
    with tempfile.TemporaryDirectory(prefix="layerfarm-scaling-", dir=CACHE.absolute()) as scratch:
        layout = Layout.create(Path(scratch, "layout"))
        with EmbeddedFarm(concurrency=2, roots=[root], stores=[layout.path]) as own, own.farm() as farm:
            client = redis.Redis.from_url(own.url.replace("redis+socket://", "unix://"))
            before = client.info("stats")
            begin = time.perf_counter()
            farm.submit(BuildRequest(rootfs=root, image=ImageRef(store=layout.path))).result()
            wall = time.perf_counter() - begin
            after = client.info("stats")
    traffic = sum(after[f"total_net_{way}_bytes"] - before[f"total_net_{way}_bytes"] for way in ("input", "output"))
    return wall, after["total_commands_processed"] - before["total_commands_processed"], traffic


# --- the page ------------------------------------------------------------------------------------


def _page(entries: list[Cost], sizes: list[Cost], times: int) -> str:
    most, largest = entries[-1], sizes[-1]
    return f"""# How layerfarm scales

Made by `make scaling` (`tests/bench/scaling.py`); not to be edited. Builds without a base, gzip, warm cache, medians
of {times}, on {os.cpu_count()} processors ({platform.machine()}, Linux {platform.release().split("-")[0]}), with a load
average of {os.getloadavg()[2]:.1f} in the last quarter of an hour.

## Entries

Files of a few bytes, 1,000 to a directory.

{_table(entries)}

## Bytes

Files of 100 MB: text, machine code and noise in turn.

{_table(sizes)}

## Stages

Seconds with 1 and 2 processes, and Amdahl's serial fraction s from T2/T1 = s + (1 - s)/2, for the largest trees:
{most.entries:,} entries, and {largest.bytes / 1e9:.1f} GB.

{_stage_table(most, largest)}

{_reasons()}

## A bigger machine

Simulated from the processor time of each step and of each block of the layer, with the queues between the threads
(`tests/bench/pipeline.py`); beside it the measured seconds. The speed-up is that over one simulated processor, and *as
before* what it would be without helper processes, which walk and read small files.

{_speedups(most, largest)}

Seconds of each stage that are simulated for 16 processors, and for which each thread of the pack stage is busy then.
The stage takes no less than the busiest of them.

{_busy_table(most, largest)}

Several jobs at once have no stage in common: a farm's throughput grows with its processes, whatever one job's
serial fraction.

## Redis

One build on a farm of two processes. What passes through Redis does not grow with the tree: units are as many as
shards, and everything as large as the image is a file beside the store. What grows is time, hence reports of progress
and heartbeats.

{_redis_table(entries + sizes)}
"""


def _table(costs: list[Cost]) -> str:
    rows = [
        "| entries | MB | 1 process, s | 2 processes, s | serial fraction | µs an entry | MB/s |",
        "|---:" * 7 + "|",
    ]
    for cost in costs:
        each, rate = cost.wall[2] / cost.entries * 1e6, cost.bytes / cost.wall[2] / 1e6
        rows.append(
            f"| {cost.entries:,} | {cost.bytes / 1e6:,.0f} | {cost.wall[1]:.2f} | {cost.wall[2]:.2f} |"
            f" {cost.serial():.2f} | {each:,.0f} | {rate:,.0f} |"
        )
    return "\n".join(rows)


def _stage_table(most: Cost, largest: Cost) -> str:
    rows = ["| stage | entries: 1 | 2 | s | bytes: 1 | 2 | s |", "|---|" + "---:|" * 6]
    for stage in STAGES:
        cells = [
            f"{cost.stages[1][stage]:.2f} | {cost.stages[2][stage]:.2f} | {cost.serial(stage):.2f}"
            for cost in (most, largest)
        ]
        rows.append(f"| {stage} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _reasons() -> str:
    return "\n".join(f"- **{stage}**: {why}" for stage, why in STAGES.items())


def _speedups(most: Cost, largest: Cost) -> str:
    rows = [
        "| processors | entries: s | measured | times | as before | bytes: s | measured | times |",
        "|---:" * 8 + "|",
    ]
    for count in (1, 2, 4, 8, 16, 32, 64):
        cells = []
        for cost in (most, largest):
            assert cost.parts is not None
            one, now = (sum(pipeline.simulate(cost.parts, n).values()) for n in (1, count))
            before = sum(pipeline.simulate(cost.parts, count, helpers=False).values())
            measured = f"{cost.wall[count]:.2f}" if count in cost.wall else ""
            cells += [f"{now:.2f}", measured, f"{one / now:.1f}", f"{one / before:.1f}"]
        rows.append(f"| {count} | {' | '.join(cells[:-1])} |")
    return "\n".join(rows)


def _busy_table(most: Cost, largest: Cost) -> str:
    rows = ["| stage or thread | entries | bytes |", "|---|---:|---:|"]
    assert most.parts is not None and largest.parts is not None
    for function in (pipeline.simulate, pipeline.busy):
        one, other = function(most.parts, 16), function(largest.parts, 16)
        rows += [f"| {name} | {one[name]:.2f} | {other[name]:.2f} |" for name in one]
    return "\n".join(rows)


def _redis_table(costs: list[Cost]) -> str:
    rows = ["| entries | MB | seconds | commands | kB | commands a second |", "|---:" * 6 + "|"]
    for cost in costs:
        rows.append(
            f"| {cost.entries:,} | {cost.bytes / 1e6:,.0f} | {cost.farm_wall:.2f} | {cost.commands:,} |"
            f" {cost.traffic / 1e3:,.0f} | {cost.commands / cost.farm_wall:,.0f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
