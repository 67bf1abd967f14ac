"""One effect per piece of work: a unit is done under a claim, and its result is recorded once.

A claim is a lease with a fencing number, kept alive by the beats of its holder. A copy of the message
that finds a living claim does nothing; one that finds the claim of a dead process takes it over. A
unit that runs twice all the same (its holder was paused past the lease) does harm to nobody: the
first result is the one that counts (DESIGN law 2).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

import redis
from pydantic import ValidationError

from jobs.errors import RecordDamaged
from jobs.flows.base import Unit
from worker import scripts
from worker.keys import JobKeys
from worker.owner import Owner, this_process

CLOSE = "close"
"""The claim to end a job: remove what it staged, then show its final state."""


@dataclass(frozen=True)
class Piece:
    """What can be claimed of a job."""

    job_id: str
    name: str
    stage: int = -1
    index: int | None = None

    @classmethod
    def unit(cls, job_id: str, stage: int, index: int) -> Piece:
        return cls(job_id, f"unit:{stage}:{index}", stage, index)

    @classmethod
    def advance(cls, job_id: str, stage: int) -> Piece:
        """Join stage ``stage`` (-1: begin) and open the one after it."""
        return cls(job_id, f"advance:{stage}", stage)

    @classmethod
    def close(cls, job_id: str) -> Piece:
        return cls(job_id, CLOSE)

    @property
    def index_text(self) -> str:
        return "" if self.index is None else str(self.index)


class Refusal(StrEnum):
    """Why a piece is not to be worked on now."""

    GONE = "gone"
    """The job's record has expired."""
    OVER = "over"
    """The job has ended or is being ended."""
    STALE = "stale"
    """The job has left this stage, or has not reached it."""
    DONE = "done"
    """The unit's result is recorded."""
    BUSY = "busy"
    """A living process holds the claim."""
    POISON = "poison"
    """It was tried as often as allowed, and its process died each time."""


@dataclass(frozen=True)
class Refused:
    why: Refusal
    due: bool = False
    """With OVER: nobody works on the job any more, so it can be closed. With DONE: its stage is complete."""


@dataclass(frozen=True)
class Claim:
    """The right to work on a piece, until the lease ends without a beat."""

    piece: Piece
    token: int
    """Fencing number: grows with each claim of the job."""
    unit: Unit | None = None


class Pulse(StrEnum):
    """What a beat says back."""

    OK = "ok"
    ENDING = "ending"
    LOST = "lost"
    GONE = "gone"
    STOPPING = "stopping"
    """Said by the worker itself, not by the ledger."""


class Recorded(NamedTuple):
    """What recording a unit's result brought about."""

    first: bool
    complete: bool
    """The stage has all its results."""
    due: bool
    """The job is being ended and nobody works on it any more."""


class Claims:
    """The claims of all jobs, for one process of a worker."""

    def __init__(self, client: redis.Redis, lease: float, deliveries: int, owner: Owner | None = None) -> None:
        self._lease = int(lease * 1000)
        self._deliveries = deliveries
        self._owner = owner
        self._claim = client.register_script(scripts.CLAIM)
        self._beat = client.register_script(scripts.BEAT)
        self._record = client.register_script(scripts.RECORD)
        self._release = client.register_script(scripts.RELEASE)

    @cached_property
    def _me(self) -> str:
        return str(self._owner or this_process())

    def claim(self, piece: Piece) -> Claim | Refused:
        """Claim ``piece``, also from an owner that this process can see is dead.

        Raises:
            RecordDamaged: what Redis holds of the unit is none.
        """
        answer = self._ask(piece, "")
        if answer[0] == Refusal.BUSY and Owner.parse(answer[1]).is_known_dead:
            answer = self._ask(piece, answer[1])
        if answer[0] == "ok":
            return Claim(piece, int(answer[1]), _unit(answer[2]) if piece.index is not None else None)
        why = Refusal(answer[0])
        return Refused(why, why in (Refusal.OVER, Refusal.DONE) and bool(answer[1]))

    def beat(self, claim: Claim, nbytes: int) -> Pulse:
        """Keep the claim; ``nbytes`` more are done since the last beat."""
        piece = claim.piece
        args = (piece.name, piece.index_text, claim.token, self._lease, nbytes)
        return Pulse(self._beat(keys=JobKeys.of(piece.job_id), args=args))

    def record(self, claim: Claim, result: dict[str, Any]) -> Recorded:
        """Record the result of a unit, unless one is recorded, and give the claim back."""
        piece = claim.piece
        assert claim.unit is not None
        args = (piece.name, piece.stage, piece.index_text, claim.token, json.dumps(result), claim.unit.bytes)
        first, complete, due = self._record(keys=JobKeys.of(piece.job_id), args=args)
        return Recorded(bool(first), bool(complete), bool(due))

    def release(self, claim: Claim, *, counts: bool = True) -> bool:
        """Give the claim back. True: the job is being ended and nobody works on it any more.

        ``counts``: as one of the deliveries that a piece has before it is taken for poison.
        """
        args = (claim.piece.name, claim.token, "" if counts else "1")
        return bool(self._release(keys=JobKeys.of(claim.piece.job_id), args=args))

    def _ask(self, piece: Piece, dead: str) -> list[Any]:
        args = (piece.name, piece.stage, piece.index_text, self._me, self._lease, self._deliveries, dead)
        answer: list[Any] = self._claim(keys=JobKeys.of(piece.job_id), args=args)
        return answer


def _unit(text: str | None) -> Unit:
    try:
        return Unit.model_validate_json(text or "")
    except ValidationError as error:
        raise RecordDamaged("what Redis holds of the unit makes no sense") from error
