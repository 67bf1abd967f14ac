"""Keep one catalog up to date: record pushes, and run what they and the schedule request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from pathlib import Path
from typing import Final

import structlog

from layerfarm.jobs.errors import LayerfarmError, StoreError
from layerfarm.jobs.store import Layout
from layerfarm.worker.catalog.document import CatalogFile, read_catalog
from layerfarm.worker.catalog.serve.backlog import Backlog
from layerfarm.worker.catalog.serve.concerns import concerned
from layerfarm.worker.catalog.serve.inbox import Inbox
from layerfarm.worker.catalog.serve.metrics import ServeMetrics
from layerfarm.worker.catalog.serve.notifications import Event
from layerfarm.worker.catalog.serve.runner import Outcome, Runner
from layerfarm.worker.catalog.serve.times import Times
from layerfarm.worker.catalog.state import LAST_RUN, state_directory

_LONGEST_SLEEP: Final = 3600.0
RESULTS: Final = ("accepted", "repeated", "unmatched")
_log = structlog.get_logger()


class Keeper:
    """One catalog of a server. All methods are called in its event loop."""

    def __init__(self, file: Path, store: Layout, runner: Runner, metrics: ServeMetrics, times: Times) -> None:
        """``store``: the catalog's. Opens the inbox.

        Raises:
            CatalogError: another process serves the catalog.
            LayerfarmError: its file or its inbox cannot be read.
        """
        self.name = file.stem
        self._file = file
        self._runner = runner
        self._metrics = metrics
        self._read = _identity(file)
        self._catalog = read_catalog(file)
        self._directory = state_directory(store, file)
        self._inbox = Inbox(store.path, self._directory)
        self._writing = asyncio.Lock()
        self._times = times
        self._backlog = Backlog(times)
        self._backlog.pushed(self._inbox.pending, time.time())
        self._changed = asyncio.Event()
        self._whole_failed = 0
        self._whole_not_before = 0.0
        metrics.watch(self.name, lambda: len(self._backlog), lambda: self._backlog.oldest)

    @property
    def is_healthy(self) -> bool:
        """Return False after a failed write of the inbox, until one succeeds."""
        return self._inbox.is_open

    @property
    def has_schedule(self) -> bool:
        return self._catalog.schedule is not None

    def close(self) -> None:
        self._inbox.close()

    async def accept(self, events: Collection[Event]) -> list[str]:
        """Record the events that concern the catalog, durably; return the result of each, one of :data:`RESULTS`.

        Raises:
            StoreError: they cannot be recorded.
        """
        results = []
        names: set[str] = set()
        ids: list[str] = []
        catalog = self._current()
        async with self._writing:
            for event in events:
                found = {name for push in event.pushes for name in concerned(catalog, push)}
                if not found:
                    results.append("unmatched")
                elif event.id is not None and (self._inbox.knows(event.id) or event.id in ids):
                    results.append("repeated")
                else:
                    results.append("accepted")
                    names |= found
                    ids += [event.id] if event.id is not None else []
            if names:
                await asyncio.to_thread(self._inbox.add, names, ids)
        if names:
            self._backlog.pushed(names, time.time())
            self._changed.set()
        return results

    async def keep(self, stop: asyncio.Event, turn: asyncio.Semaphore) -> None:
        """Run what is due until ``stop``; ``turn``: held during a run."""
        stopped = asyncio.ensure_future(stop.wait())
        stopped.add_done_callback(lambda _: self._changed.set())
        try:
            while not stop.is_set():
                self._changed.clear()
                wait = min(self._next_time() - time.time(), _LONGEST_SLEEP)
                if wait > 0:
                    try:
                        await asyncio.wait_for(self._changed.wait(), wait)
                    except TimeoutError:
                        continue
                    continue
                async with turn:
                    if not stop.is_set():
                        await self._run(stop)
        finally:
            stopped.cancel()

    # --- inside ----------------------------------------------------------------------------------

    def _next_time(self) -> float:
        waiting = self._backlog.next_time()
        return min(self._whole_time(), float("inf") if waiting is None else waiting)

    def _whole_time(self) -> float:
        schedule = self._current().schedule
        if schedule is None:
            return float("inf")
        return max(schedule.next_after(self._inbox.ran), self._whole_not_before)

    async def _run(self, stop: asyncio.Event) -> None:
        began = time.time()
        scheduled = self._whole_time() <= began
        taken = self._backlog.take_all() if scheduled else self._backlog.take(began)
        # A push that was recorded while a run with its name began needs no other one.
        numbers = {name: self._inbox.pending[name] for name in taken if name in self._inbox.pending}
        names = list(numbers)
        # The first run is whole: a plan made for some images would keep its layers for ever.
        whole = scheduled or (bool(names) and not (self._directory / LAST_RUN).exists())
        if not whole and not names:
            return
        log = _log.bind(catalog=self.name, images="all" if whole else len(names))
        log.info("run begins")
        outcome = await self._runner.run(self._file, names, whole, stop)
        failed = {name: why for name in names if (why := outcome.reason(name)) is not None}
        if outcome.stopped:
            failed = dict.fromkeys(names, "stopped")
        try:
            await self._record({name: numbers[name] for name in names if name not in failed}, began, whole, outcome)
        except StoreError as error:
            log.error("run cannot be recorded", error=str(error))
            failed = dict.fromkeys(names, str(error))
        self._backlog.ended(failed, time.time())
        if not outcome.stopped:
            self._report(log, outcome, failed, whole, time.time() - began)

    async def _record(self, done: dict[str, int], began: float, whole: bool, outcome: Outcome) -> None:
        async with self._writing:
            if done:
                await asyncio.to_thread(self._inbox.done, done)
            if whole and not outcome.stopped:
                if outcome.error is None:
                    self._whole_failed = 0
                    await asyncio.to_thread(self._inbox.scheduled, began)
                else:
                    self._whole_not_before = time.time() + self._times.wait_after(self._whole_failed)
                    self._whole_failed += 1

    def _report(
        self, log: structlog.stdlib.BoundLogger, outcome: Outcome, failed: dict[str, str], whole: bool, seconds: float
    ) -> None:
        is_good = outcome.error is None and not outcome.failed
        kind, result = "whole" if whole else "part", "succeeded" if is_good else "failed"
        self._metrics.runs.labels(self.name, kind, result).observe(seconds)
        if is_good:
            self._metrics.succeeded.labels(self.name).set_to_current_time()
        if outcome.error is not None:
            log.error("run failed", error=outcome.error)
            return
        for name, why in sorted(outcome.failed.items()):
            log.warning("image failed", image=name, error=why, again=name in failed)
        log.info("run ended", seconds=round(seconds, 1), failed=len(outcome.failed))

    def _current(self) -> CatalogFile:
        """Return the catalog, read again if its file has changed; an invalid file does not replace it."""
        identity = _identity(self._file)
        if identity != self._read:
            self._read = identity
            try:
                self._catalog = read_catalog(self._file)
            except LayerfarmError as error:
                _log.error("catalog file cannot be read, its last content is used", error=str(error))
        return self._catalog


def _identity(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
