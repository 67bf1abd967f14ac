"""The tasks of the farm: read the message, have the runner of this process do it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import structlog
from celery import Celery, shared_task
from structlog.contextvars import bound_contextvars

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.broker.messages import ADVANCE, CLOSE, UNIT, Message, Sender
from layerfarm.worker.engine.action_cache import Works
from layerfarm.worker.engine.farm import CeleryRunner
from layerfarm.worker.engine.heartbeat import Heart
from layerfarm.worker.engine.hooks import Witnesses
from layerfarm.worker.engine.recovery import Recovery
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.jobstore.owner import this_process
from layerfarm.worker.security.signing import Keyring
from layerfarm.worker.settings import Settings

_log = structlog.get_logger()


@shared_task(name=ADVANCE)  # type: ignore[untyped-decorator]
def advance(*args: Any, **fields: Any) -> None:
    """Join a stage of a job, or begin one, and open the next."""
    _here().do("advance", args, fields)


@shared_task(name=UNIT)  # type: ignore[untyped-decorator]
def unit(*args: Any, **fields: Any) -> None:
    """Do one unit of a stage."""
    _here().do("unit", args, fields)


@shared_task(name=CLOSE)  # type: ignore[untyped-decorator]
def close(*args: Any, **fields: Any) -> None:
    """Remove what a job staged, and show how it ended."""
    _here().do("close", args, fields)


@dataclass
class Process:
    """One process of a worker, as its tasks need it."""

    app: Celery
    settings: Settings
    stopping: Callable[[], bool] = bool
    """Whether units are to be handed back."""
    leaving: Callable[[], bool] = bool
    """Whether the worker has been asked to stop."""
    witnesses: Witnesses | None = None
    keyring: Keyring | None = None
    is_outdated: Callable[[], bool] = bool
    """Asked before each task; where it holds, this process ends, and another takes its place."""

    def do(self, what: str, args: tuple[Any, ...], fields: dict[str, Any]) -> None:
        """Do what a message asks for; one that is not of ours is refused, in the log."""
        if self.is_outdated():
            _log.warning("a file that this process may read was replaced, another process takes over")
            # The message goes back to the queue, as that of any process that dies.
            os._exit(1)
        try:
            if args:
                raise RequestError("not a message for layerfarm: positional arguments")
            message = Message.parse(fields)
        except RequestError as error:
            _log.warning("message refused", error=str(error))
            return
        place = {name: number for name, number in (("stage", message.stage), ("unit", message.index)) if number >= 0}
        with bound_contextvars(job=message.job, **place):
            self._runner.do(message.item(what))

    @cached_property
    def _runner(self) -> CeleryRunner:
        """Made at the first task, so after the fork."""
        settings = self.settings
        client = client_of(settings.address)
        store = RedisJobStore.of(client, settings)
        sender = Sender(self.app, settings)
        return CeleryRunner(
            store=store,
            owner=this_process(),
            works=Works.of(client, settings),
            heart=Heart(store, stopping=self.stopping),
            sender=sender,
            recovery=Recovery.of(client, store, sender, settings),
            policy=settings.policy,
            retry_for=settings.retry_for,
            lease_for=settings.job_expires,
            keyring=self.keyring,
            job_bytes=settings.job_bytes_limit,
            witnesses=self.witnesses,
            leaving=self.leaving,
        )


_process: Process | None = None


def work_as(process: Process) -> None:
    """Let the tasks of this process, and of those that it forks, be done so."""
    global _process
    _process = process


def _here() -> Process:
    assert _process is not None
    return _process
