"""Many jobs of mixed sizes on two processes: each done once, memory bounded, none starved, all removed in the end.

``make torture`` runs it with 1,000 jobs (``LOAD_JOBS``) and shows the figures.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import NamedTuple

import psutil
import pytest
from ground import Ground, until
from toy_flow import ToyRequest

from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.model import JobRecord, JobState

KEYS = Keys()

COUNT = int(os.environ.get("LOAD_JOBS", "100"))
MOST_QUEUED_BYTES = 4 * 1024
"""Bytes of Redis for one waiting job: its record, its first event, its message, its place in line."""
MOST_LEFT = 512 << 10
"""Bytes of Redis' memory when all jobs are forgotten, however many there were."""
MOST_GROWTH = 32 << 20
"""Bytes by which a process may grow over all the jobs."""


class Load(NamedTuple):
    """Jobs of mixed sizes: of a hundred, 90 of one unit, 9 of 20, one of 200."""

    units: list[int]

    @classmethod
    def of(cls, count: int, rng: random.Random) -> Load:
        units = [200 if number % 100 == 0 else 20 if number % 100 < 10 else 1 for number in range(count)]
        rng.shuffle(units)
        return cls(units)


def test_many_jobs_of_mixed_sizes(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    load = Load.of(COUNT, random.Random(seed))
    farm = ground.farm()
    client = farm.client
    for directory in ("many", "few"):
        (ground.allowed / directory).mkdir()
    # The first jobs of a worker make it what it is from then on; Redis has loaded all scripts after them.
    worker = ground.start_worker(concurrency=2, result_expires=10, look_every=1)
    for _ in range(20):
        farm.submit(ToyRequest(directory=ground.allowed, numbers=4)).result(60)
    until(lambda: not list(client.scan_iter(KEYS.prefix + "job:*")), timeout=60)
    pool = psutil.Process(worker.pid).children()
    keys = set(client.scan_iter())
    empty, fresh = used(client), [process.memory_info().rss for process in pool]

    # Nothing is taken from the queue while it fills.
    for process in (psutil.Process(worker.pid), *pool):
        process.suspend()
    few = max(4, COUNT // 20)
    request = ToyRequest(directory=ground.allowed / "many", rounds=1)
    many = [
        farm.submit(
            request.model_copy(update={"numbers": units}),
            submitter="many@here",
            traffic=Traffic.BULK if number % 4 == 0 else Traffic.INTERACTIVE,
        )
        for number, units in enumerate(load.units)
    ]
    latecomer = ToyRequest(directory=ground.allowed / "few", rounds=1, numbers=1)
    late = [farm.submit(latecomer, submitter="few@there") for _ in range(few)]
    queued = used(client)
    for process in (*pool, psutil.Process(worker.pid)):
        process.resume()

    ended: list[JobRecord] = []
    most = queued
    waiting = {job.id: job for job in (*many, *late)}
    while waiting:
        most = max(most, used(client))
        for job_id, job in list(waiting.items()):
            record = job.record()
            if record.state.final:
                ended.append(record)
                del waiting[job_id]
    until(lambda: not client.exists(KEYS.active))
    grown = [process.memory_info().rss - before for process, before in zip(pool, fresh, strict=True)]

    assert {record.state for record in ended} == {JobState.SUCCEEDED}, f"SEED={seed}"
    # Each unit ran once, each job began and was cleaned up once.
    for directory, units in (("many", load.units), ("few", [1] * few)):
        place = ground.allowed / directory
        ran = [len(list(place.glob(f"{name}.*"))) for name in ("begin", "run-*", "clean-True")]
        assert ran == [len(units), sum(units), len(units)], f"SEED={seed}"
    # A submitter that came last with few jobs did not wait for one that came first with many.
    order = [record.submitter for record in sorted(ended, key=lambda record: record.ended or 0)]
    last = max(number for number, submitter in enumerate(order) if submitter == "few@there")
    assert last < len(order) / 2, f"SEED={seed}"
    assert starved(ended) == [], f"SEED={seed}"

    each = (queued - empty) / len(order)
    assert each < MOST_QUEUED_BYTES
    assert max(grown) < MOST_GROWTH
    until(lambda: not list(stray(client)), timeout=60)
    # Every key is gone that was not there before; what is left belongs to connections and to the allocator.
    until(lambda: set(client.scan_iter()) <= keys)
    left = used(client) - empty
    assert left < MOST_LEFT
    with capsys.disabled():
        took = max(r.ended or 0 for r in ended) - min(r.started or 0 for r in ended)
        print(
            f"\nload: {len(order)} jobs, {sum(load.units) + few} units in {took:.0f} s; Redis: {each:.0f} bytes per"
            f" queued job, {(most - empty) >> 10} KiB at most, {left >> 10} KiB after all expired;"
            f" processes grew by {', '.join(str(growth >> 10) for growth in grown)} KiB; SEED={seed}"
        )


def used(client) -> int:  # type: ignore[no-untyped-def]
    return int(client.info("memory")["used_memory"])


def starved(ended: list[JobRecord]) -> list[str]:
    """Bulk jobs that began only when no interactive one was left, had there been any before."""
    bulk = [record.started or 0 for record in ended if record.traffic == "bulk"]
    interactive = [record.ended or 0 for record in ended if record.traffic != "bulk"]
    return [] if min(bulk) < max(interactive) else ["bulk"]


def stray(client) -> Iterator[str]:  # type: ignore[no-untyped-def]
    """Keys of jobs that Redis still has."""
    yield from client.scan_iter(KEYS.prefix + "job:*")
    yield from client.zrange(KEYS.prefix + "jobs", 0, -1)
