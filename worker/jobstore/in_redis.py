"""The job store in Redis: each operation a Lua script of ``lua/``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

import redis

from layerfarm.jobs.errors import JobNotFound, RecordDamaged, RequestError
from layerfarm.jobs.flows.base import FORMAT, State, Unit
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.keys import Keys, is_job_id
from layerfarm.worker.jobstore.model import Answer, Claim, Item, JobView, Lost, Refused, Retried, Status
from layerfarm.worker.jobstore.owner import Owner
from layerfarm.worker.jobstore.scripts import Scripts
from layerfarm.worker.model import JobError, JobRecord, JobState, Progress
from layerfarm.worker.settings import Settings

_VIEW: Final = tuple(JobView.model_fields)
_NONSENSE: Final = re.compile(r"\bWRONGTYPE\b|user_script:\d+: (attempt to|bad argument)|hash value is not an? ")
"""Answers of Redis when a script or a read finds data that no layerfarm script wrote."""
_NAMED_AGAIN: Final = 60_000
"""Milliseconds after which the closing of a kept job is requested again."""


class RedisJobStore:
    """The jobs in one Redis, for one process."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._client = client
        self._keys = Keys(settings.queue)
        self._job_expires = int(settings.job_expires)
        self._result_expires = max(1, int(settings.result_expires))
        self._lease = int(settings.lease * 1000)
        self._deliveries = settings.deliveries
        self._scripts = Scripts(client, settings)

    def _run(self, name: str, job_id: str, *args: Any, claim: Sequence[Any] = ()) -> Any:
        with _sound(job_id):
            return self._scripts.run(name, self._keys.job(job_id), args, claim)

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
        args = (kind, request, stages, self._job_expires, traffic, submitter, version, most_queued, signature)
        return bool(self._run("submit", job_id, job_id, *args) == "accepted")

    def next(self, job_id: str, attempt: int, owner: Owner) -> tuple[str, int]:
        found, its_attempt = self._run("next", job_id, job_id, attempt, self._job_expires, str(owner))
        return str(found), int(its_attempt)

    def now(self) -> int:
        """Return milliseconds since the epoch by the clock of Redis."""
        seconds, micros = self._client.time()
        return int(seconds * 1000 + micros // 1000)

    def admit(self, job_id: str) -> tuple[int, bool]:
        now, fresh = self._run("admit", job_id, job_id)
        return int(now), bool(fresh)

    def sign(self, job_id: str, signature: str) -> None:
        """Replace a job's signature by its submitter, so that it can begin again."""
        self._client.hset(self._keys.job(job_id).job, "signature", signature)

    # --- work -----------------------------------------------------------------------------------------

    def claim(self, item: Item, owner: Owner) -> Claim | Refused:
        answer = self._run("claim", item.job_id, *self._asked(item, owner))
        if answer[0] == Status.BUSY:
            with _sound(item.job_id):
                dead = Owner.parse(answer[2]).is_known_dead
            if dead:
                answer = self._run("claim", item.job_id, *self._asked(item, owner, answer[2]))
        return _claimed(item, owner, answer)

    def _asked(self, item: Item, owner: Owner, dead: str = "") -> tuple[Any, ...]:
        """Return the arguments of ``claim.lua``."""
        return item.name, item.attempt, item.stage, item.index_text, owner, self._lease, self._deliveries, dead

    def _under(self, name: str, claim: Claim, *args: Any) -> Any:
        return self._run(name, claim.item.job_id, *_held(claim), *args)

    def _and_claim(self, name: str, claim: Claim, then: Item | None, *args: Any) -> Answer:
        """Run an operation that releases ``claim`` and, if ``then`` is given, claims it for the same owner."""
        if then is None:
            return _answer(self._run(name, claim.item.job_id, *args))
        asked = self._asked(then, claim.owner)
        done, claimed = self._run(name, claim.item.job_id, *args, claim=asked)
        got = _claimed(then, claim.owner, claimed) if claimed else None
        return _answer(done)._replace(claim=got if isinstance(got, Claim) else None)

    def beat(self, claim: Claim, nbytes: int) -> Status:
        return Status(self._under("beat", claim, self._lease, claim.item.index_text, nbytes))

    def release(self, claim: Claim, *, counts: bool = True, waits: float = 0) -> Answer:
        return _answer(self._under("release", claim, "1" if counts else "", int(waits * 1000)))

    def record_result(self, claim: Claim, result: dict[str, Any], *, then: Item | None = None) -> Answer:
        assert claim.unit is not None
        args = (claim.item.index_text, json.dumps(result), claim.unit.bytes)
        return self._and_claim("record", claim, then, *_held(claim), *args)

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
        nbytes = sum(unit.bytes for unit in units)
        head = (position, name, "1" if commits else "", state.model_dump_json(), nbytes, self._job_expires)
        texts = (unit.model_dump_json() for unit in units)
        return self._and_claim("open_stage", claim, then, *_held(claim), *head, "1" if then else "", *texts)

    def pending(self, claim: Claim) -> tuple[int, list[int]] | None:
        status, *found = self._under("pending", claim)
        return None if status != Status.OK else (found[0], found[1:])

    def sent(self, claim: Claim, position: int) -> Answer:
        return _answer(self._under("sent", claim, position))

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
        args = (claim.token, claim.item.attempt, ending, _text(error), result, *_held(claim), "", self._result_expires)
        return self._and_claim("finish", claim, then, *args)

    def end(
        self, job_id: str, ending: JobState, *, error: JobError | None = None, attempt: int = 0, forced: bool = False
    ) -> Answer:
        who = (os.urandom(8).hex(), attempt, ending, _text(error), "", "", 0, "", "" if forced else "1")
        return _answer(self._run("finish", job_id, *who, self._result_expires))

    def keep(self, claim: Claim, seconds: float) -> Status:
        # The record long outlives the kept work: it names the files to be removed.
        lifetime = max(self._result_expires, int(2 * seconds) + 24 * 3600)
        return Status(self._run("keep", claim.item.job_id, claim.token, str(claim.owner), int(seconds), lifetime))

    def closed(self, claim: Claim, *, clean: bool = True) -> Status:
        return self._closed(claim.item, claim.token, str(claim.owner), clean)

    def give_up_closing(self, item: Item) -> Status:
        return self._closed(item, "", "", True)

    def _closed(self, item: Item, token: int | str, owner: str, clean: bool) -> Status:
        args = (token, owner, item.attempt, self._result_expires, "1" if clean else "", _NAMED_AGAIN)
        return Status(self._run("closed", item.job_id, *args))

    def condemn(self, job_id: str, error: JobError) -> int:
        return int(self._run("condemn", job_id, job_id, error.model_dump_json(), FORMAT, self._job_expires))

    # --- a failed job that may be retried ---------------------------------------------------------------

    def discard(self, job_id: str) -> int:
        return int(self._run("discard", job_id))

    def overdue(self) -> list[Item]:
        return [Item(job_id, int(attempt), "close") for job_id, attempt in self._run("overdue", "none", _NAMED_AGAIN)]

    def retry(self, job_id: str, *, restart: bool) -> Retried:
        how, attempt = self._run("retry", job_id, os.urandom(8).hex(), "1" if restart else "", self._job_expires)
        return retried(job_id, how, int(attempt))

    # --- recovery -------------------------------------------------------------------------------------

    def holders(self, job_id: str) -> list[Owner]:
        with _sound(job_id):
            claims = cast("list[str]", self._client.hvals(self._keys.job(job_id).claims))
            return [Owner.parse(claim.split(" ", 3)[-1]) for claim in claims]

    def hand_back(self, job_id: str, owners: Sequence[Owner], *, counts: bool = False) -> Lost:
        attempt, *found = self._run("hand_back", job_id, "1" if counts else "", *(str(owner) for owner in owners))
        return _lost(job_id, attempt, "handed back", found)

    def look(self, job_id: str, quiet: float, all_queued: bool = False, longest: float = 0) -> Lost:
        args = (job_id, int(quiet * 1000), "1" if all_queued else "", int(longest * 1000))
        attempt, reason, *found = self._run("look", job_id, *args)
        return _lost(job_id, attempt, reason, found)

    def active(self, *, begun: bool = False) -> list[str]:
        keys = [self._keys.active, *([self._keys.queued] if begun else ())]
        found = cast("set[str]", self._client.sdiff(keys))
        strange = [each for each in found if not is_job_id(each)]
        if strange:
            self._client.srem(self._keys.active, *strange)
        return sorted(found.difference(strange))

    def prune(self) -> None:
        oldest = cast("list[str]", self._client.zrange(self._keys.jobs, 0, 199))
        ids = list(filter(is_job_id, oldest))
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(self._keys.job(job_id).job)
            there = {job_id for job_id, exists in zip(ids, pipe.execute(), strict=True) if exists}
        gone = [each for each in oldest if each not in there]
        if gone:
            self._client.zrem(self._keys.jobs, *gone)

    # --- reading --------------------------------------------------------------------------------------

    def view(self, job_id: str) -> JobView:
        with _sound(job_id):
            fields = cast("list[str | None]", self._client.hmget(self._keys.job(job_id).job, _VIEW))
            if not any(fields):
                raise JobNotFound("no job has this id", where=job_id)
            return _view(fields)

    def traffic(self, job_id: str) -> Traffic:
        with _sound(job_id):
            found = cast("str | None", self._client.hget(self._keys.job(job_id).job, "traffic"))
        return Traffic.BULK if found == Traffic.BULK else Traffic.INTERACTIVE

    def job(self, job_id: str) -> JobRecord:
        with _sound(job_id):
            return _record(job_id, cast("dict[str, str]", self._client.hgetall(self._keys.job(job_id).job)))

    def jobs(self, limit: int) -> Iterator[JobRecord]:
        """Yield the newest ``limit`` jobs, newest first, without those with corrupt records."""
        ids = list(filter(is_job_id, cast("list[str]", self._client.zrevrange(self._keys.jobs, 0, limit - 1))))
        with self._client.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(self._keys.job(job_id).job)
            found = pipe.execute(raise_on_error=False)
        gone = [job_id for job_id, fields in zip(ids, found, strict=True) if not fields]
        if gone:
            self._client.zrem(self._keys.jobs, *gone)
        for job_id, fields in zip(ids, found, strict=True):
            if isinstance(fields, dict) and fields:
                with suppress(RecordDamaged), _sound(job_id):
                    yield JobRecord.parse(job_id, fields)

    def progress(self, job_id: str) -> tuple[str, Progress]:
        """Return the id of the newest event and the progress at that moment, to follow from there.

        Raises:
            JobNotFound: there was never such a job, or its record has expired.
            RecordDamaged: it is corrupt.
        """
        keys = self._keys.job(job_id)
        # One transaction: an event between two reads would be older than the record, and yet come after it.
        with _sound(job_id), self._client.pipeline(transaction=True) as pipe:
            pipe.xrevrange(keys.events, count=1)
            pipe.hgetall(keys.job)
            newest, fields = pipe.execute()
            return newest[0][0] if newest else "0", _record(job_id, fields).progress()

    def events(self, job_id: str, after: str, block: float) -> list[tuple[str, Progress]]:
        """Return events newer than ``after`` with their ids; wait up to ``block`` seconds for one."""
        key = self._keys.job(job_id).events
        answer = cast("Any", self._client.xread({key: after}, count=1000, block=max(1, int(block * 1000))))
        entries = answer[0][1] if answer else []
        return [(event_id, progress) for event_id, fields in entries if (progress := _progress(fields)) is not None]


def _answer(found: Any) -> Answer:
    status, *flags = found if isinstance(found, list) else [found]
    due, complete, *_ = *map(bool, flags), False, False
    return Answer(Status(status), due, complete)


def _held(claim: Claim) -> tuple[str, int, str]:
    return claim.item.name, claim.token, str(claim.owner)


def _text(error: JobError | None) -> str:
    return error.model_dump_json() if error else ""


def _claimed(item: Item, owner: Owner, answer: Sequence[Any]) -> Claim | Refused:
    """Parse an answer of ``claim.lua``.

    Raises:
        RecordDamaged: the job's record is corrupt.
    """
    if answer[0] != Status.OK:
        return Refused(Status(answer[0]), bool(answer[1]))
    _, token, unit, fields, results = answer
    with _sound(item.job_id):
        job = _view(fields)
        read = [json.loads(result) for result in results]
        return Claim(item, int(token), owner, job, Unit.model_validate_json(unit) if unit else None, read)


def retried(job_id: str, how: str, attempt: int) -> Retried:
    """Convert the answer of ``retry``, for both stores."""
    match how:
        case "gone":
            raise JobNotFound("no job has this id", where=job_id)
        case "not failed":
            raise RequestError("only a job that failed can be retried", where=job_id)
        case "busy":
            raise RequestError("kept work of the job is being removed", where=job_id, hint="try again")
    return Retried(attempt, how == "restart")


def _lost(job_id: str, attempt: int, reason: str, found: Sequence[Sequence[Any]]) -> Lost:
    items = tuple(
        Item(job_id, attempt, what, -1 if stage == "" else int(stage), -1 if index == "" else int(index))
        for what, stage, index in found
    )
    return Lost(attempt, reason, items)


def _view(fields: Sequence[str | None]) -> JobView:
    """Parse the fields of a job.

    Raises:
        ValueError: the fields are not those of a job.
    """
    return JobView.model_validate({name: text for name, text in zip(_VIEW, fields, strict=True) if text})


def _record(job_id: str, fields: dict[str, str]) -> JobRecord:
    if not fields:
        hint = "or Redis was restarted without its data; then submit it again"
        raise JobNotFound("no job has this id, or its record has expired", where=job_id, hint=hint)
    return JobRecord.parse(job_id, fields)


def _progress(fields: dict[str, str]) -> Progress | None:
    """Parse an event; None: a script did not write it."""
    with suppress(ValueError, TypeError):
        return Progress(**cast("Any", {name: text for name, text in fields.items() if text}))
    return None


@contextmanager
def _sound(job_id: str) -> Iterator[None]:
    """Read data of a job from Redis inside the block.

    Raises:
        RecordDamaged: it is corrupt.
    """
    try:
        yield
    except (ValueError, TypeError, RecursionError, redis.ResponseError) as error:
        if isinstance(error, redis.ResponseError) and not _NONSENSE.search(str(error)):
            raise
        raise RecordDamaged("the job's record in Redis is corrupt", where=job_id) from error
