"""Records of jobs and their progress, the same from the farm and from the local runner."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.dataclasses import dataclass

__all__ = ["JobError", "JobRecord", "JobState", "Progress"]


class JobState(StrEnum):
    """State of a job. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class Progress:
    """State of a running job at one moment. Units and bytes are those of the current stage."""

    state: JobState
    kind: str
    stage: str = ""
    """Name of the current stage; empty before the first."""
    stage_number: int = 0
    """Counts from 1; 0 before the first stage."""
    stages: int = 0
    units_done: int = 0
    units_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    notice: str | None = None
    """Information for the waiting user, such as that no worker is listening."""


class JobError(BaseModel):
    """Why a job failed."""

    model_config = ConfigDict(frozen=True)

    type: str
    """Class name of the error."""
    message: str


@dataclass(frozen=True, kw_only=True)
class JobEvent(Progress):
    """A line of `layerfarm submit --json`: the progress of a job; at its end its result or error too."""

    job: str
    """Its id."""
    result: dict[str, Any] | None = None
    error: JobError | None = None


class Ending(BaseModel):
    """Outcome of one try of a job."""

    model_config = ConfigDict(frozen=True)

    state: JobState
    result: str = ""
    """JSON."""
    error: JobError | None = None
    retries: int = 0
    """Number of retries of the job at that time."""


class JobRecord(BaseModel):
    """One job, as the farm keeps it until the record expires."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    """Name of the flow."""
    traffic: str = "interactive"
    """Its class, ``interactive`` or ``bulk``."""
    submitter: str = ""
    attempt: int = 1
    """Counts from 1; a retry from the start is the next one."""
    request: dict[str, Any]
    state: JobState
    ending: JobState | None = None
    """The final state that the job will have when its staged files are removed: `cancelled` once a cancel was
    requested. null: not decided, or the job has ended."""
    stage: str = ""
    stage_number: int = 0
    stages: int = 0
    units_done: int = 0
    units_total: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    submitted: float
    """Seconds since the epoch by the clock of Redis, as the two below."""
    started: float | None = None
    ended: float | None = None
    retries: int = 0
    kept: float | None = None
    """The time until which the work of a failed job is kept for a retry."""
    error: JobError | None = None
    result: dict[str, Any] | None = None

    @classmethod
    def parse(cls, job_id: str, hashed: Mapping[str, str]) -> JobRecord:
        """Parse the Redis hash of a job, which also has fields of the runner."""
        values: dict[str, Any] = {name: hashed[name] for name in cls.model_fields if hashed.get(name)}
        if "kept" in values:
            values["kept"] = int(values["kept"]) / 1000
        for name in {"result", "error"} & values.keys():
            values[name] = json.loads(values[name])
        return cls(**values | {"id": job_id, "request": _object(hashed.get("request", ""))})

    def progress(self) -> Progress:
        return Progress(
            **{field.name: getattr(self, field.name) for field in fields(Progress) if field.name != "notice"}
        )


def _object(text: str) -> dict[str, Any]:
    """Accept any text: a request may not even be JSON, and its job's record can still be read."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
