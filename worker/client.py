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

import redis
from pydantic import ValidationError

from jobs.errors import (
    FarmFull,
    JobCancelled,
    JobFailed,
    RequestError,
    TreeChanged,
)
from jobs.flows import FLOWS, flow_of
from jobs.flows.base import Request, Result
from jobs.flows.inputs import lease_inputs, release, stores_of
from worker.address import Address
from worker.census import Census, census
from worker.connection import connect, reaching
from worker.ledger import FORMAT, Ledger
from worker.liveness import WorkerInfo, workers
from worker.progress import JobRecord, JobState, Progress
from worker.settings import Settings, load_settings
from worker.signing import Signed, read_keys, sign
from worker.traffic import Traffic
from worker.watching import Watch

if TYPE_CHECKING:
    from celery import Celery

    from worker.messages import Sender
    from worker.rescue import Rescue

LARGEST_REQUEST: Final = 64 * 1024
"""Bytes of JSON."""
_ROOM: Final = 0.25
"""Seconds between two looks of a submitter for room in a full queue."""


class Farm:
    """The jobs and workers behind one Redis.

    Parameters:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``; default: ``LAYERFARM_FARM``.
        settings: instead of those in the environment.

    Raises:
        FarmUnreachable: Redis does not answer within 5 seconds.
        RequestError: no farm is configured, or not by an address.
    """

    def __init__(self, url: str | None = None, settings: Settings | None = None) -> None:
        settings = settings or load_settings()
        if url is not None:
            settings = settings.model_copy(update={"farm": load_settings(farm=url).farm})
        self._settings = settings
        self._address = settings.address
        self._client = connect(self._address)
        self._ledger = Ledger(self._client, settings.job_expires, settings.result_expires)

    def __enter__(self) -> Farm:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()
        if "_app" in self.__dict__:
            self._app.close()

    @property
    def address(self) -> Address:
        return self._address

    def census(self) -> Census:
        """What the farm is doing now: queues, workers, jobs that have not ended."""
        with reaching(self._address):
            return census(self._client, self._settings.queues)

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
            submitter: in whose name; default: ``LAYERFARM_SUBMITTER``, else ``user@host``.
            block: wait until the farm has room, at most ``timeout`` seconds.

        Raises:
            RequestError: the request is not valid or too large, or the key to sign it with cannot be used.
            FarmFull: ``LAYERFARM_MOST_QUEUED`` jobs wait already.
            FarmUnreachable: Redis went away; the job is not queued.
        """
        flow = flow_of(request)
        text = _checked(request)
        settings = self._settings
        if submitter is not None:
            settings = settings.model_copy(update={"submitter": load_settings(submitter=submitter).submitter})
        traffic = traffic or settings.traffic
        job_id = secrets.token_hex(6)
        deadline = None if timeout is None else time.monotonic() + timeout
        with reaching(self._address), _leased(job_id, request, settings.job_expires):
            signature = self._sign(job_id, flow.name, text, traffic, settings.submitter)
            while not self._ledger.submit(
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
                        f"{settings.most_queued} jobs wait for their beginning already",
                        where=self._address.masked,
                        hint="try again later, or see docs/operating.md#who-comes-first",
                    )
                time.sleep(_ROOM)
            try:
                self.sender.start(job_id, traffic)
            except BaseException:
                self._ledger.forget(job_id)
                raise
        return Job(self, job_id)

    def sign_again(self, job_id: str) -> None:
        """Let a job that this submitter signed begin once more; one of another submitter is left as it is."""
        position = self._ledger.position(job_id)
        if position.submitter == self._settings.submitter:
            signature = self._sign(job_id, position.kind, position.request, position.traffic, position.submitter)
            if signature:
                self._ledger.sign(job_id, signature)

    def _sign(self, job_id: str, kind: str, request: str, traffic: Traffic, submitter: str) -> str:
        if self._settings.key_file is None:
            return ""
        signed = Signed(job_id, kind, traffic, submitter, FORMAT, request)
        expires = self._ledger.now() + int(self._settings.signature_valid * 1000)
        return sign(read_keys(self._settings.key_file)[0], signed, expires)

    def job(self, job_id: str) -> Job:
        """A job that was submitted earlier, by whomever.

        Raises:
            JobNotFound: there never was such a job, or its record has expired.
        """
        with reaching(self._address):
            self._ledger.record(job_id)
        return Job(self, job_id)

    def jobs(self, limit: int = 1000) -> list[JobRecord]:
        """The newest jobs, newest first."""
        with reaching(self._address):
            return list(self._ledger.records(limit))

    def workers(self) -> list[WorkerInfo]:
        """The workers that are listening now."""
        with reaching(self._address):
            return workers(self._client)

    def ping(self) -> float:
        """Seconds that Redis takes to answer."""
        begun = time.monotonic()
        with reaching(self._address):
            self._client.ping()
        return time.monotonic() - begun

    @property
    def client(self) -> redis.Redis:
        """The connection to the farm's Redis."""
        return self._client

    # --- what the jobs of this farm use; Celery is imported only when a message is to be sent ---------

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    @cached_property
    def sender(self) -> Sender:
        from worker.messages import Sender

        return Sender(self._app, self._settings)

    @cached_property
    def rescue(self) -> Rescue:
        from worker.rescue import Rescue

        return Rescue(self._client, self._ledger, self.sender, self._settings)

    @property
    def look_every(self) -> float:
        return self._settings.look_every

    @cached_property
    def _app(self) -> Celery:
        from worker.app import make_app

        return make_app(self._settings)


class Job:
    """One job on a farm."""

    def __init__(self, farm: Farm, job_id: str) -> None:
        self._farm = farm
        self.id = job_id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def record(self) -> JobRecord:
        """What the farm knows of the job now.

        Raises:
            JobNotFound: the record has expired.
        """
        with reaching(self._farm.address):
            return self._farm.ledger.record(self.id)

    def watch(self) -> Iterator[Progress]:
        """The job's progress as it happens, to its final state.

        A progress with a ``notice`` tells why nothing happens: no worker is listening, or Redis is away.

        Raises:
            JobNotFound: the record has expired.
            FarmUnreachable: Redis was away for two minutes.
        """
        return Watch(self._farm, self.id, None).run()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end of the job, at most ``timeout`` seconds.

        Raises:
            JobFailed: with the message of the error, and its type in ``error_type``.
            JobCancelled: it was cancelled.
            JobTimeout: it has not ended yet; it goes on.
            JobNotFound: the record has expired.
        """
        for _ in Watch(self._farm, self.id, timeout).run():
            pass
        record = self.record()
        if record.state is JobState.CANCELLED:
            raise JobCancelled("job was cancelled", where=self.id)
        if record.state is JobState.FAILED:
            message = record.error.message if record.error else "job failed"
            raise JobFailed(message, error_type=record.error.type if record.error else None)
        return _result(record)

    def cancel(self) -> bool:
        """End the job: running units stop within about 2 seconds, then what they left is removed.

        False: it has ended, or is being ended already.

        Raises:
            JobNotFound: the record has expired.
        """
        with reaching(self._farm.address):
            ended = self._farm.ledger.end(self.id, JobState.CANCELLED)
            if ended.due:
                self._farm.sender.close(self.id)
            elif ended.accepted and self._farm.ledger.record(self.id).state.final:
                # It never began, so no worker will come to what was held for it.
                self._release()
        return ended.accepted

    def _release(self) -> None:
        position = self._farm.ledger.position(self.id)
        flow = FLOWS.get(position.kind)
        if flow is not None:
            with suppress(ValidationError):
                release(self.id, stores_of(flow.request.model_validate_json(position.request)))

    def retry(self, *, anew: bool = False) -> bool:
        """Let the job, which failed, go on with the units that did not finish; nothing else runs again.

        False: it begins anew, because that is asked for, because its work is not kept any more
        (``LAYERFARM_RETRY_FOR``), or because the tree changed under it: then its work is of no use.

        Raises:
            JobNotFound: the record has expired.
            RequestError: the job has not failed.
        """
        from worker.rescue import send_again

        ledger = self._farm.ledger
        error = self.record().error
        with reaching(self._farm.address):
            self._farm.sign_again(self.id)
            goes_on = ledger.retry(self.id, anew=anew or (error is not None and error.type == TreeChanged.__name__))
            # Nobody works on the job, so all that it lacks is to be sent.
            send_again(self._farm.sender, self.id, ledger.stuck(self.id, -1), ledger.traffic(self.id))
        return goes_on

    def discard(self) -> bool:
        """Remove what is kept of the job, which failed, for a retry. False: nothing is."""
        with reaching(self._farm.address):
            discarded = self._farm.ledger.discard(self.id)
            if discarded:
                self._farm.sender.close(self.id)
        return discarded


@contextmanager
def _leased(job_id: str, request: Request, seconds: float) -> Iterator[None]:
    """What the job reads is held from before it is queued; if it is not queued after all, no more."""
    lease_inputs(job_id, request, seconds)
    try:
        yield
    except BaseException:
        release(job_id, stores_of(request))
        raise


def _checked(request: Request) -> str:
    """The request as JSON, validated once more: ``model_construct`` and ``model_copy`` check nothing.

    Raises:
        RequestError: it is not valid, too large, or holds what JSON cannot.
    """
    try:
        text = request.model_dump_json()
        type(request).model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or type(request).__name__
        raise RequestError(f"request is not valid: {field}: {first['msg']}") from None
    except ValueError as error:
        raise RequestError(f"request cannot be written as JSON: {error}") from None
    if len(text) > LARGEST_REQUEST:
        raise RequestError(f"request has {len(text)} bytes, more than {LARGEST_REQUEST}")
    return text


def _result(record: JobRecord) -> Result:
    flow = FLOWS.get(record.kind)
    if flow is None or record.result is None:
        raise RequestError("the result of a job of this kind cannot be read here", where=record.kind)
    return flow.result.model_validate(record.result)
