"""A job whose record makes no sense, because somebody edited it in Redis: it fails, and nothing else does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
import structlog

from jobs.errors import RecordDamaged
from worker.ledger import Ledger
from worker.messages import Sender
from worker.progress import JobError

_NONSENSE: Final = re.compile(r"\bWRONGTYPE\b|user_script:\d+: (attempt to|bad argument)|hash value is not an? ")
"""What Redis says when a script of ours meets what no script of ours has written."""

_log = structlog.get_logger()


def is_nonsense(error: Exception) -> bool:
    """Whether the error is of a record that was edited, and not of a Redis in trouble."""
    return isinstance(error, RecordDamaged) or (
        isinstance(error, redis.ResponseError) and bool(_NONSENSE.search(str(error)))
    )


@contextmanager
def mending(ledger: Ledger, sender: Sender, job_id: str) -> Iterator[None]:
    """Inside, something is done with the job. Should its record make no sense, the job fails, and is cleaned up.

    Redis in trouble, and whatever else, is the caller's affair.
    """
    try:
        yield
    except (redis.ResponseError, RecordDamaged) as error:
        if not is_nonsense(error):
            raise
        _log.error("record of the job makes no sense, the job fails", job=job_id, error=str(error))
        told = JobError(type=RecordDamaged.__name__, message="what Redis holds of the job makes no sense")
        if ledger.condemn(job_id, told):
            sender.close(job_id)
