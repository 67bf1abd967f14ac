"""The registry of workers: each renews its entry only while it can take messages."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast

import redis
import structlog
from celery import bootsteps
from pydantic import BaseModel, ConfigDict, ValidationError

from layerfarm.jobs.flows.base import FORMAT
from layerfarm.worker.broker.connection import clock_offset
from layerfarm.worker.jobstore.keys import Keys

__all__ = ["WorkerInfo"]

_RENEW_EVERY: Final = 2.0
"""Seconds between two renewals of an entry."""
_EXPIRES: Final = 10
"""Seconds for which an entry is valid."""
_REPLACE_EVERY: Final = 0.5
"""Seconds between two checks for processes of the pool that died."""

_log = structlog.get_logger()


class WorkerInfo(BaseModel):
    """A worker's entry."""

    model_config = ConfigDict(frozen=True)

    name: str
    host: str
    pid: int
    concurrency: int
    roots: tuple[Path, ...]
    stores: tuple[Path, ...]
    kinds: tuple[str, ...]
    """The kinds of jobs that it can run."""
    version: str = ""
    """Version of layerfarm."""
    format: int = 0
    """Format of the jobs that it reads (``layerfarm.jobs.flows.base.FORMAT``)."""
    clock: float = 0.0
    """Seconds by which its clock is ahead of that of Redis."""
    confined: bool = False
    """Its units run in a sandbox (``layerfarm.worker.security.sandbox``)."""
    missing: tuple[Path, ...] = ()
    """Roots and stores that are not directories there."""

    @classmethod
    def of_this_process(cls, **fields: Any) -> WorkerInfo:
        host = socket.gethostname()
        # A container's pid is often the same on every host, hence the random end.
        name = f"{host}-{os.getpid()}-{os.urandom(2).hex()}"
        return cls(name=name, host=host, pid=os.getpid(), version=version("layerfarm"), format=FORMAT, **fields)

    def now(self, client: redis.Redis) -> WorkerInfo:
        """Return the entry with the current clock and missing directories."""
        missing = tuple(path for path in (*self.roots, *self.stores) if not path.is_dir())
        return self.model_copy(update={"clock": clock_offset(client), "missing": missing})


def workers(client: redis.Redis, keys: Keys) -> list[WorkerInfo]:
    """Return the workers that are listening, by name."""
    names = cast("list[str]", client.zrange(keys.workers, 0, -1))
    if not names:
        return []
    entries = cast("list[str | None]", client.mget([keys.worker(name) for name in names]))
    found, gone = [], []
    for name, entry in zip(names, entries, strict=True):
        try:
            found.append(WorkerInfo.model_validate_json(entry or ""))
        except ValidationError:
            # Expired, or not written by a worker; must not hide the others.
            gone.append(name)
    if gone:
        client.zrem(keys.workers, *gone)
    return found


@dataclass
class Registration:
    """The thread in a worker's main process that renews its entry, and calls ``look`` every ``look_every`` seconds.

    ``answer`` is called at each renewal. The entry is renewed only while ``tick`` is called: by the consumer's event
    loop, which does not run when the worker hangs and stops when the connection to Redis is lost.
    """

    client: redis.Redis
    keys: Keys
    info: WorkerInfo
    look: Callable[[], None]
    look_every: float
    answer: Callable[[], None]

    def __post_init__(self) -> None:
        self._ticked = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="layerfarm-registry")

    def tick(self) -> None:
        self._ticked = time.monotonic()
        if not self._thread.is_alive() and not self._over.is_set():
            self._thread.start()

    def stop(self) -> None:
        self._over.set()
        try:
            self.client.delete(self.keys.worker(self.info.name))
            self.client.zrem(self.keys.workers, self.info.name)
        except redis.RedisError:
            # Redis is away too; the entry expires by itself.
            _log.debug("could not leave the registry")

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._over.is_set():
            if time.monotonic() - self._ticked < 2 * _RENEW_EVERY:
                self._try(self._renew)
                self._try(self.answer)
            if time.monotonic() - looked >= self.look_every:
                looked = time.monotonic()
                self._try(self.look)
            self._over.wait(_RENEW_EVERY)

    def _try(self, duty: Callable[[], None]) -> None:
        """Do one duty. An error, such as an outage of Redis, ends neither the thread nor the other duties."""
        try:
            duty()
        except Exception as error:
            _log.warning("background duty failed", error=str(error) or type(error).__name__)

    def _renew(self) -> None:
        entry = self.info.now(self.client).model_dump_json()
        with self.client.pipeline() as pipe:
            pipe.zadd(self.keys.workers, {self.info.name: 0})
            pipe.expire(self.keys.workers, 24 * 3600)
            pipe.set(self.keys.worker(self.info.name), entry, ex=_EXPIRES)
            pipe.execute()


def ticking(registration: Registration) -> type[bootsteps.StartStopStep]:
    """Return the step of Celery's consumer that ticks while it consumes, and replaces dead processes soon."""

    class Ticking(bootsteps.StartStopStep):  # type: ignore[misc]
        requires = ("celery.worker.consumer.tasks:Tasks",)

        def __init__(self, parent: Any, **options: Any) -> None:
            super().__init__(parent, **options)
            self._timers: list[Any] = []

        def start(self, parent: Any) -> None:
            registration.tick()
            # By default the pool checks every 5 s only; a unit whose process died would wait as long.
            self._timers = [
                parent.timer.call_repeatedly(1.0, registration.tick),
                parent.timer.call_repeatedly(_REPLACE_EVERY, parent.pool.maintain_pool),
            ]

        def stop(self, parent: Any) -> None:
            for timer in self._timers:
                timer.cancel()
            self._timers = []

    return Ticking
