"""Follow a job from outside: its events, and notices when none come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import redis

from layerfarm.jobs.errors import FarmUnreachable, JobNotFound, JobTimeout
from layerfarm.worker.broker.connection import reaching, reason
from layerfarm.worker.model import Progress

if TYPE_CHECKING:
    from layerfarm.worker.client import Farm

_BLOCK: Final = 1.0
"""Longest wait for events, in seconds, before other checks."""
_OUTAGE: Final = 120.0
"""Seconds for which a waiting client tolerates an unreachable Redis: longer than a restart or a failover takes."""


class Watch:
    """One follower of a job's events; also finds a stuck job (``Recovery``).

    Parameters:
        timeout: seconds after which it gives up; None: never.
        heartbeat: seconds of silence after which the last progress comes again; None: never.
    """

    def __init__(self, farm: Farm, job_id: str, timeout: float | None, heartbeat: float | None = None) -> None:
        self._farm = farm
        self._job_id = job_id
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._heartbeat = heartbeat
        self._hint = f"it may still run: follow it with layerfarm jobs watch {job_id}, or end it with jobs cancel"
        self._looked = time.monotonic()
        self._away_since: float | None = None
        self._notice: str | None = None

    def run(self) -> Iterator[Progress]:
        """Yield the job's progress as it happens, to its final state; see :meth:`layerfarm.worker.client.Job.watch`.

        Raises:
            JobNotFound: the record has expired.
            JobTimeout: the job has not ended in time.
            FarmUnreachable: Redis was away for two minutes.
        """
        with reaching(self._farm.address):
            after, last = self._farm.store.progress(self._job_id)
        yield last
        try:
            yield from self._follow(after, last)
        except JobNotFound:
            hint = "Redis was restarted without its data, or the record has expired; submit it again"
            raise JobNotFound("the farm has no record of the job any more", where=self._job_id, hint=hint) from None

    def _follow(self, after: str, last: Progress) -> Iterator[Progress]:
        while not last.state.final:
            try:
                events = self._farm.store.events(self._job_id, after, self._block())
                for _, last in events:
                    yield last
                    if last.state.final:
                        return  # what follows is of a retry
                if events:
                    after = events[-1][0]
                else:
                    changed, seen = self._changed(self._see_workers()), after
                    after, last = self._farm.store.progress(self._job_id)
                    if changed or after != seen or last.state.final or self._heartbeat is not None:
                        yield replace(last, notice=self._notice)
                self._look()
                self._away_since = None
            except (redis.RedisError, FarmUnreachable) as error:
                if self._changed(self._bear(error)) or self._heartbeat is not None:
                    yield replace(last, notice=self._notice)
                time.sleep(min(1.0, self._block()))
            if not last.state.final and self._deadline is not None and time.monotonic() >= self._deadline:
                raise JobTimeout("job has not ended in time", where=self._job_id, hint=self._hint)

    def _block(self) -> float:
        longest = _BLOCK if self._heartbeat is None else min(_BLOCK, self._heartbeat)
        return longest if self._deadline is None else max(0.001, min(longest, self._deadline - time.monotonic()))

    def _see_workers(self) -> str | None:
        return None if self._farm.workers() else f"no worker is listening at {self._farm.address}"

    def _bear(self, error: Exception) -> str:
        now = time.monotonic()
        self._away_since = self._away_since or now
        if now - self._away_since > _OUTAGE:
            what = f"gave up waiting for job {self._job_id}, Redis has not answered for {_OUTAGE:.0f} s"
            raise FarmUnreachable(
                f"{what} ({reason(error)})", where=self._farm.address.masked, hint=self._hint
            ) from None
        return f"Redis does not answer at {self._farm.address}, waiting for it"

    def _changed(self, notice: str | None) -> bool:
        changed = notice != self._notice
        self._notice = notice
        return changed

    def _look(self) -> None:
        if time.monotonic() - self._looked >= self._farm.look_every:
            self._looked = time.monotonic()
            with reaching(self._farm.address):
                self._farm.recovery.look_at(self._job_id)
