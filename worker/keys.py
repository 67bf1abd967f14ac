"""The names of everything that layerfarm keeps in Redis, all below one prefix (so one ACL pattern covers it)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from jobs.errors import JobNotFound

PREFIX: Final = "layerfarm:"
ACTIVE: Final = PREFIX + "active"
"""Set of the ids of jobs that have not ended."""
JOBS: Final = PREFIX + "jobs"
"""Sorted set of job ids by the time they were submitted."""
WORKERS: Final = PREFIX + "workers"
"""Sorted set of worker names by the time at which their last word expires."""
QUEUED: Final = PREFIX + "queued"
"""Set of the ids of jobs that have not begun; what a full queue is measured by."""
TURNS: Final = PREFIX + "turns:"
"""With a traffic class: list of the submitters that have jobs waiting, in the order of their turns."""
WAITING: Final = PREFIX + "waiting:"
"""With ``<traffic class>:<submitter>``: list of that submitter's waiting jobs, the oldest first."""
KEPT: Final = PREFIX + "kept"
"""Sorted set of the failed jobs whose work is kept for a retry, by the time in ms at which it is removed."""
REFUSED: Final = PREFIX + "refused"
"""How many messages workers have refused because no client of theirs can have sent them."""
LOOKING: Final = PREFIX + "looking"
"""Held by the worker that looks for stuck jobs."""
NONCE: Final = PREFIX + "nonce:"
"""With the nonce of a signed request: the job that begins by it, or ``spent``, until the signature expires."""
PROBE: Final = PREFIX + "probe"
"""What ``layerfarm doctor`` asks the workers; with ``:<name>`` their answers."""
BROKER_PREFIX: Final = PREFIX + "broker:"
"""What Celery keeps: queues, bindings, unacknowledged messages."""

_JOB_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,62}")


def worker_key(name: str) -> str:
    """The last word of a worker."""
    return f"{PREFIX}worker:{name}"


class JobKeys(NamedTuple):
    """The keys of one job, in the order in which ``worker.scripts`` takes them."""

    job: str
    claims: str
    events: str
    units: str
    active: str

    @classmethod
    def of(cls, job_id: str) -> JobKeys:
        """
        Raises:
            JobNotFound: no job can have this id.
        """
        if not _JOB_ID.fullmatch(job_id):
            raise JobNotFound("not the id of a job", where=job_id[:100])
        job = f"{PREFIX}job:{job_id}"
        return cls(job, f"{job}:claims", f"{job}:events", f"{job}:units", ACTIVE)
