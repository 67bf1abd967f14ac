"""Recovery: the only place that decides which messages are sent again, and why.

A host that dies, a Redis restarted without its newest writes, or a process killed before it sends the next message
leaves a job without a message. Workers take turns looking for such jobs, and so does every client that waits for
one. The pause grows after each attempt in vain (``jobstore/lua/look.lua``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import redis
import structlog

from layerfarm.jobs.errors import LimitExceeded, RecordDamaged
from layerfarm.worker.broker.messages import Sender
from layerfarm.worker.broker.priorities import Queues
from layerfarm.worker.engine.single_flight import ActionCache, wake
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.keys import Keys
from layerfarm.worker.jobstore.model import MESSAGE_LOST, Item
from layerfarm.worker.model import JobError, JobState
from layerfarm.worker.settings import Settings

_BUSY_QUIET: Final = 300.0
"""Seconds of silence after which a job is stuck although messages, perhaps its own, are waiting."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Backlog:
    """Messages waiting on the farm's queues, and the turn to look."""

    client: redis.Redis
    keys: Keys
    queues: Queues

    def my_turn(self, seconds: float) -> bool:
        """Return True if no other worker has looked for ``seconds``."""
        if self.client.set(self.keys.looking, "1", nx=True, px=int(seconds * 1000)):
            return True
        if self.client.pttl(self.keys.looking) == -1:
            # Not set by layerfarm; it would never expire.
            self.client.delete(self.keys.looking)
        return False

    def is_empty(self) -> bool:
        return not self._waiting(*self.queues)

    def has_all_starts(self) -> bool:
        """Return True if every queued job has its first message; a long queue is no reason to send them again."""
        return self._waiting(self.queues.start, self.queues.bulk_start) >= int(self.client.scard(self.keys.queued))

    def _waiting(self, *queues: str) -> int:
        return sum(int(self.client.llen(self.keys.broker + queue)) for queue in queues)


@dataclass(frozen=True)
class Recovery:
    """Looks at jobs that have not ended."""

    store: JobStore
    cache: ActionCache
    sender: Sender
    backlog: Backlog
    every: float
    """Seconds between two looks."""
    longest: float = 0
    """Seconds that a job may take; 0: any number."""

    @classmethod
    def of(cls, client: redis.Redis, store: JobStore, sender: Sender, settings: Settings) -> Recovery:
        backlog = Backlog(client, Keys(settings.queue), settings.queues)
        return cls(store, ActionCache(client, settings), sender, backlog, settings.look_every, settings.job_time_limit)

    def look_at_all(self) -> None:
        """Look at every job, unless another worker did so just now."""
        if not self.backlog.my_turn(self.every * 0.9):
            return
        quiet, started = self._quiet(), self.backlog.has_all_starts()
        # A job that has its first message needs no look, and most jobs of a long queue have only that.
        for job_id in self.store.active(begun=started):
            self._look(job_id, quiet, started)
        self.sender.send(self.store.overdue())
        wake(self.sender, self.store, self.cache.abandoned())
        self.store.prune()

    def look_at(self, job_id: str) -> None:
        self._look(job_id, self._quiet(), self.backlog.has_all_starts())

    def take_over(self, job_id: str) -> None:
        """Send again at once what a process of this host had begun of the job, if that process is known to be dead.

        The message of a finished step is delivered again when the process that took it dies; it may have continued with
        the job since.
        """
        dead = [owner for owner in self.store.holders(job_id) if owner.is_known_dead]
        if dead:
            items = self.store.hand_back(job_id, dead, counts=True).items
            _log.warning("sending again", job=job_id, why="process died", messages=len(items))
            self.sender.send(items, self.store.traffic(job_id))

    def _quiet(self) -> float:
        """Return the seconds of silence after which a job is stuck: with empty queues it is not waiting for a turn."""
        return self.every if self.backlog.is_empty() else _BUSY_QUIET

    def _look(self, job_id: str, quiet: float, started: bool) -> None:
        with failing_if_damaged(self.store, self.sender, job_id):
            lost = self.store.look(job_id, quiet, started, self.longest)
            if lost.reason == "overtime":
                self._end(job_id, lost.attempt)
            elif lost.items:
                if lost.reason == MESSAGE_LOST:
                    # Without this, a record in which nothing can be claimed would be sent again for ever.
                    fail_if_damaged(self.store, self.sender, job_id)
                _log.warning(
                    "sending again", job=job_id, why=lost.reason, what=lost.items[0].name, messages=len(lost.items)
                )
                self.sender.send(lost.items, self.store.traffic(job_id))

    def _end(self, job_id: str, attempt: int) -> None:
        error = LimitExceeded(f"job took longer than {self.longest:g} s", hint="see LAYERFARM_JOB_TIME_LIMIT")
        _log.warning("job failed", job=job_id, error=str(error))
        told = JobError(type=type(error).__name__, message=str(error))
        if self.store.end(job_id, JobState.FAILED, error=told, attempt=attempt).due:
            self.sender.send([Item(job_id, attempt, "close")])


@contextmanager
def failing_if_damaged(store: JobStore, sender: Sender, job_id: str) -> Iterator[None]:
    """Fail a job whose record turns out to be corrupt inside the block, and no other."""
    try:
        yield
    except RecordDamaged as error:
        _log.error("record of the job could not be read", job=job_id, error=str(error))
        fail_if_damaged(store, sender, job_id)


def fail_if_damaged(store: JobStore, sender: Sender, job_id: str) -> None:
    """Fail the job if its record is corrupt. Only the store decides that: a process that comes too late may not
    understand the record of a healthy job.
    """
    told = JobError(type=RecordDamaged.__name__, message="the job's record in Redis is corrupt")
    attempt = store.condemn(job_id, told)
    if attempt:
        _log.error("record of the job is corrupt, failing the job", job=job_id)
        sender.send([Item(job_id, attempt, "close")])
