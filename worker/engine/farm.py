"""Run jobs on the farm: the steps of a worker process for each message.

``advance`` joins a complete stage and opens the next one; ``unit`` does one unit; ``close`` removes what
the job staged and publishes its final state. Stages are joined here and not by Celery's chords: a
chord whose member is lost or expires never calls its body.

Every step may be interrupted anywhere and run again: it is claimed first, changes the job in one operation of
the job store, fenced by the claim, and only then sends the next message. If that is lost,
``layerfarm.worker.engine.recovery`` sends it again. A process that took a message less than a second ago continues
with the next step of the job without a message: a join, the close, one unit of a new stage. A process that is too
late removes what it has staged meanwhile, and does nothing else.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import redis
import structlog
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from structlog.contextvars import bind_contextvars

from layerfarm.jobs.errors import (
    FarmError,
    JobCancelled,
    JobNotFound,
    LayerfarmError,
    OutsideAllowedRoots,
    RecordDamaged,
    RequestError,
)
from layerfarm.jobs.flows.base import Context, Flow, Observer, Policy, Request, Silent, State
from layerfarm.jobs.flows.inputs import release, stores_in, stores_of
from layerfarm.jobs.store.leases import LOCAL, holding
from layerfarm.worker.broker.messages import Sender
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.engine import hooks
from layerfarm.worker.engine.admission import Admission
from layerfarm.worker.engine.failpoints import reached
from layerfarm.worker.engine.heartbeat import HandedBack, Heartbeat
from layerfarm.worker.engine.hooks import Task
from layerfarm.worker.engine.outcomes import Journal, describe
from layerfarm.worker.engine.recovery import Recovery, failing_if_damaged
from layerfarm.worker.engine.single_flight import ActionCache, SingleFlight
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.model import Answer, Claim, Item, JobView, Refused, Status
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.model import Ending, JobError, JobState

_OUTAGE = (redis.RedisError, OperationalError)
"""Redis is away: the claim expires and the item is sent again."""

_log = structlog.get_logger()


@dataclass
class CeleryRunner:
    """The work of one worker process, ``owner``."""

    store: JobStore
    owner: Owner
    cache: ActionCache
    heartbeat: Heartbeat
    sender: Sender
    recovery: Recovery
    policy: Policy
    admission: Admission
    retry_for: float = 0
    """Seconds for which a failed job is kept; 0: not at all."""
    lease_for: float = LOCAL
    """Seconds for which the lease of a job's blobs holds."""
    leaving: Callable[[], bool] = bool
    """Returns True after a stop of the worker was requested."""
    young: float = 1.0
    """Seconds since a message was taken in which its process continues with the next step of the job. Longer work
    yields: messages that arrived meanwhile may be more urgent."""

    def __post_init__(self) -> None:
        self._next: tuple[Item, Claim | None] | None = None
        """The next step of this process, and the claim if the step before has taken it."""
        self._until = 0.0
        self._single_flight = SingleFlight(self.store, self.cache, self.sender)
        self._journal = Journal(self.policy)

    # --- the three messages -------------------------------------------------------------------------

    def do(self, item: Item) -> None:
        """Do the item of a message, and the next ones of the same job while the message is young."""
        if item.begins:
            # Not always the item that the message names: submitters take turns.
            turn = Item(*self.store.next(item.job_id, item.attempt, self.owner), "advance")
            if turn.job_id != item.job_id:
                self.recovery.take_over(item.job_id)
            item = turn
            bind_contextvars(job=item.job_id)
        steps = {"advance": self._advance, "unit": self._unit, "close": self._close}
        self._until = time.monotonic() + self.young
        self._next = item, None
        while self._next is not None:
            (item, claim), self._next = self._next, None
            with failing_if_damaged(self.store, self.sender, item.job_id):
                steps[item.what](item, claim)

    def _go_on(self, item: Item, claim: Claim | None = None, *, here: bool = False) -> None:
        """Run or send the join or the close of the job.

        In this process if it is claimed, if the message is young, or if it has to be ``here``.
        """
        if claim or (self._next is None and (here or self._is_young())):
            self._next = item, claim
        else:
            self.sender.send([item])

    def _is_young(self) -> bool:
        return time.monotonic() < self._until and not self.leaving()

    def _advance(self, item: Item, claim: Claim | None) -> None:
        """Join a stage of the job, or begin one, and open the next."""
        claim = self._claimed(item, claim)
        if claim is None:
            return
        reached("advance.claimed")
        with self._failing(claim), self.heartbeat.watching(claim) as observer:
            self._move_on(claim, self._context(item, claim.job, observer))

    def _unit(self, item: Item, claim: Claim | None) -> None:
        """Do one unit and record its result; if it completes the stage, run or send the join."""
        reached("unit.taken")
        claim = self._claimed(item, claim)
        if claim is None:
            return
        reached("unit.claimed")
        with self._failing(claim):
            flow, request = self.admission.flow(item.job_id, claim.job)
            stage = flow.stages[item.stage]
            with (
                hooks.working(Task(item.job_id, flow.name, stage.name, item.index)) as seen,
                self.heartbeat.watching(claim, seen) as observer,
                self._holding(item.job_id, request),
            ):
                result = self._single_flight.result(stage, self._context(item, claim.job, observer), claim, observer)
                if result is None:
                    seen.how = "stopped"
                    return
            reached("unit.done")
            join = Item(item.job_id, item.attempt, "advance", item.stage)
            # The last one here: the job's effects exist, and a message could reach a worker of another version,
            # which refuses it.
            here = item.stage == len(flow.stages) - 1 or self._is_young()
            answer = self.store.record_result(claim, result, then=join if here else None)
            reached("unit.recorded")
            self._follow_up(claim, answer)
            if answer.complete:
                self._go_on(join, answer.claim, here=here)

    def _close(self, item: Item, claim: Claim | None) -> None:
        """Remove what the job staged, then publish its final state."""
        answer = claim or self.store.claim(item, self.owner)
        if isinstance(answer, Refused):
            if answer.why is Status.POISON:
                _log.error("gave up removing staged files of the job")
                self.store.give_up_closing(item)
            return
        claim = answer
        reached("close.claimed")
        if self.retry_for and self.store.keep(claim, self.retry_for) is Status.OK:
            _log.info("job ended", state=JobState.FAILED, kept_for=self.retry_for)
            self._tell_end(item)
            return
        with self.heartbeat.watching(claim) as observer:
            clean = self._clean(claim.job, self._context(item, claim.job, observer))
        reached("close.cleaned")
        if self.store.closed(claim, clean=clean) is Status.OK:
            self._tell_end(item)
            reached("close.closed")
            _log.info("job ended", state=claim.job.ending)

    def _tell_end(self, item: Item) -> None:
        if hooks.ended.has_listeners():
            with suppress(JobNotFound):
                hooks.ended.send(None, record=self.store.job(item.job_id))

    def _holding(self, job_id: str, request: Request) -> AbstractContextManager[None]:
        """Cover the blobs that the job reads or writes inside the block by its lease."""
        return holding(job_id, self.lease_for, stores_of(request, self.policy))

    def _context(self, item: Item, job: JobView, observer: Observer) -> Context:
        return Context(item.job_id, self.policy, observer, attempt=item.attempt, fenced=True, format=job.format)

    # --- claims, and the handling of refused ones -----------------------------------------------------

    def _claimed(self, item: Item, claim: Claim | None) -> Claim | None:
        found = claim or self.store.claim(item, self.owner)
        hooks.claimed.send(None, how="won" if isinstance(found, Claim) else found.why)
        if isinstance(found, Claim):
            return found
        _log.debug("not claimed", item=item.name, why=found.why)
        if found.why is Status.OVER and found.due:
            self._go_on(item.close)
        elif found.why is Status.DONE and found.due:
            # The process that recorded the last result may have died before sending this.
            self._go_on(Item(item.job_id, item.attempt, "advance", item.stage))
        elif found.why is Status.STALE:
            self.recovery.take_over(item.job_id)
        elif found.why is Status.POISON:
            what = f"unit {item.index} of" if item.what == "unit" else "joining"
            error = FarmError(f"{what} stage {item.stage + 1} killed its worker process at every try")
            told = describe(error)
            answer = self.store.end(item.job_id, JobState.FAILED, error=told, attempt=item.attempt, forced=True)
            if answer.due:
                self._go_on(item.close)
        return None

    def _follow_up(self, claim: Claim, answer: Answer) -> None:
        """Close the job if that is due. If the claim was taken over, or the job ended meanwhile, sweep: no other
        process removes what this one staged since.
        """
        if answer.due:
            self._go_on(claim.item.close, answer.claim)
        if answer.status is not Status.OK:
            # Also then: a later attempt may have to be closed.
            self._sweep(claim.item)

    def _sweep(self, item: Item) -> None:
        """Remove what this process staged too late, for an attempt that has ended.

        If it dies before that, the janitor removes it (``layerfarm.jobs.store.janitor``).
        """
        try:
            record = self.store.job(item.job_id)
            old = record.attempt > item.attempt
            ended = record.state if record.state.final else record.ending
            # Staged files of a failing job may be kept, and are removed later.
            if not old and (ended is None or (ended is JobState.FAILED and not record.state.final)):
                return
            if not old and record.kept is not None:
                return
            job = self.store.view(item.job_id)
            flow, request = self.admission.flow(item.job_id, job, of_any_format=True)
            flow.clean(self._context(item, job, Silent()), request, not old and ended is JobState.SUCCEEDED)
            if not old:
                release(item.job_id, stores_of(request, self.policy))
        except LayerfarmError:
            return
        except OSError as error:
            _log.warning("files staged too late could not be removed", error=str(error))

    # --- from stage to stage --------------------------------------------------------------------------

    def _move_on(self, claim: Claim, context: Context) -> None:
        job = claim.job
        if claim.item.stage < job.position:
            # An earlier copy opened the stage and died before all its units were sent.
            pending = self.store.pending(claim)
            if pending is not None:
                self._send_units(claim, *pending)
            return
        flow, request = self.admission.flow(context.job_id, job)
        if job.position < 0:
            self.admission.begin(context.job_id, job)
        name = "begin" if job.position < 0 else flow.stages[job.position].name
        with hooks.working(Task(context.job_id, flow.name, name)), self._holding(context.job_id, request):
            self._open_next(claim, context, flow, request)

    def _open_next(self, claim: Claim, context: Context, flow: Flow[Any], request: Request) -> None:
        job = claim.job
        if job.position < 0:
            if self._ended_before(claim, request):
                return
            if context.attempt > 1:
                # The kept work of the last attempt cannot be used.
                flow.clean(replace(context, attempt=context.attempt - 1), request, False)
            state = flow.begin(context, request)
        else:
            state = self._join(flow, claim, context)
            reached("advance.joined")
        for number in range(job.position + 1, len(flow.stages)):
            stage = flow.stages[number]
            units = stage.plan(context, state)
            if units:
                self.admission.check_bytes(job, units)
                alone = len(units) == 1 and self._takes_a_unit(job)
                unit = Item(context.job_id, context.attempt, "unit", number, 0) if alone else None
                answer = self.store.open_stage(
                    claim, number, stage.name, state, units, commits=stage.commits, then=unit
                )
                if answer.status is not Status.OK:
                    self._give_back(claim)
                    return
                reached("stage.opened")
                if unit:
                    self._next = unit, answer.claim
                else:
                    self._send_units(claim, number, range(len(units)))
                return
            state = stage.join(context, state, [])
        result = flow.finish(context, state).model_dump_json()
        self._finish(claim, JobState.SUCCEEDED, result=result)

    def _join(self, flow: Flow[Any], claim: Claim, context: Context) -> State:
        try:
            before = flow.state.model_validate_json(claim.job.flow_state)
        except ValidationError:
            raise RequestError("job was begun by another version of layerfarm", hint="submit it again") from None
        joined: State = flow.stages[claim.job.position].join(context, before, claim.results)
        return joined

    def _send_units(self, claim: Claim, position: int, indexes: Iterable[int]) -> None:
        """Send the units; this process does one of them, if it may continue."""
        item = claim.item
        units = [Item(item.job_id, item.attempt, "unit", position, index) for index in indexes]
        mine = units.pop(0) if units and self._takes_a_unit(claim.job) else None
        self.sender.send(units, claim.job.traffic)
        reached("units.sent")
        answer = self.store.sent(claim, position)
        if answer.due:
            # Meanwhile other processes have done the units and later steps.
            self._go_on(item.close)
        elif answer.status is Status.OK and mine:
            self._next = mine, None

    def _takes_a_unit(self, job: JobView) -> bool:
        """Return True if this process does a unit of the stage that it opened; a bulk job yields between units."""
        return job.traffic is not Traffic.BULK and self._is_young()

    # --- ends of jobs -------------------------------------------------------------------------------------

    @contextmanager
    def _failing(self, claim: Claim) -> Iterator[None]:
        """End the job on an error inside the block, if the claim is still held."""
        try:
            yield
        except (*_OUTAGE, RecordDamaged):
            raise
        except HandedBack:
            self._hand_back(claim)
        except (JobCancelled, JobNotFound):
            self._give_back(claim)
        except Exception as error:
            if isinstance(error, MemoryError):
                # Reporting needs the unit's memory.
                traceback.clear_frames(error.__traceback__)
            if not self._ended_before(claim):
                self._finish(claim, JobState.FAILED, error=describe(error))

    def _ended_before(self, claim: Claim, request: Request | None = None) -> bool:
        """End the job as it ended before, if the journal has an outcome that Redis has lost.

        Called when a job begins and when it fails: its staged files may be gone.
        """
        job_id = claim.item.job_id
        try:
            if request is None:
                _, request = self.admission.flow(job_id, claim.job)
            ending = self._journal.recall(job_id, request, claim.job.retries)
        except LayerfarmError:
            return False
        if ending is None:
            return False
        _log.warning("job had already ended, Redis lost its outcome", state=ending.state)
        self._finish(claim, ending.state, error=ending.error, result=ending.result)
        return True

    def _finish(self, claim: Claim, state: JobState, *, error: JobError | None = None, result: str = "") -> None:
        close = claim.item.close if self._is_young() else None
        answer = self.store.finish(claim, state, error=error, result=result, then=close)
        reached("job.decided")
        self._follow_up(claim, answer)

    def _give_back(self, claim: Claim) -> None:
        self._follow_up(claim, self.store.release(claim))

    def _hand_back(self, claim: Claim) -> None:
        answer = self.store.release(claim, counts=False)
        _log.info("handed back", item=claim.item.name)
        self._follow_up(claim, answer)
        if answer.status is Status.OK and not answer.due:
            self.sender.send([claim.item], claim.job.traffic)

    def _clean(self, job: JobView, context: Context) -> bool:
        """Remove what the job staged; return False to try again later."""
        try:
            # Also for a job begun by another version: the request names the place of its staged files.
            flow, request = self.admission.flow(context.job_id, job, of_any_format=True)
        except RequestError:
            # Such a job was refused before it staged anything; its client may have taken a lease for it.
            release(context.job_id, stores_in(job.request, self.policy))
            return True
        if job.ending is not None:
            ending = Ending(state=job.ending, result=job.result, error=job.error, retries=job.retries)
            self._journal.remember(context.job_id, request, ending)
        try:
            flow.clean(context, request, job.ending is JobState.SUCCEEDED)
        except OutsideAllowedRoots:
            # The job was refused for the same reason before it staged anything.
            return True
        except Exception:
            # The job's outcome stands.
            _log.exception("staged files of the job could not be removed")
            return False
        finally:
            release(context.job_id, stores_of(request, self.policy))
        return True
