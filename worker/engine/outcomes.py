"""Outcomes of jobs: errors in the form of the record, and a journal beside the store.

The journal (``layerfarm.jobs.store.retention``) is read when Redis has lost the outcome of a job.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import ValidationError

from layerfarm.jobs.errors import LayerfarmError, LimitExceeded, display
from layerfarm.jobs.flows.base import Policy, Request
from layerfarm.jobs.flows.inputs import stores_of
from layerfarm.jobs.store.retention import read_ending, write_ending
from layerfarm.worker.model import Ending, JobError

_log = structlog.get_logger()


def describe(error: Exception) -> JobError:
    """Convert ``error`` for the record; only layerfarm's own errors are written for users."""
    if isinstance(error, SoftTimeLimitExceeded):
        error = LimitExceeded("unit exceeded its time limit", hint="see LAYERFARM_UNIT_TIME_LIMIT")
    if isinstance(error, MemoryError):
        error = LimitExceeded("unit ran out of memory", hint="see LAYERFARM_UNIT_MEMORY_LIMIT")
    kind = type(error).__name__
    if isinstance(error, LayerfarmError):
        _log.warning("job failed", error=str(error), type=kind)
        return JobError(type=kind, message=str(error))
    if isinstance(error, OSError) and error.strerror:
        # The system's own text (disk full, no permission) is what the user needs; the path is no secret either.
        _log.warning("job failed", exc_info=error)
        where = "" if error.filename is None else f": {display(error.filename)}"
        return JobError(type=kind, message=f"{error.strerror}{where}")
    _log.error("job failed by an unexpected error", exc_info=error)
    return JobError(type=kind, message=f"internal error ({kind}), see the worker's log")


class Journal:
    """Outcomes in the stores that this worker may use."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def remember(self, job_id: str, request: Request, ending: Ending) -> None:
        """Write the outcome; a store that cannot be written is only logged."""
        for store in self._store_of(request):
            try:
                write_ending(store, job_id, ending.model_dump_json())
            except (LayerfarmError, OSError) as error:
                _log.warning("outcome of the job could not be recorded", error=str(error))

    def recall(self, job_id: str, request: Request, retries: int) -> Ending | None:
        """Return the outcome of this try of the job; None: not known to have ended."""
        for store in self._store_of(request):
            with suppress(LayerfarmError, OSError, ValidationError):
                text = read_ending(store, job_id)
                ending = None if text is None else Ending.model_validate_json(text)
                if ending is not None and ending.retries == retries:
                    return ending
        return None

    def _store_of(self, request: Request) -> list[Path]:
        """Return one of the request's stores, the same each time; none if it names none."""
        return stores_of(request, self._policy)[:1]
