"""The farm from outside: submit a job, watch it, wait for its result, cancel it.

farm = Farm("redis://queue.example:6379/0")
job = farm.submit(BuildRequest(rootfs=..., image=ImageRef(store=..., tag="nightly")))
for progress in job.watch():
    ...
print(job.result().manifest)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import ValidationError

from layerfarm.jobs.errors import (
    FarmFull,
    FarmUnreachable,
    JobCancelled,
    JobFailed,
    JobNotFound,
    RequestError,
    TreeChanged,
)
from layerfarm.jobs.flows import FLOWS, flow_of
from layerfarm.jobs.flows.base import FORMAT, Request, Result
from layerfarm.jobs.flows.inputs import lease_inputs, release, stores_of
from layerfarm.jobs.store.validation import first_error
from layerfarm.worker.background.registry import WorkerInfo, workers
from layerfarm.worker.broker.connection import connect, reaching
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.model import LARGEST_REQUEST, Item, Status
from layerfarm.worker.model import JobRecord, JobState, Progress
from layerfarm.worker.monitoring.census import Census, census
from layerfarm.worker.security.signing import Signed, read_keys, sign
from layerfarm.worker.settings import Settings, load_settings
from layerfarm.worker.watching import Watch

if TYPE_CHECKING:
    from celery import Celery

    from layerfarm.worker.broker.messages import Sender
    from layerfarm.worker.engine.recovery import Recovery

__all__ = ["Farm", "Job"]

_log = structlog.get_logger()

_ROOM: Final = 0.25
"""Seconds between two checks for room in a full queue."""
_NAP: Final = 0.1
"""Most seconds between two looks at a job of which only the end is awaited; a young job is looked at sooner."""


class Farm:
    """The jobs and workers behind one Redis.

    Parameters:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``; default: ``LAYERFARM_FARM``.
        settings: used instead of those in the environment.

    Raises:
        FarmUnreachable: Redis does not answer within 5 seconds.
        RequestError: no farm is configured, or its address is malformed.
    """

    def __init__(self, url: str | None = None, settings: Settings | None = None) -> None:
        settings = settings or load_settings()
        if url is not None:
            settings = settings.model_copy(update={"farm": load_settings(farm=url).farm})
        self._settings = settings
        self.address: Final = settings.address
        self.look_every: Final = settings.look_every
        self.keys: Final = Keys(settings.queue)
        """Names of the farm's keys in Redis."""
        self.client: Final = connect(self.address)
        self.store: Final = RedisJobStore(self.client, settings)

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        if "_app" in self.__dict__:
            self._app.close()

    def census(self) -> Census:
        """Count queues, workers, and jobs that have not ended."""
        with reaching(self.address):
            return census(self.client, self.keys, self._settings.queues)

    def submit(
        self,
        request: Request,
        *,
        traffic: Traffic | None = None,
        submitter: str | None = None,
        block: bool = False,
        timeout: float | None = None,
    ) -> Job:
        """Queue a job.

        Parameters:
            traffic: its class; default: ``LAYERFARM_CLASS``, else interactive.
            submitter: name of the submitter; default: ``LAYERFARM_SUBMITTER``, else ``user@host``.
            block: wait until the farm has room, at most ``timeout`` seconds.

        Raises:
            RequestError: the request is invalid or too large, or its signing key cannot be used.
            FarmFull: ``LAYERFARM_MOST_QUEUED`` jobs are already waiting.
            FarmUnreachable: Redis is unreachable. The job runs nevertheless if only the answer was lost.
        """
        flow = flow_of(request)
        text = _checked(request)
        settings = self._settings
        if submitter is not None:
            settings = settings.model_copy(update={"submitter": load_settings(submitter=submitter).submitter})
        traffic = traffic or settings.traffic
        job_id = secrets.token_hex(6)
        deadline = None if timeout is None else time.monotonic() + timeout
        with reaching(self.address), _leased(job_id, request, settings.job_expires):
            signature = self._sign(Signed(job_id, flow.name, traffic, settings.submitter, FORMAT, text))
            while not self.store.submit(
                job_id,
                flow.name,
                text,
                len(flow.stages),
                traffic=traffic,
                submitter=settings.submitter,
                most_queued=settings.most_queued,
                signature=signature,
            ):
                if not block or (deadline is not None and time.monotonic() >= deadline):
                    raise FarmFull(
                        f"{settings.most_queued} jobs are already waiting",
                        where=self.address.masked,
                        hint="try again later, or see docs/operating.md#priorities",
                    )
                time.sleep(_ROOM)
        job = Job(self, job_id)
        try:
            with reaching(self.address):
                self.sender.send([Item(job_id, 1, "advance")], traffic)
        except FarmUnreachable as error:
            # The record queues a job. Recovery sends the message again for jobs without one.
            _log.warning("first message of the job is late", job=job_id, error=str(error))
        return job

    def sign_again(self, job_id: str) -> None:
        """Sign a job of this submitter again, so that it can begin again."""
        position = self.store.view(job_id)
        if position.submitter == self._settings.submitter:
            fields = (position.kind, position.traffic, position.submitter, position.format, position.request)
            signature = self._sign(Signed(job_id, *fields))
            if signature:
                self.store.sign(job_id, signature)

    def _sign(self, signed: Signed) -> str:
        if self._settings.key_file is None:
            return ""
        expires = self.store.now() + int(self._settings.signature_valid * 1000)
        return sign(read_keys(self._settings.key_file)[0], signed, expires)

    def job(self, job_id: str) -> Job:
        """Return a job that anyone submitted earlier.

        Raises:
            JobNotFound: there was never such a job, or its record has expired.
        """
        with reaching(self.address):
            self.store.job(job_id)
        return Job(self, job_id)

    def jobs(self, limit: int = 1000) -> list[JobRecord]:
        """Return the newest jobs, newest first."""
        with reaching(self.address):
            return list(self.store.jobs(limit))

    def workers(self) -> list[WorkerInfo]:
        """Return the workers that are listening."""
        with reaching(self.address):
            return workers(self.client, self.keys)

    def ping(self) -> float:
        """Return the seconds that Redis takes to answer."""
        begun = time.monotonic()
        with reaching(self.address):
            self.client.ping()
        return time.monotonic() - begun

    @cached_property
    def sender(self) -> Sender:
        from layerfarm.worker.broker.messages import Sender

        return Sender(self._app, self._settings)

    @cached_property
    def recovery(self) -> Recovery:
        from layerfarm.worker.engine.recovery import Recovery

        return Recovery.of(self.client, self.store, self.sender, self._settings)

    @cached_property
    def _app(self) -> Celery:
        from layerfarm.worker.broker.app import make_app

        return make_app(self._settings)


class Job:
    """One job on a farm."""

    def __init__(self, farm: Farm, job_id: str) -> None:
        self._farm = farm
        self.id = job_id
        self._since = time.monotonic()

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def record(self) -> JobRecord:
        """Return the record of the job.

        Raises:
            JobNotFound: the record has expired.
        """
        with reaching(self._farm.address):
            return self._farm.store.job(self.id)

    def watch(self, *, timeout: float | None = None, heartbeat: float | None = None) -> Iterator[Progress]:
        """Yield the job's progress as it happens, to its final state.

        A progress with a ``notice`` explains why nothing happens: no worker is listening, or Redis does not answer.

        Parameters:
            timeout: seconds to wait for the end of the job; None: no limit.
            heartbeat: seconds without news after which the last progress is yielded again; None: never.

        Raises:
            JobTimeout: the job has not ended in time; it continues.
            JobNotFound: the record has expired.
            FarmUnreachable: Redis has not answered for two minutes; the job may continue.
        """
        return Watch(self._farm, self.id, timeout, heartbeat).run()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end of the job, at most ``timeout`` seconds.

        Raises:
            JobFailed: with the message of the error, and its type in ``error_type``.
            JobCancelled: it was cancelled.
            JobTimeout: it has not ended in time; it continues.
            JobNotFound: the record has expired.
        """
        record = self.record()
        if not record.state.final:
            for progress in Watch(self._farm, self.id, timeout).run():
                if not progress.state.final:
                    time.sleep(min(_NAP, (time.monotonic() - self._since) / 50))
            record = self.record()
        if record.state is JobState.CANCELLED:
            raise JobCancelled("job was cancelled", where=self.id)
        if record.state is JobState.FAILED:
            message = record.error.message if record.error else "job failed"
            raise JobFailed(message, error_type=record.error.type if record.error else None)
        return _result(record)

    def cancel(self) -> bool:
        """Cancel the job: running units stop at their next check, then their staged files are removed.

        A unit checks about every 2 seconds; compressing a block of zstd at level 19 takes up to half a minute.

        Return False if it has ended, or its end is already decided.

        Raises:
            JobNotFound: the record has expired.
        """
        with reaching(self._farm.address):
            answer = self._farm.store.end(self.id, JobState.CANCELLED)
            if answer.status is Status.GONE:
                raise JobNotFound("no job has this id", where=self.id)
            if answer.due:
                self._farm.sender.send([Item(self.id, self._farm.store.job(self.id).attempt, "close")])
            elif answer.status is Status.ENDED:
                # It never began, so no worker will release its lease.
                self._release()
        return answer.status in (Status.OK, Status.ENDED)

    def _release(self) -> None:
        position = self._farm.store.view(self.id)
        flow = FLOWS.get(position.kind)
        if flow is not None:
            with suppress(ValidationError):
                release(self.id, stores_of(flow.request.model_validate_json(position.request)))

    def retry(self, *, restart: bool = False) -> bool:
        """Continue a failed job with the units that did not finish.

        Return False if it starts from the beginning: because ``restart`` is set, because its work is no longer kept
        (``LAYERFARM_RETRY_FOR``), or because the tree has changed.

        Raises:
            JobNotFound: the record has expired.
            RequestError: the job has not failed.
        """
        store = self._farm.store
        error = self.record().error
        with reaching(self._farm.address):
            self._farm.sign_again(self.id)
            retried = store.retry(
                self.id, restart=restart or (error is not None and error.type == TreeChanged.__name__)
            )
            # No process works on the job: send all that is missing.
            self._farm.sender.send(store.look(self.id, -1).items, store.traffic(self.id))
        return not retried.restart

    def discard(self) -> bool:
        """Remove the work of a failed job that is kept for a retry. False: nothing is kept."""
        with reaching(self._farm.address):
            attempt = self._farm.store.discard(self.id)
            if attempt:
                self._farm.sender.send([Item(self.id, attempt, "close")])
        return attempt > 0


@contextmanager
def _leased(job_id: str, request: Request, seconds: float) -> Iterator[None]:
    """Take the lease of the job's inputs before it is queued; release it if that fails."""
    lease_inputs(job_id, request, seconds)
    try:
        yield
    except BaseException:
        release(job_id, stores_of(request))
        raise


def _checked(request: Request) -> str:
    """Return the request as JSON, validated once more: ``model_construct`` and ``model_copy`` check nothing.

    Raises:
        RequestError: it is invalid, too large, or cannot be written as JSON.
    """
    try:
        text = request.model_dump_json()
        type(request).model_validate_json(text)
    except ValidationError as error:
        raise RequestError(f"request is not valid: {first_error(error, type(request).__name__)}") from None
    except ValueError as error:
        raise RequestError(f"request cannot be written as JSON: {error}") from None
    if len(text) > LARGEST_REQUEST:
        raise RequestError(f"request has {len(text)} bytes, more than {LARGEST_REQUEST}")
    return text


def _result(record: JobRecord) -> Result:
    flow = FLOWS.get(record.kind)
    if flow is None or record.result is None:
        raise RequestError("results of this kind of job cannot be read here", where=record.kind)
    return flow.result.model_validate(record.result)
