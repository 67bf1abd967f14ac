"""Types between the engine and the job store: items of work, claims on them, and the store's answers."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from layerfarm.jobs.flows.base import Unit
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.model import JobError, JobState

LARGEST_REQUEST: Final = 64 * 1024
"""Most characters of a request as JSON. Clients send no larger one, and workers refuse a larger one."""


class Status(StrEnum):
    """Answers of a job store."""

    OK = "ok"
    GONE = "gone"
    """The job's record has expired."""
    STALE = "stale"
    """The attempt, the token or the stage is not the job's current one: the caller must do nothing."""
    OVER = "over"
    """The job has ended, or its end is decided."""
    DONE = "done"
    """The unit's result is recorded."""
    BUSY = "busy"
    """A living process holds the claim."""
    POISON = "poison"
    """It was tried as often as allowed, and its process died each time."""
    LATE = "late"
    """The job commits: it can no longer be cancelled."""
    ENDED = "ended"
    """The job has ended with this; it never ran, so there is nothing to clean."""


@dataclass(frozen=True)
class Item:
    """An item of work of an attempt at a job; it can be claimed."""

    job_id: str
    attempt: int
    what: str
    """``advance``: join stage ``stage`` (-1: begin) and open the one after it. ``unit``. ``close``: clean and end."""
    stage: int = -1
    index: int = -1

    @property
    def name(self) -> str:
        """Name of its claim."""
        if self.what == "close":
            return self.what
        return f"{self.what}:{self.stage}" + (f":{self.index}" if self.what == "unit" else "")

    @property
    def begins(self) -> bool:
        """Return True for the first item of its attempt."""
        return self.what == "advance" and self.stage < 0

    @property
    def index_text(self) -> str:
        return str(self.index) if self.what == "unit" else ""

    @property
    def close(self) -> Item:
        """Return the closing of the same attempt."""
        return Item(self.job_id, self.attempt, "close")

    def __str__(self) -> str:
        return f"{self.job_id}/{self.attempt} {self.name}"


def _of_json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


class JobView(BaseModel):
    """The fields of a job's record that the engine needs; ``lua/claim.lua`` returns them in this order."""

    model_config = ConfigDict(frozen=True)

    kind: Annotated[str, Field(min_length=1)]
    request: str = ""
    """JSON."""
    position: int = -1
    """Index of the stage that was opened last; -1: none."""
    flow_state: str = ""
    """The flow's state when that stage was opened, JSON; empty at -1."""
    ending: JobState | None = None
    """The end is decided; staged files of the job are not removed yet."""
    traffic: Traffic = Traffic.INTERACTIVE
    format: int = 1
    submitter: str = ""
    signature: str = ""
    """See ``layerfarm.worker.security.signing``; empty: the request is not signed."""
    bytes_planned: int = 0
    """Bytes of all units of the stages that were opened."""
    retries: int = 0
    error: Annotated[JobError | None, BeforeValidator(_of_json)] = None
    result: str = ""
    """JSON."""


@dataclass(frozen=True)
class Claim:
    """The right to work on an item, until the lease ends without a beat."""

    item: Item
    token: int
    """Fencing number: grows with each claim of the job, through all its attempts."""
    owner: Owner
    job: JobView
    unit: Unit | None = None
    results: list[dict[str, Any]] = field(default_factory=list)
    """Results of a complete stage, in the units' order, for the join."""


class Refused(NamedTuple):
    """Why an item cannot be claimed now."""

    why: Status
    due: bool = False
    """OVER: no process works on the job, so it can be closed. DONE: its stage is complete."""


class Answer(NamedTuple):
    """Answer to an operation under a claim, or to one that ends a job."""

    status: Status
    due: bool = False
    """The job is ending and no process works on it, so it can be closed."""
    complete: bool = False
    """The stage has all its results."""
    claim: Claim | None = None
    """The claim of the step that follows, taken by the same operation."""


MESSAGE_LOST: Final = "message lost"
"""No process works on the job, and no message of it is known."""


@dataclass(frozen=True)
class Lost:
    """Items of a job that must be sent again."""

    attempt: int
    reason: str
    """Why: ``lease ran out``, ``message lost``, ``handed back``; or ``overtime``: the job must end."""
    items: tuple[Item, ...] = ()


class Retried(NamedTuple):
    attempt: int
    restart: bool
    """It starts from the beginning; else it continues with the unfinished units."""
