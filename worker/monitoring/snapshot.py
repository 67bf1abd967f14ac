"""The state of a farm at one moment, as ``layerfarm top --json`` prints it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, Field

from layerfarm.worker.background.registry import WorkerInfo
from layerfarm.worker.model import JobRecord
from layerfarm.worker.monitoring.census import Census


class JobCount(BaseModel):
    """Number of jobs of one kind, state and class that have not ended."""

    kind: str
    state: str
    traffic: str = Field(serialization_alias="class")
    count: int


class Snapshot(BaseModel):
    """The state of a farm; see :class:`~layerfarm.worker.monitoring.census.Census` for the fields."""

    jobs: list[JobCount]
    queues: dict[str, int]
    oldest: dict[str, float]
    workers: list[WorkerInfo]
    kept: int
    refused: int
    redis_bytes: int | None
    newest: list[JobRecord]
    """The newest jobs, also those that have ended."""

    @classmethod
    def of(cls, found: Census, newest: Sequence[JobRecord]) -> Snapshot:
        jobs = (
            JobCount(kind=kind, state=state, traffic=traffic, count=count)
            for (kind, state, traffic), count in sorted(found.jobs.items())
        )
        return cls(**vars(found) | {"jobs": list(jobs), "newest": list(newest)})
