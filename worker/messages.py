"""What travels through the queue: which piece of which job is to be worked on; never the work itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import RequestError
from worker.connection import is_read_only
from worker.settings import Settings
from worker.traffic import Traffic

ADVANCE: Final = "layerfarm.advance"
UNIT: Final = "layerfarm.unit"
CLOSE: Final = "layerfarm.close"
TASKS: Final = (ADVANCE, UNIT, CLOSE)

_JobId = Annotated[str, Field(pattern=r"^[0-9a-z][0-9a-z-]{0,62}$")]
_Position = Annotated[int, Field(ge=-1, le=1_000_000)]


class Message(BaseModel):
    """The arguments of every task."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    job: _JobId
    stage: _Position = -1
    index: _Position = -1

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Message:
        """
        Raises:
            RequestError: not a message of ours.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise RequestError(f"not a message for layerfarm: {error.errors()[0]['msg']}") from None


class Sender:
    """Puts messages on the farm's queues."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._queues = settings.queues

    def start(self, job_id: str, traffic: Traffic) -> None:
        """The first message of a job: a job of its class may begin."""
        self._send(ADVANCE, self._queues.starts_of(traffic), {"job": job_id, "stage": -1})

    def advance(self, job_id: str, stage: int) -> None:
        self._send(ADVANCE, self._queues.control, {"job": job_id, "stage": stage})

    def close(self, job_id: str) -> None:
        self._send(CLOSE, self._queues.control, {"job": job_id})

    def units(self, job_id: str, stage: int, indexes: Sequence[int], traffic: Traffic = Traffic.INTERACTIVE) -> None:
        messages = [{"job": job_id, "stage": stage, "index": index} for index in indexes]
        self._send(UNIT, self._queues.units_of(traffic), *messages)

    def _send(self, task: str, queue: str, *messages: dict[str, Any]) -> None:
        with self._app.producer_or_acquire() as producer:
            for message in messages:
                try:
                    self._app.send_task(task, kwargs=message, queue=queue, producer=producer, retry=False)
                except (redis.RedisError, OperationalError) as error:
                    if not is_read_only(error):
                        raise
                    # After a failover the connection leads to what is a replica now: by a new one, once more.
                    producer.channel.pool.disconnect()
                    self._app.send_task(task, kwargs=message, queue=queue, producer=producer, retry=False)
