"""The state table of jobs: actor, operation, and the states that it leads from and to.

The table in docs/architecture.md is generated from it (``make man``), and a test checks both job stores against it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class Phase(StrEnum):
    """State of a job, more exact than :class:`layerfarm.worker.model.JobState`."""

    ABSENT = "absent"
    QUEUED = "queued"
    """Accepted; nothing has run."""
    RUNNING = "running"
    """An attempt has begun. It can be cancelled."""
    COMMITTING = "committing"
    """A unit of a stage that commits was claimed: the effect may exist. It can no longer be cancelled."""
    ENDING = "ending"
    """Its end is decided; its staged files are being removed."""
    KEPT = "kept"
    """It failed, and its work is kept for a retry; or it has ended, and staged files could not be removed yet."""
    ENDED = "ended"
    """Succeeded, failed or cancelled."""


class Move(NamedTuple):
    """A job may go from ``before`` to ``after``."""

    before: Phase
    operation: str
    """Method of :class:`layerfarm.worker.jobstore.interface.JobStore`."""
    after: Phase
    who: str
    when: str = ""


MOVES: Final = (
    Move(Phase.ABSENT, "submit", Phase.QUEUED, "client"),
    Move(Phase.QUEUED, "claim", Phase.RUNNING, "worker", "first claim"),
    Move(Phase.QUEUED, "end", Phase.ENDED, "client", "cancelled"),
    Move(Phase.RUNNING, "claim", Phase.COMMITTING, "worker", "unit of a stage that commits"),
    Move(Phase.RUNNING, "finish", Phase.ENDING, "holder of the claim", "last join, or an error"),
    Move(Phase.RUNNING, "end", Phase.ENDING, "client, recovery, worker", "cancelled, overtime, poison"),
    Move(Phase.COMMITTING, "finish", Phase.ENDING, "holder of the claim", "last join, or an error"),
    Move(Phase.COMMITTING, "end", Phase.ENDING, "worker", "poison"),
    Move(Phase.ENDING, "closed", Phase.ENDED, "holder of the claim", "clean"),
    Move(Phase.ENDING, "closed", Phase.KEPT, "holder of the claim", "not clean yet"),
    Move(Phase.ENDING, "keep", Phase.KEPT, "holder of the claim", "failed"),
    Move(Phase.KEPT, "closed", Phase.ENDED, "holder of the claim", "clean"),
    Move(Phase.KEPT, "retry", Phase.RUNNING, "client", "continues, or restarts"),
    Move(Phase.ENDED, "retry", Phase.RUNNING, "client", "failed: from the start"),
)
