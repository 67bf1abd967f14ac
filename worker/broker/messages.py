"""Messages: the item of a job to work on; never the work itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final

import redis
from celery import Celery
from kombu.exceptions import OperationalError
from pydantic import BaseModel, ConfigDict, Field

from layerfarm.worker.broker.connection import is_read_only
from layerfarm.worker.broker.priorities import Traffic
from layerfarm.worker.jobstore.model import Item
from layerfarm.worker.settings import Settings

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
    attempt: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """0: from a client of a version without attempts."""
    stage: _Position = -1
    index: _Position = -1

    def item(self, what: str) -> Item:
        return Item(self.job, self.attempt, what, self.stage, self.index)


class Sender:
    """Puts messages on the farm's queues."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._queues = settings.queues

    def send(self, items: Iterable[Item], traffic: Traffic = Traffic.INTERACTIVE) -> None:
        """Queue the items; ``traffic`` is the class of their job."""
        with self._app.producer_or_acquire() as producer:
            for item in items:
                message = {"job": item.job_id, "attempt": item.attempt, "stage": item.stage, "index": item.index}
                task, queue = f"layerfarm.{item.what}", self._queue(item, traffic)
                try:
                    self._app.send_task(task, kwargs=message, queue=queue, producer=producer, retry=False)
                except (redis.RedisError, OperationalError) as error:
                    if not is_read_only(error):
                        raise
                    # After a failover the connection leads to a replica: retry once on a new one.
                    producer.channel.pool.disconnect()
                    self._app.send_task(task, kwargs=message, queue=queue, producer=producer, retry=False)

    def _queue(self, item: Item, traffic: Traffic) -> str:
        """Return the queue of an item: items that advance or end a job precede units; new jobs begin in their turn."""
        if item.what == "unit":
            return self._queues.units_of(traffic)
        return self._queues.starts_of(traffic) if item.begins else self._queues.control
