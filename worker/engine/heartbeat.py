"""Heartbeat of a worker process: renews its claims, reports progress, detects cancellation.

A thread does that, so ``Observer.advanced`` costs a unit only an addition, and a silent unit keeps its claim.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from layerfarm.jobs.errors import JobCancelled
from layerfarm.worker.engine.failpoints import reached
from layerfarm.worker.engine.hooks import Outcome
from layerfarm.worker.jobstore.interface import JobStore
from layerfarm.worker.jobstore.model import Claim, Status

INTERVAL: Final = 0.5
"""Seconds between two beats: the longest delay until a unit learns that it must stop."""

_log = structlog.get_logger()


class HandedBack(JobCancelled):
    """The worker is stopping: the unit goes back to the farm."""


class Watched:
    """The observer of one claimed piece of work."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.nbytes = 0
        """Bytes done so far."""
        self._stop: Exception | None = None
        self._kept: Callable[[], object] | None = None

    def keeps(self, beat: Callable[[], object] | None) -> None:
        """Call ``beat`` at every beat too, to keep another resource for as long as this work lasts."""
        self._kept = beat

    def advanced(self, nbytes: int) -> None:
        reached("unit.working")
        self.nbytes += nbytes
        if self._stop is not None:
            raise self._stop

    def tell(self, store: JobStore) -> None:
        """Renew the claim and report the bytes done."""
        status = store.beat(self.claim, self.nbytes)
        kept = self._kept
        if kept is not None:
            kept()
        if status is not Status.OK:
            over = status is Status.OVER
            self.stop(JobCancelled("job is ending" if over else "another worker took over"))

    def stop(self, why: Exception) -> None:
        """End the work with ``why`` at its next progress."""
        self._stop = why


class Heartbeat:
    """One per process; the thread starts with the first piece of work and sleeps between two.

    ``stopping``: called at each beat; True if the worker hands its work back.
    """

    def __init__(self, store: JobStore, interval: float = INTERVAL, stopping: Callable[[], bool] = bool) -> None:
        self._store = store
        self._stopping = stopping
        self._interval = interval
        self._begun = threading.Event()
        self._watched: Watched | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def watching(self, claim: Claim, outcome: Outcome | None = None) -> Iterator[Watched]:
        """Renew ``claim`` inside the block; afterwards ``outcome`` has the number of bytes done."""
        watched = Watched(claim)
        self._watched = watched
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._beat, daemon=True, name="layerfarm-heartbeat")
            self._thread.start()
        # Costs nothing if the thread is between two beats, as with short units.
        self._begun.set()
        try:
            yield watched
        finally:
            self._watched = None
            if outcome is not None:
                outcome.nbytes = watched.nbytes

    def _beat(self) -> None:
        while True:
            self._begun.wait()
            time.sleep(self._interval)
            watched = self._watched
            if watched is None:
                self._begun.clear()
                # Work that began meanwhile would otherwise wait for the next piece.
                if self._watched is not None:
                    self._begun.set()
                continue
            try:
                if self._stopping():
                    watched.stop(HandedBack("worker is stopping"))
                watched.tell(self._store)
            except Exception as error:
                # Whatever the error (Redis away, out of memory for a moment), the claims of this process depend on this
                # thread. The lease outlives a short trouble, and the worker itself notices a long one.
                _log.warning("beat failed", error=str(error) or type(error).__name__)
