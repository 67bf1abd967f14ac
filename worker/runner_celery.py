"""Run jobs on the farm: what a worker process does for each message.

``advance`` joins a complete stage and opens the next one; ``unit`` does one unit; ``close`` removes what
the job staged and shows its final state. The stages are joined here and not by Celery's chords: a
chord whose member is lost or expires never calls its body.

Every step may be interrupted anywhere and run again: it is claimed first, changes the ledger in one
script, and only then sends the next message. Should that be lost, ``worker.rescue`` sends it again.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import redis
import structlog
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from structlog.contextvars import bind_contextvars

from jobs.errors import (
    JobCancelled,
    JobNotFound,
    LayerfarmError,
    LimitExceeded,
    OutsideAllowedRoots,
    RecordDamaged,
    RequestError,
    Untrusted,
)
from jobs.flows import FLOWS
from jobs.flows.base import Context, Flow, Policy, Request, State, Unit
from jobs.flows.inputs import release, stores_in, stores_of
from jobs.store.leases import LOCAL, holding
from worker.claims import Claim, Claims, Piece, Refusal, Refused
from worker.endings import Endings
from worker.equal import Works
from worker.equal_units import EqualUnits
from worker.heart import HandedBack, Heart
from worker.ledger import FORMAT, Ledger, Position, Stuck
from worker.mending import mending
from worker.messages import Sender
from worker.progress import JobError, JobState
from worker.reasons import describe, invalid_request, poisonous
from worker.rescue import send_again
from worker.signing import Keyring, Signed
from worker.steps import reached
from worker.witness import Task, Witnesses

_OUTAGE = (redis.RedisError, OperationalError)
"""Redis is away. That is no fault of the job: the claim runs out and the piece is sent again."""

_log = structlog.get_logger()


class CeleryRunner:
    """The work of one worker process."""

    def __init__(
        self,
        ledger: Ledger,
        claims: Claims,
        works: Works,
        heart: Heart,
        sender: Sender,
        policy: Policy,
        retry_for: float = 0,
        lease_for: float = LOCAL,
        keyring: Keyring | None = None,
        job_bytes: int = 0,
        witnesses: Witnesses | None = None,
    ) -> None:
        self._ledger = ledger
        self._claims = claims
        self._heart = heart
        self._sender = sender
        self._policy = policy
        self._retry_for = retry_for
        self._lease_for = lease_for
        self._keyring = keyring
        self._job_bytes = job_bytes
        self._witnesses = witnesses or Witnesses()
        self._equal = EqualUnits(ledger, claims, works, sender, self._witnesses)
        self._endings = Endings(policy)

    # --- the three messages -------------------------------------------------------------------------

    def advance(self, job_id: str, stage: int) -> None:
        """Join stage ``stage`` of the job, or begin one if that is -1, and open the next."""
        if stage < 0:
            # Not always the one that the message names: submitters take turns.
            job_id = self._ledger.next(job_id)
            bind_contextvars(job=job_id)
        with mending(self._ledger, self._sender, job_id):
            self._advance(job_id, stage)

    def _advance(self, job_id: str, stage: int) -> None:
        claim = self._claimed(Piece.advance(job_id, stage))
        if claim is None:
            return
        reached("advance.claimed")
        try:
            with self._heart.watching(claim) as observer:
                self._move_on(claim, Context(job_id, self._policy, observer))
        except (*_OUTAGE, RecordDamaged):
            raise
        except Exception as error:
            self._fail(claim, error)

    def unit(self, job_id: str, stage: int, index: int) -> None:
        """Do one unit and record its result; whoever completes the stage sends for the join, or does the last one."""
        with mending(self._ledger, self._sender, job_id):
            self._unit(job_id, stage, index)

    def _unit(self, job_id: str, stage: int, index: int) -> None:
        reached("unit.taken")
        claim = self._claimed(Piece.unit(job_id, stage, index))
        if claim is None or claim.unit is None:
            return
        reached("unit.claimed")
        try:
            flow, request = self._flow(job_id, self._ledger.position(job_id))
            task = Task(job_id, flow.name, flow.stages[stage].name, index)
            with (
                self._witnesses.working(task) as seen,
                self._heart.watching(claim, seen) as observer,
                self._holding(job_id, request),
            ):
                context = Context(job_id, self._policy, observer)
                result = self._equal.result(flow.stages[stage], context, claim, observer)
                if result is None:
                    seen.how = "stopped"
                    return
            reached("unit.done")
            recorded = self._claims.record(claim, result)
        except (*_OUTAGE, RecordDamaged):
            raise
        except Exception as error:
            self._fail(claim, error)
            if isinstance(error, JobCancelled):
                self._let_go(job_id)
            return
        reached("unit.recorded")
        if not recorded.first:
            self._let_go(job_id)
        if recorded.complete and stage == len(flow.stages) - 1:
            # The job's effects are there: by a message it could come to a worker of another version, which refuses it.
            self._advance(job_id, stage)
        elif recorded.complete:
            self._sender.advance(job_id, stage)
        if recorded.due:
            self._sender.close(job_id)

    def _let_go(self, job_id: str) -> None:
        """A copy of a unit that outlived its job may have put something under the lease that the job's end released."""
        with suppress(LayerfarmError):
            record = self._ledger.record(job_id)
            if record.state.final and record.kept is None:
                _, request = self._flow(job_id, self._ledger.position(job_id), of_any_format=True)
                release(job_id, stores_of(request, self._policy))

    def close(self, job_id: str) -> None:
        """Remove what the job staged, then show how it ended."""
        with mending(self._ledger, self._sender, job_id):
            self._close(job_id)

    def _close(self, job_id: str) -> None:
        claim = self._claims.claim(Piece.close(job_id))
        if isinstance(claim, Refused):
            if claim.why is Refusal.POISON:
                _log.error("gave up removing what the job staged")
                self._ledger.closed(job_id, None)
            return
        reached("close.claimed")
        try:
            position = self._ledger.position(job_id)
            if self._retry_for and self._ledger.keep(job_id, claim, self._retry_for):
                _log.info("job ended", state=JobState.FAILED, kept_for=self._retry_for)
                self._witnesses.ended(lambda: self._ledger.record(job_id))
                return
            with self._heart.watching(claim) as observer:
                self._clean(position, Context(job_id, self._policy, observer))
            reached("close.cleaned")
            if self._ledger.closed(job_id, claim):
                self._witnesses.ended(lambda: self._ledger.record(job_id))
        except JobNotFound:
            return
        reached("close.closed")
        _log.info("job ended", state=position.ending)

    def _holding(self, job_id: str, request: Request) -> AbstractContextManager[None]:
        """What is done inside is done under the job's lease of the blobs that it counts on or makes."""
        return holding(job_id, self._lease_for, stores_of(request, self._policy))

    # --- claims, and what a refused one asks for ------------------------------------------------------

    def _claimed(self, piece: Piece) -> Claim | None:
        claim = self._claims.claim(piece)
        self._witnesses.claimed("won" if isinstance(claim, Claim) else claim.why)
        if isinstance(claim, Claim):
            return claim
        _log.debug("not claimed", piece=piece.name, why=claim.why)
        if claim.why is Refusal.OVER and claim.due:
            self._sender.close(piece.job_id)
        elif claim.why is Refusal.DONE and claim.due:
            # Whoever recorded the last result may have died before sending this.
            self._sender.advance(piece.job_id, piece.stage)
        elif claim.why is Refusal.POISON:
            self._end(piece.job_id, poisonous(piece))
        return None

    # --- from stage to stage --------------------------------------------------------------------------

    def _move_on(self, claim: Claim, context: Context) -> None:
        job_id = context.job_id
        position = self._ledger.position(job_id)
        if claim.piece.stage < position.stage:
            # An earlier copy opened the stage and died before all its units were sent.
            self._send_units(claim)
            return
        flow, request = self._flow(job_id, position)
        if position.stage < 0:
            self._admit(job_id, position)
        name = "begin" if position.stage < 0 else flow.stages[position.stage].name
        with self._witnesses.working(Task(job_id, flow.name, name)), self._holding(job_id, request):
            self._open_next(claim, context, position, flow, request)

    def _open_next(self, claim: Claim, context: Context, position: Position, flow: Flow[Any], request: Request) -> None:
        job_id = context.job_id
        if position.stage < 0:
            if self._ended_before(claim, request):
                return
            state = flow.begin(context, request)
        else:
            state = self._join(flow, position, context)
            reached("advance.joined")
        for number in range(position.stage + 1, len(flow.stages)):
            stage = flow.stages[number]
            units = stage.plan(context, state)
            if units:
                self._check_bytes(position, units)
                if self._ledger.open_stage(claim, number, stage.name, state, units):
                    reached("stage.opened")
                    self._send_units(claim)
                else:
                    self._give_back(claim)
                return
            state = stage.join(context, state, [])
        result = flow.finish(context, state).model_dump_json()
        self._decide(job_id, JobState.SUCCEEDED, claim, result=result)

    def _check_bytes(self, position: Position, units: Sequence[Unit]) -> None:
        planned = position.planned + sum(unit.bytes for unit in units)
        if self._job_bytes and planned > self._job_bytes:
            hint = "see LAYERFARM_JOB_BYTES_LIMIT"
            raise LimitExceeded(f"job would read and write {planned} bytes, more than {self._job_bytes}", hint=hint)

    def _join(self, flow: Flow[Any], position: Position, context: Context) -> State:
        try:
            before = flow.state.model_validate_json(position.state)
        except ValidationError:
            raise RequestError("job was begun by another version of layerfarm", hint="submit it again") from None
        results = self._ledger.results(context.job_id, self._ledger.units_total(context.job_id))
        joined: State = flow.stages[position.stage].join(context, before, results)
        return joined

    def _send_units(self, claim: Claim) -> None:
        job_id = claim.piece.job_id
        position, indexes = self._ledger.pending(job_id)
        self._sender.units(job_id, position, indexes, self._ledger.traffic(job_id))
        reached("units.sent")
        self._ledger.sent(claim, position)

    def _admit(self, job_id: str, position: Position) -> None:
        """
        Raises:
            Untrusted: requests have to be signed, and the signature is out of date or was used before.
        """
        if self._keyring is None:
            return
        now, fresh = self._ledger.admit(job_id)
        self._keyring.check_time(position.signature, now)
        if not fresh:
            raise Untrusted("signature of the request was used before", hint="submit it again")

    def _flow(self, job_id: str, position: Position, *, of_any_format: bool = False) -> tuple[Flow[Any], Request]:
        """The flow and the request of a job, both checked: the record may come from anyone.

        Raises:
            RequestError: this worker does not know the kind or the format, or the request is not valid.
            Untrusted: requests have to be signed, and this one is not, or was altered.
        """
        if position.format != FORMAT and not of_any_format:
            raise RequestError(
                f"job has format {position.format}, this worker reads {FORMAT}",
                hint="client and workers have to be of one version, see docs/operating.md#upgrades",
            )
        if self._keyring is not None:
            traffic, submitter = position.traffic, position.submitter
            signed = Signed(job_id, position.kind, traffic, submitter, position.format, position.request)
            self._keyring.check(signed, position.signature)
        flow = FLOWS.get(position.kind)
        if flow is None:
            raise RequestError("this worker does not know the kind of job", where=position.kind)
        try:
            return flow, flow.request.model_validate_json(position.request)
        except ValidationError as error:
            raise invalid_request(position.kind, error) from None

    # --- how jobs end -----------------------------------------------------------------------------------

    def _fail(self, claim: Claim, error: Exception) -> None:
        """The job ends with ``error``, unless it is ending already: then that was told to stop."""
        job_id = claim.piece.job_id
        if isinstance(error, MemoryError):
            # What the unit had is what is needed to say so.
            traceback.clear_frames(error.__traceback__)
        if isinstance(error, HandedBack):
            self._hand_back(claim)
        elif isinstance(error, JobCancelled | JobNotFound):
            self._give_back(claim)
        elif not self._ended_before(claim):
            self._end(job_id, error, claim)

    def _ended_before(self, claim: Claim, request: Request | None = None) -> bool:
        """End the job as it ended before, if it did: Redis has forgotten that, and what the job staged is gone.

        So it is looked for when a job begins, and when something goes wrong in it.
        """
        job_id = claim.piece.job_id
        try:
            position = self._ledger.position(job_id)
            if request is None:
                _, request = self._flow(job_id, position)
            ending = self._endings.recall(job_id, request, position.retries)
        except LayerfarmError:
            return False
        if ending is None:
            return False
        _log.warning("job had ended before, Redis has forgotten it", state=ending.state)
        self._decide(job_id, ending.state, claim, error=ending.error, result=ending.result)
        return True

    def _end(self, job_id: str, error: Exception, claim: Claim | None = None) -> None:
        with suppress(JobNotFound):
            self._decide(job_id, JobState.FAILED, claim, error=describe(error))

    def _decide(
        self,
        job_id: str,
        state: JobState,
        claim: Claim | None,
        *,
        error: JobError | None = None,
        result: str = "",
    ) -> None:
        """
        Raises:
            JobNotFound: it was deleted.
        """
        ended = self._ledger.end(job_id, state, error=error, result=result, claim=claim)
        reached("job.decided")
        if ended.due:
            self._sender.close(job_id)

    def _give_back(self, claim: Claim) -> None:
        if self._claims.release(claim):
            self._sender.close(claim.piece.job_id)

    def _hand_back(self, claim: Claim) -> None:
        piece = claim.piece
        due = self._claims.release(claim, counts=False)
        _log.info("handed back", piece=piece.name)
        if due:
            self._sender.close(piece.job_id)
        else:
            stuck = Stuck("advance" if piece.index is None else "unit", piece.stage, piece.index or 0)
            send_again(self._sender, piece.job_id, [stuck], self._ledger.traffic(piece.job_id))

    def _clean(self, position: Position, context: Context) -> None:
        try:
            # Also of a job that was begun by another version: what it staged lies where the request says.
            flow, request = self._flow(context.job_id, position, of_any_format=True)
        except RequestError:
            # Such a job was refused before it staged anything; its client may have taken a lease for it.
            release(context.job_id, stores_in(position.request, self._policy))
            return
        ending = self._ledger.ending(context.job_id)
        if ending is not None:
            self._endings.remember(context.job_id, request, ending)
        try:
            flow.clean(context, request, position.ending is JobState.SUCCEEDED)
        except OutsideAllowedRoots:
            # The job was refused for the same reason before it staged anything.
            return
        except Exception:
            # The job's outcome stands; the janitor removes what is left.
            _log.exception("could not remove what the job staged")
        finally:
            release(context.job_id, stores_of(request, self._policy))
