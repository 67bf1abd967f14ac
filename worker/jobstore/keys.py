"""The names of all keys of layerfarm in Redis, below one prefix for each farm, so one ACL pattern covers it."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from layerfarm.jobs.errors import JobNotFound

_JOB_ID: Final = re.compile(r"[0-9a-z][0-9a-z-]{0,62}")


class JobKeys(NamedTuple):
    """The keys of one job, in the order in which every script takes them (``lua/job.lua``)."""

    job: str
    claims: str
    events: str
    units: str
    active: str


class Keys:
    """The keys of the farm named ``farm`` (``LAYERFARM_QUEUE``); two farms in one Redis share none."""

    def __init__(self, farm: str = "layerfarm") -> None:
        self.prefix: Final = f"{farm}:"
        self.active: Final = self.prefix + "active"
        """Set of the ids of jobs that have not ended."""
        self.jobs: Final = self.prefix + "jobs"
        """Sorted set of job ids by the time they were submitted."""
        self.workers: Final = self.prefix + "workers"
        """Sorted set of worker names by the time at which their entry expires."""
        self.queued: Final = self.prefix + "queued"
        """Set of the ids of jobs that have not begun; its size is compared with the limit of the queue."""
        self.turns: Final = self.prefix + "turns:"
        """With a traffic class: list of the submitters with waiting jobs, in the order of their turns."""
        self.waiting: Final = self.prefix + "waiting:"
        """With ``<traffic class>:<submitter>``: list of that submitter's waiting jobs, the oldest first."""
        self.kept: Final = self.prefix + "kept"
        """Sorted set of ended jobs whose kept work must be removed, by the time of removal in ms."""
        self.refused: Final = self.prefix + "refused"
        """Number of messages that workers refused because no layerfarm client can have sent them."""
        self.looking: Final = self.prefix + "looking"
        """Held by the worker that looks for lost jobs."""
        self.seen: Final = self.prefix + "seen"
        """Hash of times in ms: the last search for lost jobs, begin and end of the last silence between two."""
        self.nonce: Final = self.prefix + "nonce:"
        """With the nonce of a signed request: the job that begins by it, or ``spent``, until the signature expires."""
        self.probe: Final = self.prefix + "probe"
        """Question of ``layerfarm doctor`` to the workers; with ``:<name>`` their answers."""
        self.works: Final = self.prefix + "works"
        """Set of the names of equal work in progress."""
        self.work: Final = self.prefix + "work:"
        """With such a name: its claim or its result; with ``:waiting`` its subscribers."""
        self.broker: Final = self.prefix + "broker:"
        """Celery's own: queues, bindings, unacknowledged messages."""

    def worker(self, name: str) -> str:
        """Return the key of a worker's entry."""
        return f"{self.prefix}worker:{name}"

    def job(self, job_id: str) -> JobKeys:
        """Return the keys of a job.

        Raises:
            JobNotFound: the id is malformed.
        """
        if not is_job_id(job_id):
            raise JobNotFound("not the id of a job", where=job_id[:100])
        job = f"{self.prefix}job:{job_id}"
        return JobKeys(job, f"{job}:claims", f"{job}:events", f"{job}:units", self.active)


def is_job_id(text: str) -> bool:
    return _JOB_ID.fullmatch(text) is not None
