"""A job store on a bench: its clock, and the few steps that most tests begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fakeredis

from layerfarm.jobs.flows.base import State, Unit
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.model import Claim, Item, Refused
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.settings import Settings

LEASE = 10.0
ONE, OTHER = Owner("one-host", 1, 1), Owner("another-host", 2, 2)
START = Item("job", 1, "advance")
CLOSE = Item("job", 1, "close")


class Clock:
    """Seconds since the epoch."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def goes_on(self, seconds: float) -> None:
        self.now += seconds


class Numbers(State):
    total: int = 0


def lease_ends(clock: Clock, *stores: JobStore) -> None:
    """Let the leases of all claims end while workers look for lost jobs."""
    for _ in range(5):
        for store in stores:
            store.overdue()
        clock.goes_on(LEASE / 4 + 0.125)


def redis_store(client: fakeredis.FakeRedis) -> RedisJobStore:
    settings = Settings(job_expires=100_000, result_expires=10_000, lease=LEASE, deliveries=3, look_every=1)
    return RedisJobStore(client, settings)


def unit(index: int, stage: int = 0, attempt: int = 1) -> Item:
    return Item("job", attempt, "unit", stage, index)


@dataclass
class Bench:
    store: JobStore
    clock: Clock

    def lease_ends(self) -> None:
        lease_ends(self.clock, self.store)

    def submit(self, job_id: str = "job", **options: Any) -> bool:
        return self.store.submit(job_id, "toy", "{}", 2, **options)

    def claimed(self, item: Item, owner: Owner = ONE) -> Claim:
        claim = self.store.claim(item, owner)
        assert isinstance(claim, Claim), claim
        return claim

    def refused(self, item: Item, owner: Owner = ONE) -> Refused:
        answer = self.store.claim(item, owner)
        assert isinstance(answer, Refused), answer
        return answer

    def opened(self, units: int = 3, *, commits: bool = False) -> None:
        """A job whose first stage of some units of 10 bytes is open."""
        self.submit()
        self.open(self.claimed(START), 0, units, commits=commits)

    def open(self, claim: Claim, stage: int, units: int, *, commits: bool = False) -> None:
        todo = [Unit(params={"n": n}, bytes=10) for n in range(units)]
        assert self.store.open_stage(claim, stage, "a stage", Numbers(), todo, commits=commits).status == "ok"
        assert self.store.sent(claim, stage).status == "ok"

    def done(self, item: Item) -> None:
        assert self.store.record_result(self.claimed(item), {"n": item.index}).status == "ok"
