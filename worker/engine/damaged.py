"""A job whose record makes no sense, because somebody edited it in Redis: it fails, and nothing else does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import redis
import structlog

from layerfarm.jobs.errors import RecordDamaged
from layerfarm.worker.broker.messages import Sender
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.model import JobError

_NONSENSE: Final = re.compile(r"\bWRONGTYPE\b|user_script:\d+: (attempt to|bad argument)|hash value is not an? ")
"""What Redis says when a script of ours meets what no script of ours has written."""

_log = structlog.get_logger()


def is_nonsense(error: Exception) -> bool:
    """Whether the error is of a record that was edited, and not of a Redis in trouble."""
    return isinstance(error, RecordDamaged) or (
        isinstance(error, redis.ResponseError) and bool(_NONSENSE.search(str(error)))
    )


@contextmanager
def mending(store: JobStore, sender: Sender, job_id: str) -> Iterator[None]:
    """Inside, something is done with the job. Should its record be unsound, the job fails, and is cleaned up.

    Redis in trouble, and whatever else, is the caller's affair.
    """
    try:
        yield
    except (redis.ResponseError, RecordDamaged) as error:
        if not is_nonsense(error):
            raise
        _log.error("could not read the record of the job", job=job_id, error=str(error))
        end_if_unsound(store, sender, job_id)


def end_if_unsound(store: JobStore, sender: Sender, job_id: str) -> None:
    """Let the job fail if its record is unsound, which the store alone decides.

    Whoever comes too late may read what it does not understand, of a job that is well.
    """
    told = JobError(type=RecordDamaged.__name__, message="what Redis holds of the job makes no sense")
    attempt = store.condemn(job_id, told)
    if attempt:
        _log.error("record of the job is unsound, the job fails", job=job_id)
        sender.send([Item(job_id, attempt, "close")])
