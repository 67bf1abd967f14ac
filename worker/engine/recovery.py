"""Recovery: what is sent again, and why. The one place that decides it.

A worker whose host died, a Redis that was restarted without its newest writes, a process killed between its last
word to the job store and its first to the queue: each leaves a job that nobody works on. Every worker looks for such
jobs in turn, and so does every client that waits for one. A job in which nothing comes of it is looked at less and
less often (``jobstore/lua/look.lua``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
"""Seconds of silence after which a job is taken for stuck although messages, perhaps its own, are waiting."""

_log = structlog.get_logger()


class Backlog:
    """What waits on the farm's queues, and whose turn it is to look."""

    def __init__(self, client: redis.Redis, keys: Keys, queues: Queues) -> None:
        self._client = client
        self._keys = keys
        self._queues = queues

    def my_turn(self, seconds: float) -> bool:
        """Whether nobody else has looked for ``seconds``."""
        if self._client.set(self._keys.looking, "1", nx=True, px=int(seconds * 1000)):
            return True
        if self._client.pttl(self._keys.looking) == -1:
            # Nobody of ours has set it, and it would stand for ever.
            self._client.delete(self._keys.looking)
        return False

    def is_empty(self) -> bool:
        """No message waits."""
        return not self._waiting(*self._queues)

    def has_all_starts(self) -> bool:
        """Whether no job waits in vain for its beginning; a long queue is no reason to send its messages again."""
        return self._waiting(self._queues.start, self._queues.bulk_start) >= int(self._client.scard(self._keys.queued))

    def _waiting(self, *queues: str) -> int:
        return sum(int(self._client.llen(self._keys.broker + queue)) for queue in queues)


class Recovery:
    """Looks at jobs that have not ended.

    Parameters:
        every: seconds between two looks.
        longest: seconds that a job may take; 0: any number.
    """

    def __init__(
        self, store: JobStore, cache: ActionCache, sender: Sender, backlog: Backlog, every: float, longest: float = 0
    ) -> None:
        self._store = store
        self._cache = cache
        self._sender = sender
        self._backlog = backlog
        self._every = every
        self._longest = longest

    @classmethod
    def of(cls, client: redis.Redis, store: JobStore, sender: Sender, settings: Settings) -> Recovery:
        backlog = Backlog(client, Keys(settings.queue), settings.queues)
        return cls(store, ActionCache(client, settings), sender, backlog, settings.look_every, settings.job_time_limit)

    def look_at_all(self) -> None:
        """Look at every job, unless another worker did so just now."""
        if not self._backlog.my_turn(self._every * 0.9):
            return
        quiet, started = self._quiet(), self._backlog.has_all_starts()
        for job_id in self._store.active():
            self._look(job_id, quiet, started)
        self._sender.send(self._store.overdue())
        wake(self._sender, self._store, self._cache.abandoned())
        self._store.prune()

    def look_at(self, job_id: str) -> None:
        """Look at one job."""
        self._look(job_id, self._quiet(), self._backlog.has_all_starts())

    def take_over(self, job_id: str) -> None:
        """Send again at once what a process of this host had begun of the job, if that process is seen to be dead.

        The message of a step that is done comes again when the process dies that took it, which may have gone on with
        the job since.
        """
        dead = [owner for owner in self._store.holders(job_id) if owner.is_known_dead]
        if dead:
            items = self._store.hand_back(job_id, dead, counts=True).items
            _log.warning("sending again", job=job_id, why="process died", messages=len(items))
            self._sender.send(items, self._store.traffic(job_id))

    def _quiet(self) -> float:
        """With empty queues a job that nobody works on cannot be waiting for its turn."""
        return self._every if self._backlog.is_empty() else _BUSY_QUIET

    def _look(self, job_id: str, quiet: float, started: bool) -> None:
        with failing_if_damaged(self._store, self._sender, job_id):
            lost = self._store.look(job_id, quiet, started, self._longest)
            if lost.reason == "overtime":
                self._end(job_id, lost.attempt)
            elif lost.items:
                if lost.reason == MESSAGE_LOST:
                    # Sent again and again in vain it would be, were its record one in which nothing can be claimed.
                    fail_if_damaged(self._store, self._sender, job_id)
                _log.warning(
                    "sending again", job=job_id, why=lost.reason, what=lost.items[0].name, messages=len(lost.items)
                )
                self._sender.send(lost.items, self._store.traffic(job_id))

    def _end(self, job_id: str, attempt: int) -> None:
        error = LimitExceeded(f"job took longer than {self._longest:g} s", hint="see LAYERFARM_JOB_TIME_LIMIT")
        _log.warning("job failed", job=job_id, error=str(error))
        told = JobError(type=type(error).__name__, message=str(error))
        if self._store.end(job_id, JobState.FAILED, error=told, attempt=attempt).due:
            self._sender.send([Item(job_id, attempt, "close")])


@contextmanager
def failing_if_damaged(store: JobStore, sender: Sender, job_id: str) -> Iterator[None]:
    """Inside, something is done with the job; if its record turns out to be corrupt, that job fails, and no other."""
    try:
        yield
    except RecordDamaged as error:
        _log.error("could not read the record of the job", job=job_id, error=str(error))
        fail_if_damaged(store, sender, job_id)


def fail_if_damaged(store: JobStore, sender: Sender, job_id: str) -> None:
    """Let the job fail if its record is corrupt. The store alone decides that: a process that comes too late may not
    understand the record of a healthy job."""
    told = JobError(type=RecordDamaged.__name__, message="what Redis holds of the job makes no sense")
    attempt = store.condemn(job_id, told)
    if attempt:
        _log.error("record of the job is unsound, the job fails", job=job_id)
        sender.send([Item(job_id, attempt, "close")])
