"""The tasks of the farm: read the message, call the runner."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import structlog
from celery import Celery
from structlog.contextvars import bound_contextvars

from jobs.errors import RequestError
from worker.claims import Claims
from worker.connection import client_of
from worker.equal import Works
from worker.heart import Heart
from worker.ledger import Ledger
from worker.messages import ADVANCE, CLOSE, UNIT, Message, Sender
from worker.runner_celery import CeleryRunner
from worker.settings import Settings
from worker.signing import Keyring
from worker.witness import Witnesses

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
    ) -> None:
        self._app = app
        self._settings = settings
        self._stopping = stopping
        self._witnesses = witnesses
        self._keyring = keyring
        for name, body in ((ADVANCE, self._advance), (UNIT, self._unit), (CLOSE, self._close)):
            app.task(_refusing(body), name=name)

    def _advance(self, message: Message) -> None:
        with bound_contextvars(job=message.job, stage=message.stage):
            self._runner.advance(message.job, message.stage)

    def _unit(self, message: Message) -> None:
        with bound_contextvars(job=message.job, stage=message.stage, unit=message.index):
            self._runner.unit(message.job, message.stage, message.index)

    def _close(self, message: Message) -> None:
        with bound_contextvars(job=message.job):
            self._runner.close(message.job)

    @cached_property
    def _runner(self) -> CeleryRunner:
        settings = self._settings
        client = client_of(settings.address)
        claims = Claims(client, settings.lease, settings.deliveries)
        return CeleryRunner(
            ledger=Ledger(client, settings.job_expires, settings.result_expires),
            claims=claims,
            works=Works(client, settings.lease, settings.result_expires),
            heart=Heart(claims, stopping=self._stopping),
            sender=Sender(self._app, settings),
            policy=settings.policy,
            retry_for=settings.retry_for,
            lease_for=settings.job_expires,
            keyring=self._keyring,
            job_bytes=settings.job_bytes_limit,
            witnesses=self._witnesses,
        )


def _refusing(body: Any) -> Any:
    """A task that calls ``body`` with a valid message only."""

    def task(*args: Any, **fields: Any) -> None:
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
