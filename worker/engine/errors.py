"""Why a job failed, as its record tells it."""

from __future__ import annotations

import structlog
from celery.exceptions import SoftTimeLimitExceeded
from pydantic import ValidationError

from layerfarm.jobs.errors import FarmError, LayerfarmError, LimitExceeded, RequestError, display
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.model import JobError

_log = structlog.get_logger()


def describe(error: Exception) -> JobError:
    """What the record says of ``error``; only layerfarm's own errors are written to be read by users."""
    if isinstance(error, SoftTimeLimitExceeded):
        error = LimitExceeded("unit took longer than a unit may", hint="see LAYERFARM_UNIT_TIME_LIMIT")
    if isinstance(error, MemoryError):
        error = LimitExceeded("unit needs more memory than there is", hint="see LAYERFARM_UNIT_MEMORY_LIMIT")
    if isinstance(error, LayerfarmError):
        _log.warning("job failed", error=str(error), type=type(error).__name__)
        return JobError(type=type(error).__name__, message=str(error))
    if isinstance(error, OSError) and error.strerror:
        # The system's own word (disk full, no permission) is what the user needs; where is no secret either.
        _log.warning("job failed", exc_info=error)
        where = "" if error.filename is None else f": {display(error.filename)}"
        return JobError(type=type(error).__name__, message=f"{error.strerror}{where}")
    _log.error("job failed by an unexpected error", exc_info=error)
    return JobError(type=type(error).__name__, message=f"internal error ({type(error).__name__}), see the worker's log")


def invalid_request(kind: str, error: ValidationError) -> RequestError:
    """One line of what pydantic found."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "request"
    return RequestError(f"not a valid {kind} request: {field}: {first['msg'].removeprefix('Value error, ')}")


def poisonous(item: Item) -> FarmError:
    what = f"unit {item.index} of" if item.what == "unit" else "joining"
    return FarmError(f"{what} stage {item.stage + 1} killed its worker process each time it was tried")
