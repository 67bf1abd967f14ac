"""The second look: messages that were lost are sent again.

A worker whose host died, a Redis that was restarted without its newest writes, a process killed
between its last word to the ledger and its first to the queue: each leaves a job that nobody works
on. Every worker looks for such jobs in turn, and so does every client that waits for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import redis
import structlog

from jobs.errors import JobNotFound, LimitExceeded
from worker.equal import Subscriber, Works
from worker.keys import BROKER_PREFIX, LOOKING, QUEUED
from worker.ledger import Ledger, Stuck
from worker.mending import mending
from worker.messages import Sender
from worker.progress import JobError, JobState
from worker.settings import Settings
from worker.traffic import Traffic

_BUSY_QUIET: Final = 300.0
"""Seconds of silence after which a job is taken for stuck although messages, perhaps its own, are waiting."""

_log = structlog.get_logger()


class Rescue:
    """Looks at jobs that have not ended."""

    def __init__(self, client: redis.Redis, ledger: Ledger, sender: Sender, settings: Settings) -> None:
        self._client = client
        self._ledger = ledger
        self._sender = sender
        self._works = Works(client, settings.lease, settings.result_expires)
        self._queues = settings.queues
        self._every = settings.look_every
        self._longest = settings.job_time_limit

    def look_at_all(self) -> None:
        """Look at every job, unless another worker did so just now."""
        if not self._client.set(LOOKING, "1", nx=True, px=int(self._every * 900)):
            return
        quiet, started = self._quiet(), self._all_have_messages()
        for job_id in self._ledger.active():
            self._look(job_id, quiet, started)
        for job_id in self._ledger.overdue():
            self._sender.close(job_id)
        wake(self._sender, self._ledger, self._works.abandoned())
        self._ledger.prune()

    def look_at(self, job_id: str) -> None:
        """Look at one job."""
        self._look(job_id, self._quiet(), self._all_have_messages())

    def _quiet(self) -> float:
        """With empty queues a job that nobody works on cannot be waiting for its turn."""
        return _BUSY_QUIET if self._waiting(*self._queues) else self._every

    def _all_have_messages(self) -> bool:
        """Whether no job waits in vain for its beginning; a long queue is no reason to send its messages again."""
        return self._waiting(self._queues.start, self._queues.bulk_start) >= int(self._client.scard(QUEUED))

    def _waiting(self, *queues: str) -> int:
        return sum(int(self._client.llen(BROKER_PREFIX + queue)) for queue in queues)

    def _look(self, job_id: str, quiet: float, started: bool) -> None:
        with mending(self._ledger, self._sender, job_id):
            self._send_what_is_lost(job_id, quiet, started)

    def _send_what_is_lost(self, job_id: str, quiet: float, started: bool) -> None:
        found = self._ledger.stuck(job_id, quiet, started, self._longest)
        if not found:
            return
        first = found[0]
        if first.what == "overtime":
            self._end(job_id)
            return
        _log.warning(
            "job was stuck, sending again", job=job_id, what=first.what, stage=first.stage, messages=len(found)
        )
        send_again(self._sender, job_id, found, self._ledger.traffic(job_id))

    def _end(self, job_id: str) -> None:
        error = LimitExceeded(f"job took longer than {self._longest:g} s", hint="see LAYERFARM_JOB_TIME_LIMIT")
        _log.warning("job failed", job=job_id, error=str(error))
        told = JobError(type=type(error).__name__, message=str(error))
        try:
            ended = self._ledger.end(job_id, JobState.FAILED, error=told)
        except JobNotFound:
            return
        if ended.due:
            self._sender.close(job_id)


def wake(sender: Sender, ledger: Ledger, waiting: Iterable[Subscriber]) -> None:
    """Send the units that waited for equal work."""
    for unit in waiting:
        sender.units(unit.job_id, unit.stage, [unit.index], ledger.traffic(unit.job_id))


def send_again(sender: Sender, job_id: str, found: Sequence[Stuck], traffic: Traffic) -> None:
    """Send the messages that were lost, or whose work was handed back."""
    for stuck in found:
        match stuck.what:
            case "unit":
                sender.units(job_id, stuck.stage, [stuck.index], traffic)
            case "advance" if stuck.stage < 0:
                sender.start(job_id, traffic)
            case "advance":
                sender.advance(job_id, stuck.stage)
            case "close":
                sender.close(job_id)
