"""The job store in memory: what the scripts of ``worker/jobstore/lua`` do, in Python.

The clock is the caller's. What only Redis' users can ask for (events, lists, signatures) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from layerfarm.jobs.errors import JobNotFound
from layerfarm.jobs.flows.base import FORMAT, State, Unit
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.in_redis import retried
from layerfarm.worker.jobstore.model import Answer, Claim, Item, JobView, Lost, Refused, Retried, Status
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.model import JobError, JobRecord, JobState
from tests.explorer.memory_job import Held, HeldUnit, MemoryJob

_NAMED_AGAIN = 60.0


class MemoryJobStore:
    """The jobs of one process.

    Parameters:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float], lease: float = 10, deliveries: int = 3) -> None:
        self._clock = clock
        self._lease = lease
        self._deliveries = deliveries
        self._jobs: dict[str, MemoryJob] = {}
        self._active: set[str] = set()
        self._queued: set[str] = set()
        self._kept: dict[str, float] = {}
        self._turns: dict[Traffic, list[str]] = {}
        self._waiting: dict[tuple[Traffic, str], list[str]] = {}
        self._seen = 0.0
        self._silence = 0.0, 0.0
        self.asked = 0
        """Requests of clients so far; repeating one whose reply was lost sets it back."""

    # --- begin ----------------------------------------------------------------------------------------

    def submit(
        self,
        job_id: str,
        kind: str,
        request: str,
        stages: int,
        *,
        traffic: Traffic = Traffic.INTERACTIVE,
        submitter: str = "",
        most_queued: int = 0,
        version: int = FORMAT,
        signature: str = "",
    ) -> bool:
        if job_id in self._jobs:
            return True
        if 0 < most_queued <= len(self._queued):
            return False
        now = self._clock()
        self._jobs[job_id] = MemoryJob(job_id, kind, request, stages, traffic, submitter, version, now, now)
        self._active.add(job_id)
        self._queued.add(job_id)
        line = self._waiting.setdefault((traffic, submitter), [])
        line.append(job_id)
        if len(line) == 1:
            self._turns.setdefault(traffic, []).append(submitter)
        return True

    def next(self, job_id: str, attempt: int, owner: Owner) -> tuple[str, int]:
        job = self._jobs.get(job_id)
        if job is None or not (job_id in self._queued or self._is_begun(job, owner)):
            return job_id, attempt
        turns = self._turns[job.traffic]
        while turns:
            who = turns.pop(0)
            line = self._waiting[job.traffic, who]
            found = line.pop(0)
            if line:
                turns.append(who)
            if found in self._queued:
                self._queued.discard(found)
                self._jobs[found].taken = (self._clock(), owner)
                return found, self._jobs[found].attempt
        self._queued.discard(job_id)
        return job_id, attempt

    def _is_begun(self, job: MemoryJob, owner: Owner) -> bool:
        now = self._clock()
        if job.state.final or job.position >= 0 or self._lives(job, "advance:-1"):
            return True
        return job.taken is not None and job.taken[1] != owner and abs(now - job.taken[0]) < 1

    def admit(self, job_id: str) -> tuple[int, bool]:
        return int(self._clock() * 1000), True

    # --- work -----------------------------------------------------------------------------------------

    def claim(self, item: Item, owner: Owner) -> Claim | Refused:
        job, now = self._jobs.get(item.job_id), self._clock()
        if job is None:
            return Refused(Status.GONE)
        if item.attempt != job.attempt:
            return Refused(Status.STALE)
        closes = item.what == "close"
        removes = closes and job.kept is not None and job.kept <= now
        if job.state.final and not removes:
            return Refused(Status.OVER)
        held = job.claims.get(item.name)
        lives = self._lives(job, item.name)
        if job.ending is not None and not closes:
            if held is not None and not lives:
                del job.claims[item.name]
            return Refused(Status.OVER, self._due(job))
        if closes and job.ending is None and not removes:
            return Refused(Status.STALE)
        joins = False
        if item.what == "unit":
            if item.stage != job.position:
                return Refused(Status.STALE)
            if item.index < len(job.units) and job.units[item.index].result is not None:
                return Refused(Status.DONE, job.complete)
            if item.index >= len(job.units):
                return Refused(Status.STALE)
        elif not closes:
            unsent = item.stage < job.position and job.sent < job.position
            joins = item.stage == job.position and (job.position < 0 or job.complete)
            if not unsent and not joins:
                return Refused(Status.STALE)
        if held is not None and lives and held.owner != owner:
            return Refused(Status.BUSY)
        if held is not None and lives:
            token = held.token
        else:
            job.deliveries[item.name] = job.deliveries.get(item.name, 0) + 1
            if job.deliveries[item.name] > self._deliveries:
                job.claims.pop(item.name, None)
                return Refused(Status.POISON)
            job.fence += 1
            token = job.fence
        job.claims[item.name] = Held(token, now + self._lease, self._lease, owner)
        job.waits.pop(item.name, None)
        job.touched = now
        if job.state is JobState.QUEUED:
            job.state, job.started = JobState.RUNNING, now
        unit = None
        if item.what == "unit":
            unit = job.units[item.index].unit
            job.units[item.index].bytes = 0
            job.committing = job.committing or job.commits == item.stage
        results = [each.result or {} for each in job.units] if joins and job.position >= 0 else []
        return Claim(item, token, owner, self.view(job.id), unit, results)

    def beat(self, claim: Claim, nbytes: int) -> Status:
        job, now = self._jobs.get(claim.item.job_id), self._clock()
        if job is None:
            return Status.GONE
        if not job.holds(claim):
            return Status.STALE
        job.claims[claim.item.name] = Held(claim.token, now + self._lease, self._lease, claim.owner)
        job.touched = now
        if claim.item.what == "unit":
            job.units[claim.item.index].bytes = nbytes
        return Status.OVER if job.ending is not None and claim.item.what != "close" else Status.OK

    def release(self, claim: Claim, *, counts: bool = True, waits: float = 0) -> Answer:
        job = self._jobs.get(claim.item.job_id)
        if job is None:
            return Answer(Status.GONE)
        if not job.holds(claim):
            return Answer(Status.STALE, self._due(job))
        name = claim.item.name
        del job.claims[name]
        if not counts:
            job.deliveries[name] -= 1
        if waits:
            job.waits[name] = self._clock() + waits
        return Answer(Status.OK, self._due(job))

    def record_result(self, claim: Claim, result: dict[str, Any], *, then: Item | None = None) -> Answer:
        answer = self._record(claim, result)
        return self._and_claim(answer, claim.owner, then if answer.complete else None)

    def _and_claim(self, answer: Answer, owner: Owner, then: Item | None) -> Answer:
        claim = self.claim(then, owner) if then and answer.status is Status.OK else None
        return answer._replace(claim=claim if isinstance(claim, Claim) else None)

    def _record(self, claim: Claim, result: dict[str, Any]) -> Answer:
        job = self._jobs.get(claim.item.job_id)
        if job is None:
            return Answer(Status.GONE)
        if job.state.final:
            return Answer(Status.OVER)
        if not job.holds(claim):
            known = claim.item.index < len(job.units) and job.units[claim.item.index].token == claim.token
            if known:
                return Answer(Status.OK, self._due(job), job.complete)
            return Answer(Status.STALE, self._due(job))
        del job.claims[claim.item.name]
        if job.ending is not None:
            return Answer(Status.OVER, self._due(job))
        unit = job.units[claim.item.index]
        unit.result, unit.token, unit.bytes = json.loads(json.dumps(result)), claim.token, unit.unit.bytes
        job.moved(self._clock())
        return Answer(Status.OK, False, job.complete)

    def open_stage(
        self,
        claim: Claim,
        position: int,
        name: str,
        state: State,
        units: Sequence[Unit],
        *,
        commits: bool = False,
        then: Item | None = None,
    ) -> Answer:
        status = self._open(claim, position, name, state, units, commits=commits, taken=then is not None)
        return self._and_claim(Answer(status), claim.owner, then)

    def _open(
        self, claim: Claim, position: int, name: str, state: State, units: Sequence[Unit], *, commits: bool, taken: bool
    ) -> Status:
        job = self._jobs.get(claim.item.job_id)
        this = f"open:{position}:{claim.token}"
        if job is None:
            return Status.GONE
        if job.by == this:
            return Status.OK
        if not job.holds(claim):
            return Status.STALE
        if job.ending is not None:
            return Status.OVER
        if job.position >= position:
            return Status.STALE
        job.bytes_total = sum(unit.bytes for unit in units)
        job.bytes_planned += job.bytes_total
        job.position, job.stage, job.flow_state = position, name, state.model_dump_json()
        job.units = [HeldUnit(unit) for unit in units]
        job.deliveries, job.waits = {}, {}
        if commits:
            job.commits = position
        if taken:
            job.sent = position
            del job.claims[claim.item.name]
        job.by = this
        job.moved(self._clock())
        return Status.OK

    def pending(self, claim: Claim) -> tuple[int, list[int]] | None:
        job = self._jobs.get(claim.item.job_id)
        if job is None or not job.holds(claim):
            return None
        return job.position, [
            index
            for index, unit in enumerate(job.units)
            if unit.result is None and not self._lives(job, f"unit:{job.position}:{index}")
        ]

    def sent(self, claim: Claim, position: int) -> Answer:
        job = self._jobs.get(claim.item.job_id)
        if job is None:
            return Answer(Status.GONE)
        if not job.holds(claim):
            return Answer(Status.OK if job.sent >= position else Status.STALE, self._due(job))
        del job.claims[claim.item.name]
        job.sent = max(job.sent, position)
        job.touched = self._clock()
        return Answer(Status.OK, self._due(job))

    # --- end ------------------------------------------------------------------------------------------

    def finish(
        self,
        claim: Claim,
        ending: JobState,
        *,
        error: JobError | None = None,
        result: str = "",
        then: Item | None = None,
    ) -> Answer:
        answer = self._end(
            claim.item.job_id, str(claim.token), claim.item.attempt, ending, error, result, claim, open_only=False
        )
        return self._and_claim(answer, claim.owner, then if answer.due else None)

    def end(
        self, job_id: str, ending: JobState, *, error: JobError | None = None, attempt: int = 0, forced: bool = False
    ) -> Answer:
        self.asked += 1
        return self._end(job_id, f"asked {self.asked}", attempt, ending, error, "", None, open_only=not forced)

    def _end(
        self,
        job_id: str,
        who: str,
        attempt: int,
        ending: JobState,
        error: JobError | None,
        result: str,
        claim: Claim | None,
        *,
        open_only: bool,
    ) -> Answer:
        job, this = self._jobs.get(job_id), f"finish:{who}"
        if job is None:
            return Answer(Status.GONE)
        if job.by == this:
            close = job.claims.get("close")
            closes = close is not None and claim is not None and close.owner == claim.owner
            return Answer(Status.OK, (closes and self._lives(job, "close")) or self._due(job))
        if attempt and attempt != job.attempt:
            return Answer(Status.STALE)
        if claim is not None:
            if not job.holds(claim):
                return Answer(Status.STALE, self._due(job))
            del job.claims[claim.item.name]
        if job.state.final:
            return Answer(Status.OVER)
        if job.ending is not None:
            return Answer(Status.OVER, self._due(job))
        if open_only and job.committing:
            return Answer(Status.LATE)
        job.error, job.result, job.by = error or job.error, result or job.result, this
        if job.state is JobState.QUEUED:
            self._finish(job, ending)
            return Answer(Status.ENDED)
        job.ending = ending
        job.moved(self._clock())
        return Answer(Status.OK, self._due(job))

    def keep(self, claim: Claim, seconds: float) -> Status:
        job, now = self._jobs.get(claim.item.job_id), self._clock()
        this = f"keep:{claim.token}"
        if job is None:
            return Status.GONE
        if job.by == this:
            return Status.OK
        if not job.holds(claim):
            return Status.STALE
        if job.ending is not JobState.FAILED or (job.position < 1 and not job.units_done):
            return Status.OVER
        job.state, job.ended, job.kept, job.ending = JobState.FAILED, now, now + int(seconds), None
        job.committing, job.recoveries = False, 0
        job.claims = {}
        self._active.discard(job.id)
        self._kept[job.id] = job.kept
        job.by = this
        return Status.OK

    def closed(self, claim: Claim, *, clean: bool = True) -> Status:
        job, this = self._jobs.get(claim.item.job_id), f"closed:{claim.token}"
        if job is not None and job.by == this:
            return Status.OK
        return self._closed(claim.item, claim, this, clean)

    def give_up_closing(self, item: Item) -> Status:
        return self._closed(item, None, "closed:", True)

    def _closed(self, item: Item, claim: Claim | None, this: str, clean: bool) -> Status:
        job = self._jobs.get(item.job_id)
        if job is None:
            return Status.GONE
        if item.attempt != job.attempt:
            return Status.STALE
        if job.kept is None and (job.state.final or job.ending is None):
            return Status.OVER
        if claim is not None and not job.holds(claim):
            return Status.STALE
        if not clean and job.state.final:
            job.claims, job.deliveries = {}, {}
        else:
            self._finish(job, job.ending or job.state)
        if not clean:
            job.kept, self._kept[job.id] = 0.0, self._clock() + _NAMED_AGAIN
        job.by = this
        return Status.OK

    def condemn(self, job_id: str, error: JobError) -> int:
        return 0  # this store's records are never edited

    # --- a failed job that may be retried ---------------------------------------------------------------

    def discard(self, job_id: str) -> int:
        job = self._jobs.get(job_id)
        if job is None or job.kept is None:
            return 0
        job.kept = self._kept[job_id] = 0.0
        return job.attempt

    def overdue(self) -> list[Item]:
        now = self._clock()
        self._last_silence()
        found = [job_id for job_id, until in sorted(self._kept.items(), key=lambda each: each[1]) if until <= now]
        for job_id in found:
            self._kept[job_id] = now + _NAMED_AGAIN
        return [Item(job_id, self._jobs[job_id].attempt, "close") for job_id in found]

    def retry(self, job_id: str, *, restart: bool) -> Retried:
        job, now = self._jobs.get(job_id), self._clock()
        self.asked += 1
        if job is None:
            return retried(job_id, "gone", 0)
        for how in ("restart", "continue"):
            if job.by == f"retry:{self.asked}:{how}":
                return retried(job_id, how, job.attempt)
        if job.state is not JobState.FAILED:
            return retried(job_id, "not failed", job.attempt)
        if self._living(job):
            return retried(job_id, "busy", job.attempt)
        restart = restart or job.kept is None or job.kept <= now
        self._kept.pop(job_id, None)
        self._active.add(job_id)
        job.retry(restart, now)
        how = "restart" if restart else "continue"
        job.by = f"retry:{self.asked}:{how}"
        return retried(job_id, how, job.attempt)

    # --- recovery -------------------------------------------------------------------------------------

    def holders(self, job_id: str) -> list[Owner]:
        job = self._jobs.get(job_id)
        return [] if job is None else [held.owner for held in job.claims.values()]

    def hand_back(self, job_id: str, owners: Sequence[Owner], *, counts: bool = False) -> Lost:
        job = self._jobs.get(job_id)
        if job is None:
            return Lost(0, "handed back")
        names = sorted(name for name, held in job.claims.items() if held.owner in owners)
        for name in names:
            del job.claims[name]
            if not counts:
                job.deliveries[name] = job.deliveries.get(name, 0) - 1
        return Lost(job.attempt, "handed back", tuple(job.item(name) for name in names))

    def look(self, job_id: str, quiet: float, all_queued: bool = False, longest: float = 0) -> Lost:
        job, now = self._jobs.get(job_id), self._clock()
        if job is None or job.state.final:
            self._active.discard(job_id)
            self._queued.discard(job_id)
            return Lost(0, "")
        if all_queued and job_id in self._queued:
            return Lost(job.attempt, "")
        if job.started is not None:
            job.started = min(job.started, now)
        open_end = job.ending is None and not job.committing
        if longest and job.started is not None and open_end and now - job.started > longest:
            return Lost(job.attempt, "overtime")
        living = self._living(job)
        dead = sorted(name for name in job.claims if name not in living)
        reason = "lease ran out" if dead else ""
        found = [job.item(name) for name in dead] if job.ending is None else []
        for name in dead:
            del job.claims[name]
        job.touched = min(job.touched, now)
        if not living and not found and now - job.touched > quiet * 2 ** min(job.recoveries, 6):
            reason = "message lost"
            found = job.unsent(now)
            if found:
                job.recoveries += 1
        if found:
            job.touched = now
        return Lost(job.attempt, reason, tuple(found))

    def active(self, *, begun: bool = False) -> list[str]:
        return sorted(self._active - self._queued if begun else self._active)

    def prune(self) -> None:
        """There is no list."""

    # --- reading --------------------------------------------------------------------------------------

    def view(self, job_id: str) -> JobView:
        return self._found(job_id).view()

    def job(self, job_id: str) -> JobRecord:
        return self._found(job_id).record()

    def traffic(self, job_id: str) -> Traffic:
        job = self._jobs.get(job_id)
        return Traffic.INTERACTIVE if job is None else job.traffic

    def _found(self, job_id: str) -> MemoryJob:
        if job_id not in self._jobs:
            raise JobNotFound("no job has this id", where=job_id)
        return self._jobs[job_id]

    def _lives(self, job: MemoryJob, name: str) -> bool:
        """Return True if the claim of this name lives."""
        held, now = job.claims.get(name), self._clock()
        if held is None or held.expires > now:
            return held is not None and held.expires <= now + held.lease
        begin, end = self._last_silence()
        return begin < held.expires <= end <= now < end + held.lease

    def _living(self, job: MemoryJob) -> list[str]:
        return [name for name in job.claims if self._lives(job, name)]

    def _due(self, job: MemoryJob) -> bool:
        """Return True if its end is decided and no process works on it."""
        return job.ending is not None and not self._living(job)

    def _last_silence(self) -> tuple[float, float]:
        """Return begin and end of the last time in which no worker looked for lost jobs (``lua/claims.lua``)."""
        now = self._clock()
        if now - self._seen > self._lease / 2:
            self._silence = self._seen, now
        self._seen = now
        return self._silence

    def _finish(self, job: MemoryJob, state: JobState) -> None:
        job.finish(state, self._clock())
        self._active.discard(job.id)
        self._queued.discard(job.id)
        self._kept.pop(job.id, None)
