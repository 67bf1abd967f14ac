"""What Redis holds of the jobs: their records, the units of their current stages, their events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, cast

import redis

from jobs.errors import JobNotFound, RecordDamaged, RequestError
from jobs.flows.base import State, Unit
from worker import lifecycle, scripts
from worker.claims import CLOSE, Claim
from worker.keys import ACTIVE, JOBS, QUEUED, JobKeys
from worker.owner import Owner
from worker.progress import Ending, JobError, JobRecord, JobState, Progress
from worker.traffic import Traffic

FORMAT: Final = 1
"""Version of what a job's record and the messages about it mean. A worker refuses a job of another one."""
_EVENT_NUMBERS = ("stage_number", "stages", "units_done", "units_total", "bytes_done", "bytes_total")


class Position(NamedTuple):
    """Where the flow of a job stands."""

    kind: str
    request: str
    """JSON."""
    stage: int
    """Index of the stage that was opened last; -1: none."""
    state: str
    """The flow's state when that stage was opened, JSON; empty at -1."""
    ending: JobState | None
    """The end has been decided, what the job staged has still to be removed."""
    traffic: Traffic = Traffic.INTERACTIVE
    format: int = FORMAT
    submitter: str = ""
    signature: str = ""
    """See ``worker.signing``; empty: the request is not signed."""
    planned: int = 0
    """Bytes of all units of the stages that were opened."""
    retries: int = 0


class Ended(NamedTuple):
    """What asking for a job's end brought about."""

    accepted: bool
    """This was the first one to ask."""
    due: bool
    """Nobody works on the job, so it can be closed now."""


@dataclass(frozen=True)
class Stuck:
    """A message that has to be sent again."""

    what: str
    """``unit``, ``advance`` or ``close``; or ``overtime``: the job is to be ended."""
    stage: int
    index: int


class Ledger:
    """The jobs in one Redis.

    Parameters:
        job_expires: seconds after which a job that does not advance is forgotten.
        result_expires: seconds for which the record of an ended job is kept.
    """

    def __init__(self, client: redis.Redis, job_expires: float, result_expires: float) -> None:
        self._client = client
        self._job_expires = int(job_expires)
        self._result_expires = max(1, int(result_expires))
        self._scripts = {name: client.register_script(getattr(scripts, name)) for name in _STAGE_SCRIPTS}
        self._scripts |= {name: client.register_script(getattr(lifecycle, name)) for name in _LIFE_SCRIPTS}

    # --- the life of a job, in order ---------------------------------------------------------------

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
        """Write the record of a new job. False: ``most_queued`` jobs (0: any number) wait already."""
        args = (job_id, kind, request, stages, self._job_expires, traffic, submitter, version, most_queued, signature)
        return bool(self._scripts["SUBMIT"](keys=(*JobKeys.of(job_id), JOBS), args=args))

    def next(self, job_id: str) -> str:
        """Which job is to begin now that the first message of ``job_id`` has come."""
        return str(self._scripts["NEXT"](keys=JobKeys.of(job_id), args=(job_id, self._job_expires)))

    def now(self) -> int:
        """Milliseconds since the epoch by the clock of Redis."""
        seconds, micros = self._client.time()
        return int(seconds * 1000 + micros // 1000)

    def admit(self, job_id: str) -> tuple[int, bool]:
        """The time (ms by the clock of Redis), and whether the job's signature has not opened a job before."""
        now, fresh = self._scripts["ADMIT"](keys=JobKeys.of(job_id), args=(job_id,))
        return int(now), bool(fresh)

    def sign(self, job_id: str, signature: str) -> None:
        """Give a job another signature of its submitter: it is to begin anew."""
        self._client.hset(JobKeys.of(job_id).job, "signature", signature)

    def forget(self, job_id: str) -> None:
        """Remove a job whose first message could not be sent."""
        keys = JobKeys.of(job_id)
        with self._client.pipeline() as pipe:
            pipe.delete(keys.job, keys.claims, keys.events, keys.units)
            pipe.srem(ACTIVE, job_id)
            pipe.srem(QUEUED, job_id)
            pipe.zrem(JOBS, job_id)
            pipe.execute()

    def position(self, job_id: str) -> Position:
        """
        Raises:
            JobNotFound: the record has expired.
            RecordDamaged: somebody edited it.
        """
        plain = ("kind", "request", "position", "flow_state", "ending", "traffic", "format")
        names = (*plain, "submitter", "signature", "bytes_planned", "retries")
        values = cast("list[str | None]", self._client.hmget(JobKeys.of(job_id).job, names))
        kind, request, position, state, ending, traffic, version, submitter, signature, planned, retries = values
        if kind is None or request is None:
            if position is not None:
                raise RecordDamaged("what Redis holds of the job makes no sense", where=job_id)
            raise JobNotFound("no job has this id", where=job_id)
        with _sense(job_id):
            return Position(
                kind,
                request,
                int(position or -1),
                state or "",
                JobState(ending) if ending else None,
                Traffic(traffic or Traffic.INTERACTIVE),
                int(version or 1),
                submitter or "",
                signature or "",
                int(planned or 0),
                int(retries or 0),
            )

    def ending(self, job_id: str) -> Ending | None:
        """How a job is about to end; None: that is not decided."""
        names = ("ending", "result", "error", "retries")
        state, result, error, retries = cast("list[str | None]", self._client.hmget(JobKeys.of(job_id).job, names))
        if not state:
            return None
        with _sense(job_id):
            why = JobError.model_validate_json(error) if error else None
            return Ending(state=JobState(state), result=result or "", error=why, retries=int(retries or 0))

    def traffic(self, job_id: str) -> Traffic:
        """The class of the job, also of one whose record has expired."""
        found = cast("str | None", self._client.hget(JobKeys.of(job_id).job, "traffic"))
        return Traffic.BULK if found == Traffic.BULK else Traffic.INTERACTIVE

    def results(self, job_id: str, count: int) -> list[dict[str, Any]]:
        """The results of the current stage, in the units' order; all are there once it is complete."""
        fields = [f"result:{index}" for index in range(count)]
        values = cast("list[str]", self._client.hmget(JobKeys.of(job_id).units, fields)) if fields else []
        with _sense(job_id):
            return [json.loads(value) for value in values]

    def units_total(self, job_id: str) -> int:
        with _sense(job_id):
            return int(cast("str | None", self._client.hget(JobKeys.of(job_id).job, "units_total")) or 0)

    def open_stage(self, claim: Claim, position: int, name: str, state: State, units: Sequence[Unit]) -> bool:
        """Make stage ``position`` the current one. False: another process did, or the job is being ended."""
        keys = JobKeys.of(claim.piece.job_id)
        nbytes = sum(unit.bytes for unit in units)
        head = (claim.piece.name, claim.token, position, name, state.model_dump_json(), nbytes, self._job_expires)
        answer = self._scripts["OPEN_STAGE"](keys=keys, args=(*head, *(unit.model_dump_json() for unit in units)))
        return bool(answer == "ok")

    def sent(self, claim: Claim, position: int) -> None:
        """The units of stage ``position`` are on the queue; gives the claim to advance back."""
        piece = claim.piece
        self._scripts["SENT"](keys=JobKeys.of(piece.job_id), args=(piece.name, claim.token, position))

    def pending(self, job_id: str) -> tuple[int, list[int]]:
        """The current stage, and which of its units are neither done nor being done."""
        position, *indexes = self._scripts["PENDING"](keys=JobKeys.of(job_id))
        return position, indexes

    def end(
        self,
        job_id: str,
        ending: JobState,
        *,
        error: JobError | None = None,
        result: str = "",
        claim: Claim | None = None,
    ) -> Ended:
        """Decide how the job ends, unless that is decided, and give ``claim`` back.

        A job of which nothing ever ran has ended with that; any other has still to be closed.

        Raises:
            JobNotFound: the record has expired.
        """
        held = (claim.piece.name, claim.token) if claim else ("", 0)
        args = (ending, error.model_dump_json() if error else "", result, *held, self._result_expires)
        accepted, due = self._scripts["END"](keys=JobKeys.of(job_id), args=args)
        if accepted < 0:
            raise JobNotFound("no job has this id", where=job_id)
        return Ended(bool(accepted), bool(due))

    def condemn(self, job_id: str, error: JobError) -> bool:
        """The record makes no sense: leave of it what the job's end needs, with ``error``. True: it is to be closed."""
        args = (job_id, error.model_dump_json(), FORMAT, self._job_expires)
        return bool(self._scripts["CONDEMN"](keys=JobKeys.of(job_id), args=args))

    def closed(self, job_id: str, claim: Claim | None) -> bool:
        """What the job staged is gone: show its final state. Without a claim: it was tried often enough.

        False: it was shown before, or the claim is not held any more.
        """
        assert claim is None or claim.piece.name == CLOSE
        args = (claim.token if claim else "", self._result_expires)
        return bool(self._scripts["CLOSED"](keys=JobKeys.of(job_id), args=args))

    # --- a failed job that may be retried -----------------------------------------------------------

    def keep(self, job_id: str, claim: Claim, seconds: float) -> bool:
        """Show that the job failed, and keep what its units did. False: there is nothing worth keeping."""
        # The record outlives what is kept by far: it is what leads to the files that are to be removed.
        lifetime = max(self._result_expires, int(2 * seconds) + 24 * 3600)
        return bool(self._scripts["KEEP"](keys=JobKeys.of(job_id), args=(claim.token, int(seconds), lifetime)))

    def discard(self, job_id: str) -> bool:
        """Let go of what was kept of a failed job. True: it is to be removed now, by ``close``."""
        return bool(self._scripts["DISCARD"](keys=JobKeys.of(job_id)))

    def overdue(self) -> list[str]:
        """Failed jobs that have been kept for long enough, at most 100 at once."""
        return list(self._scripts["OVERDUE"](keys=JobKeys.of("none")))

    def retry(self, job_id: str, *, anew: bool) -> bool:
        """Let a failed job go on with the units that did not finish. False: it begins anew.

        Raises:
            JobNotFound: the record has expired.
            RequestError: the job has not failed.
        """
        answer = self._scripts["RETRY"](keys=JobKeys.of(job_id), args=("1" if anew else "", self._job_expires))
        match answer:
            case "gone":
                raise JobNotFound("no job has this id", where=job_id)
            case "not failed":
                raise RequestError("only a job that failed can be retried", where=job_id)
            case "busy":
                raise RequestError("what the job left is just being removed", where=job_id, hint="try again")
        return bool(answer == "on")

    def hand_back(self, job_id: str, owners: Sequence[Owner]) -> list[Stuck]:
        """Take the claims of ``owners``, which were stopped; what they had begun has to be sent again."""
        return _stuck(self._scripts["HAND_BACK"](keys=JobKeys.of(job_id), args=[str(owner) for owner in owners]))

    # --- looking ------------------------------------------------------------------------------------

    def stuck(self, job_id: str, quiet: float, all_queued: bool = False, longest: float = 0) -> list[Stuck]:
        """What has to be sent again; ``quiet``: seconds after which a job that nobody works on is stuck.

        ``all_queued``: there is a first message for every job that waits for its beginning. ``longest``: seconds
        that a job may take (0: any number); one that has taken more is ``overtime``, and nothing of it is sent.
        """
        args = (int(quiet * 1000), job_id, "1" if all_queued else "", int(longest * 1000))
        return _stuck(self._scripts["LOOK"](keys=JobKeys.of(job_id), args=args))

    def prune(self) -> None:
        """Leave jobs out of the list whose records have expired: some of the oldest ones at a time."""
        oldest = cast("list[str]", self._client.zrange(JOBS, 0, 199))
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in oldest:
                pipe.exists(JobKeys.of(job_id).job)
            gone = [job_id for job_id, there in zip(oldest, pipe.execute(), strict=True) if not there]
        if gone:
            self._client.zrem(JOBS, *gone)

    def active(self) -> list[str]:
        """The ids of the jobs that have not ended."""
        return sorted(cast("set[str]", self._client.smembers(ACTIVE)))

    def record(self, job_id: str) -> JobRecord:
        """
        Raises:
            JobNotFound: there never was such a job, or its record has expired.
            RecordDamaged: somebody edited it.
        """
        with _sense(job_id):
            fields = cast("dict[str, str]", self._client.hgetall(JobKeys.of(job_id).job))
        if not fields:
            hint = "or Redis was restarted without its data; then submit it again"
            raise JobNotFound("no job has this id, or its record has expired", where=job_id, hint=hint)
        with _sense(job_id):
            return JobRecord.parse(job_id, fields)

    def records(self, limit: int) -> Iterator[JobRecord]:
        """The newest ``limit`` jobs, newest first, without those whose record makes no sense."""
        ids = cast("list[str]", self._client.zrevrange(JOBS, 0, limit - 1))
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(JobKeys.of(job_id).job)
            found = pipe.execute(raise_on_error=False)
        gone = [job_id for job_id, fields in zip(ids, found, strict=True) if not fields]
        if gone:
            self._client.zrem(JOBS, *gone)
        for job_id, fields in zip(ids, found, strict=True):
            if isinstance(fields, dict) and fields:
                with suppress(RecordDamaged), _sense(job_id):
                    yield JobRecord.parse(job_id, fields)

    def last_event(self, job_id: str) -> str:
        """The id of the newest event, to follow from there."""
        newest = cast("list[tuple[str, Any]]", self._client.xrevrange(JobKeys.of(job_id).events, count=1))
        return newest[0][0] if newest else "0"

    def events(self, job_id: str, after: str, block: float) -> list[tuple[str, Progress]]:
        """Events newer than ``after`` with their ids; waits up to ``block`` seconds for one."""
        key = JobKeys.of(job_id).events
        answer = cast("Any", self._client.xread({key: after}, count=1000, block=max(1, int(block * 1000))))
        entries = answer[0][1] if answer else []
        return [(event_id, progress) for event_id, fields in entries if (progress := _progress(fields)) is not None]


_STAGE_SCRIPTS: Final = ("OPEN_STAGE", "SENT", "PENDING")
_LIFE_SCRIPTS: Final = (
    *("SUBMIT", "NEXT", "ADMIT", "END", "CLOSED", "LOOK"),
    *("KEEP", "DISCARD", "OVERDUE", "RETRY", "HAND_BACK", "CONDEMN"),
)


def _stuck(found: list[list[str]]) -> list[Stuck]:
    return [Stuck(what, -1 if stage == "" else int(stage), int(index or 0)) for what, stage, index in found]


def _progress(fields: dict[str, str]) -> Progress | None:
    """What an event says; None: nothing that makes sense."""
    with suppress(ValueError, KeyError):
        numbers = {name: int(fields[name] or 0) for name in _EVENT_NUMBERS}
        progress = Progress(state=JobState(fields["state"]), kind=fields["kind"], stage=fields["stage"])
        return replace(progress, **cast("Any", numbers))
    return None


@contextmanager
def _sense(job_id: str) -> Iterator[None]:
    """Inside, what Redis holds of a job is read."""
    try:
        yield
    except (ValueError, TypeError, redis.ResponseError) as error:
        if isinstance(error, redis.ResponseError) and not str(error).startswith("WRONGTYPE"):
            raise
        raise RecordDamaged("what Redis holds of the job makes no sense", where=job_id) from error
