"""The tasks of the farm: read the message, call the runner."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from typing import Any

import structlog
from celery import Celery
from structlog.contextvars import bound_contextvars

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.broker.messages import ADVANCE, CLOSE, UNIT, Message, Sender
from layerfarm.worker.engine.action_cache import Works
from layerfarm.worker.engine.farm import CeleryRunner
from layerfarm.worker.engine.heartbeat import Heart
from layerfarm.worker.engine.hooks import Witnesses
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.jobstore.owner import this_process
from layerfarm.worker.security.signing import Keyring
from layerfarm.worker.settings import Settings

_log = structlog.get_logger()


class Tasks:
    """The three tasks, and what one process needs for them: made at its first task, so after the fork."""

    def __init__(
        self,
        app: Celery,
        settings: Settings,
        stopping: Callable[[], bool] = bool,
        witnesses: Witnesses | None = None,
        keyring: Keyring | None = None,
        is_outdated: Callable[[], bool] = bool,
    ) -> None:
        """``is_outdated``: asked before each task; a process of which it holds ends, and another takes its place."""
        self._app = app
        self._settings = settings
        self._stopping = stopping
        self._witnesses = witnesses
        self._keyring = keyring
        self._is_outdated = is_outdated
        for name, body in ((ADVANCE, self._advance), (UNIT, self._unit), (CLOSE, self._close)):
            app.task(self._refusing(body), name=name)

    def _advance(self, message: Message) -> None:
        with bound_contextvars(job=message.job, stage=message.stage):
            self._runner.advance(message.item("advance"))

    def _unit(self, message: Message) -> None:
        with bound_contextvars(job=message.job, stage=message.stage, unit=message.index):
            self._runner.unit(message.item("unit"))

    def _close(self, message: Message) -> None:
        with bound_contextvars(job=message.job):
            self._runner.close(message.item("close"))

    @cached_property
    def _runner(self) -> CeleryRunner:
        settings = self._settings
        client = client_of(settings.address)
        store = RedisJobStore.of(client, settings)
        return CeleryRunner(
            store=store,
            owner=this_process(),
            works=Works.of(client, settings),
            heart=Heart(store, stopping=self._stopping),
            sender=Sender(self._app, settings),
            policy=settings.policy,
            retry_for=settings.retry_for,
            lease_for=settings.job_expires,
            keyring=self._keyring,
            job_bytes=settings.job_bytes_limit,
            witnesses=self._witnesses,
        )

    def _refusing(self, body: Any) -> Any:
        """A task that calls ``body`` with a valid message only."""

        def task(*args: Any, **fields: Any) -> None:
            if self._is_outdated():
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
            body(message)

        task.__name__ = body.__name__
        return task
