"""Checks of a job before a worker's process runs a part of it: the record may come from anyone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from layerfarm.jobs.errors import LimitExceeded, RequestError, Untrusted
from layerfarm.jobs.flows import FLOWS
from layerfarm.jobs.flows.base import FORMAT, Flow, Request, Unit
from layerfarm.jobs.store.validation import first_error
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.model import LARGEST_REQUEST, JobView
from layerfarm.worker.security.signing import Keyring, Signed


@dataclass(frozen=True)
class Admission:
    """The rules of one worker."""

    store: JobStore
    keyring: Keyring | None = None
    """None: requests need no signature."""
    job_bytes: int = 0
    """Bytes that a job may read and write; 0: any number."""

    def flow(self, job_id: str, job: JobView, *, of_any_format: bool = False) -> tuple[Flow[Any], Request]:
        """Return the flow and the request of a job, both checked: the record may come from anyone.

        Raises:
            RequestError: this worker does not know the kind or the format, or the request is not valid.
            Untrusted: requests must be signed, and this one is not, or was altered.
        """
        if not FORMAT - 1 <= job.format <= FORMAT and not of_any_format:
            raise RequestError(
                f"job has format {job.format}, this worker reads {FORMAT - 1} and {FORMAT}",
                hint="workers must have the client's version or the next one, see docs/operating.md#upgrades",
            )
        if self.keyring is not None:
            signed = Signed(job_id, job.kind, job.traffic, job.submitter, job.format, job.request)
            self.keyring.check(signed, job.signature)
        if len(job.request) > LARGEST_REQUEST:
            raise RequestError(f"request has {len(job.request)} characters, more than {LARGEST_REQUEST}")
        flow = FLOWS.get(job.kind)
        if flow is None:
            raise RequestError("this worker does not know the kind of job", where=job.kind)
        try:
            return flow, _parsed(flow.request, job.request)
        except ValidationError as error:
            raise RequestError(f"not a valid {job.kind} request: {first_error(error, 'request')}") from None

    def begin(self, job_id: str, job: JobView) -> None:
        """Check and spend the signature of a job that begins.

        Raises:
            Untrusted: requests must be signed, and the signature is out of date or was used before.
        """
        if self.keyring is None:
            return
        now, fresh = self.store.admit(job_id)
        self.keyring.check_time(job.signature, now)
        if not fresh:
            raise Untrusted("signature of the request was used before", hint="submit it again")

    def check_bytes(self, job: JobView, units: Sequence[Unit]) -> None:
        """Check the bytes of a stage that is to be opened.

        Raises:
            LimitExceeded: with it, the job would read and write more than allowed.
        """
        planned = job.bytes_planned + sum(unit.bytes for unit in units)
        if self.job_bytes and planned > self.job_bytes:
            hint = "see LAYERFARM_JOB_BYTES_LIMIT"
            raise LimitExceeded(f"job would read and write {planned} bytes, more than {self.job_bytes}", hint=hint)


@lru_cache(maxsize=4)
def _parsed(kind: type[Request], request: str) -> Request:
    """Parse a request; each step of a job needs it."""
    return kind.model_validate_json(request)
