"""Shutdown of a worker: running units may end within a grace period, and are then handed back to the farm."""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import redis
import structlog
from kombu.exceptions import OperationalError

from layerfarm.worker.broker.messages import Sender
from layerfarm.worker.engine.recovery import failing_if_damaged
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.owner import Owner, owner_of

_NOTICE: Final = 5.0
"""Seconds after the grace period for units to stop, remove what they have staged, and release their claims."""

BEGUN: Final = 1
"""First byte of the memory that a worker shares with its pool: a stop was requested."""
HANDING_BACK: Final = 2
"""The same: units are handed back now."""

_log = structlog.get_logger()


@dataclass
class Drain:
    """Stops the worker in bounded time without losing a unit.

    Celery lets running tasks end and takes no new ones. After ``grace`` seconds the units are told to stop, which they
    do at their next progress, and go back to the queue. A unit that does not respond is killed with its process and
    handed back; the try is not counted. Celery's own soft shutdown kills units before they can remove what they have
    staged, lets their claims expire, and counts the try.
    """

    grace: float
    shared: mmap.mmap
    """Memory that the pool sees too."""
    store: JobStore
    sender: Sender
    pool: Callable[[], Sequence[int]]
    """The pids of the pool's processes."""
    _thread: threading.Thread | None = None

    def begin(self, **_: object) -> None:
        if self._thread is None:
            _log.info("worker stops", grace=self.grace)
            self.shared[0] = BEGUN
            self._thread = threading.Thread(target=self._run, daemon=True, name="layerfarm-drain")
            self._thread.start()

    def _run(self) -> None:
        time.sleep(self.grace)
        _log.info("handing back running units")
        self.shared[0] = HANDING_BACK
        # If all of them respond, the process ends meanwhile, and this thread with it.
        time.sleep(_NOTICE)
        owners = [owner_of(pid) for pid in self.pool()]
        for owner in owners:
            with suppress(ProcessLookupError):
                os.kill(owner.pid, signal.SIGKILL)
        try:
            self._hand_back(owners)
        except (redis.RedisError, OperationalError) as error:
            # Then the claims expire, and another worker takes over.
            _log.warning("units could not be handed back", error=str(error))
        # Celery would wait for the killed processes.
        os._exit(0)

    def _hand_back(self, owners: Sequence[Owner]) -> None:
        for job_id in self.store.active():
            with failing_if_damaged(self.store, self.sender, job_id):
                found = self.store.hand_back(job_id, owners).items
                if found:
                    _log.warning("handed back", job=job_id, items=len(found))
                    self.sender.send(found, self.store.traffic(job_id))
