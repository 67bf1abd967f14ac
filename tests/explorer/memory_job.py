"""One job of the store in memory: the fields that it has in Redis, and what follows from them.

Times are seconds since the epoch; ``now`` is that of the store's clock.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from layerfarm.jobs.flows.base import Unit
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.model import Claim, Item, JobView
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.model import JobError, JobRecord, JobState


@dataclass
class Held:
    token: int
    expires: float
    lease: float
    owner: Owner


@dataclass
class HeldUnit:
    unit: Unit
    result: dict[str, Any] | None = None
    token: int = 0
    bytes: int = 0


@dataclass
class MemoryJob:
    id: str
    kind: str
    request: str
    stages: int
    traffic: Traffic
    submitter: str
    format: int
    submitted: float
    touched: float
    state: JobState = JobState.QUEUED
    attempt: int = 1
    retries: int = 0
    position: int = -1
    sent: int = -1
    stage: str = ""
    flow_state: str = ""
    signature: str = ""
    bytes_planned: int = 0
    bytes_total: int = 0
    fence: int = 0
    recoveries: int = 0
    commits: int | None = None
    committing: bool = False
    ending: JobState | None = None
    error: JobError | None = None
    result: str = ""
    started: float | None = None
    ended: float | None = None
    kept: float | None = None
    taken: tuple[float, Owner] | None = None
    """When its turn came, and who is about to begin it."""
    by: str = ""
    claims: dict[str, Held] = field(default_factory=dict)
    units: list[HeldUnit] = field(default_factory=list)
    deliveries: dict[str, int] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)

    @property
    def stage_number(self) -> int:
        return self.position + 1

    @property
    def units_total(self) -> int:
        return len(self.units)

    @property
    def units_done(self) -> int:
        return sum(unit.result is not None for unit in self.units)

    @property
    def bytes_done(self) -> int:
        return sum(unit.bytes for unit in self.units)

    @property
    def complete(self) -> bool:
        return self.units_done == self.units_total

    def holds(self, claim: Claim) -> bool:
        held = self.claims.get(claim.item.name)
        return held is not None and (held.token, held.owner) == (claim.token, claim.owner)

    def moved(self, now: float) -> None:
        self.touched, self.recoveries = now, 0

    def finish(self, state: JobState, now: float) -> None:
        if self.kept is None:
            self.state, self.ended = state, now
        self.ending, self.kept, self.flow_state, self.bytes_planned, self.commits = None, None, "", 0, None
        self.committing, self.recoveries = False, 0
        self.claims, self.deliveries, self.waits = {}, {}, {}

    def retry(self, restart: bool, now: float) -> None:
        self.error, self.ended, self.kept, self.committing = None, None, None, False
        self.claims, self.deliveries = {}, {}
        if restart:
            self.attempt += 1
            self.units, self.waits = [], {}
            self.position = self.sent = -1
            self.flow_state, self.bytes_planned, self.stage, self.bytes_total, self.commits = "", 0, "", 0, None
        self.state, self.started = JobState.RUNNING, now
        self.retries += 1
        self.moved(now)

    def unsent(self, now: float) -> list[Item]:
        """Return the items that it needs next if no process works on it."""
        if self.ending is not None:
            return [self.item("close")]
        if self.position < 0 or (self.sent >= self.position and self.complete):
            return [self.item(f"advance:{self.position}")]
        if self.sent < self.position:
            return [self.item(f"advance:{self.position - 1}")]
        names = (f"unit:{self.position}:{index}" for index, unit in enumerate(self.units) if unit.result is None)
        return [self.item(name) for name in names if self.waits.get(name, 0) <= now]

    def item(self, name: str) -> Item:
        """Return the item that a claim of this name is for."""
        what, *numbers = name.split(":")
        stage, index = [*map(int, numbers), -1, -1][:2]
        return Item(self.id, self.attempt, what, stage, index)

    def view(self) -> JobView:
        return JobView(**{name: getattr(self, name) for name in JobView.model_fields})

    def record(self) -> JobRecord:
        fields: dict[str, Any] = {name: getattr(self, name) for name in JobRecord.model_fields}
        fields |= {"request": json.loads(self.request), "result": json.loads(self.result) if self.result else None}
        return JobRecord(**fields)
