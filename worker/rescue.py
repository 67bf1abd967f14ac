"""The second look: messages that were lost are sent again.

A worker whose host died, a Redis that was restarted without its newest writes, a process killed
between its last word to the ledger and its first to the queue: each leaves a job that nobody works
on. Every worker looks for such jobs in turn, and so does every client that waits for one.
"""

from __future__ import annotations

from typing import Final

import redis
import structlog

from worker.keys import BROKER_PREFIX, LOOKING
from worker.ledger import Ledger
from worker.messages import Sender
from worker.settings import Settings

_BUSY_QUIET: Final = 300.0
"""Seconds of silence after which a job is taken for stuck although messages, perhaps its own, are waiting."""

_log = structlog.get_logger()


class Rescue:
    """Looks at jobs that have not ended."""

    def __init__(self, client: redis.Redis, ledger: Ledger, sender: Sender, settings: Settings) -> None:
        self._client = client
        self._ledger = ledger
        self._sender = sender
        self._queues = [BROKER_PREFIX + settings.control_queue, BROKER_PREFIX + settings.unit_queue]
        self._every = settings.look_every

    def look_at_all(self) -> None:
        """Look at every job, unless another worker did so just now."""
        if not self._client.set(LOOKING, "1", nx=True, px=int(self._every * 900)):
            return
        quiet = self._quiet()
        for job_id in self._ledger.active():
            self._look(job_id, quiet)

    def look_at(self, job_id: str) -> None:
        """Look at one job."""
        self._look(job_id, self._quiet())

    def _quiet(self) -> float:
        """With empty queues a job that nobody works on cannot be waiting for its turn."""
        waiting = sum(int(self._client.llen(queue)) for queue in self._queues)
        return _BUSY_QUIET if waiting else self._every

    def _look(self, job_id: str, quiet: float) -> None:
        found = self._ledger.stuck(job_id, quiet)
        if not found:
            return
        first = found[0]
        _log.warning(
            "job was stuck, sending again", job=job_id, what=first.what, stage=first.stage, messages=len(found)
        )
        for stuck in found:
            match stuck.what:
                case "unit":
                    self._sender.units(job_id, stuck.stage, [stuck.index])
                case "advance":
                    self._sender.advance(job_id, stuck.stage)
                case "close":
                    self._sender.close(job_id)
