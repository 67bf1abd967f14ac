"""The tasks of the farm: each passes its message to this process's runner."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import structlog
from celery import Celery, shared_task
from structlog.contextvars import bound_contextvars

from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.broker.messages import ADVANCE, CLOSE, UNIT, Message, Sender
from layerfarm.worker.engine.admission import Admission
from layerfarm.worker.engine.farm import CeleryRunner
from layerfarm.worker.engine.heartbeat import Heartbeat
from layerfarm.worker.engine.recovery import Recovery
from layerfarm.worker.engine.single_flight import ActionCache
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.jobstore.owner import this_process
from layerfarm.worker.security.signing import Keyring
from layerfarm.worker.settings import Settings

_log = structlog.get_logger()


@shared_task(name=ADVANCE)  # type: ignore[untyped-decorator]
def advance(**fields: Any) -> None:
    """Join a stage of a job, or begin one, and open the next."""
    _here().do("advance", fields)


@shared_task(name=UNIT)  # type: ignore[untyped-decorator]
def unit(**fields: Any) -> None:
    """Do one unit of a stage."""
    _here().do("unit", fields)


@shared_task(name=CLOSE)  # type: ignore[untyped-decorator]
def close(**fields: Any) -> None:
    """Remove what a job staged, and publish its final state."""
    _here().do("close", fields)


@dataclass
class Process:
    """One process of a worker, for its tasks."""

    app: Celery
    settings: Settings
    stopping: Callable[[], bool]
    """Returns True when units are to be handed back."""
    leaving: Callable[[], bool]
    """Returns True after a stop of the worker was requested."""
    keyring: Keyring | None
    is_outdated: Callable[[], bool]
    """Called before each task; if it returns True, this process ends, and another takes its place."""

    def do(self, what: str, fields: dict[str, Any]) -> None:
        if self.is_outdated():
            _log.warning("a file readable in the sandbox was replaced, another process takes over")
            # The message returns to the queue, as for any process that dies.
            os._exit(1)
        message = Message.model_validate(fields)
        place = {name: number for name, number in (("stage", message.stage), ("unit", message.index)) if number >= 0}
        with bound_contextvars(job=message.job, **place):
            self._runner.do(message.item(what))

    @cached_property
    def _runner(self) -> CeleryRunner:
        """Created at the first task, so after the fork."""
        settings = self.settings
        client = client_of(settings.address)
        store = RedisJobStore(client, settings)
        sender = Sender(self.app, settings)
        return CeleryRunner(
            store=store,
            owner=this_process(),
            cache=ActionCache(client, settings),
            heartbeat=Heartbeat(store, stopping=self.stopping),
            sender=sender,
            recovery=Recovery.of(client, store, sender, settings),
            policy=settings.policy,
            admission=Admission(store, self.keyring, settings.job_bytes_limit),
            retry_for=settings.retry_for,
            lease_for=settings.job_expires,
            leaving=self.leaving,
        )


_process: Process | None = None


def work_as(process: Process) -> None:
    """Let ``process`` do the tasks of this process and of its children."""
    global _process
    _process = process


def _here() -> Process:
    assert _process is not None
    return _process
