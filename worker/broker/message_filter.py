"""Messages from the queues, rebuilt before Celery reads them: only those that a layerfarm client can send.

Celery evaluates much of a message that an attacker can use: callbacks, chains, time limits, dates. So only the fields
that layerfarm needs are copied: the task's name, its typed arguments and the tag for acknowledging. The rest is
generated.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.store.validation import fault
from layerfarm.worker.broker.messages import TASKS, Message

_LARGEST: Final = 16 * 1024
"""Bytes of a body; layerfarm's have some 150."""
_OBEYED: Final = (
    *("ping", "stats", "report", "conf", "clock", "active", "active_queues", "registered", "scheduled"),
    *("reserved", "revoked", "query_task", "enable_events", "disable_events"),
)


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Properties(_Part):
    delivery_tag: str = Field(min_length=1, max_length=100)
    body_encoding: str | None = None


class _Headers(_Part):
    task: str = Field(max_length=100)
    id: str = Field(pattern=r"^[0-9a-f-]{36}$")
    redelivered: Any = False


class _Envelope(_Part):
    body: str = Field(max_length=_LARGEST)
    headers: _Headers
    properties: _Properties
    content_type: Literal["application/json"] = Field(alias="content-type")


class _BroadcastHeaders(_Part):
    clock: int = 0


class _Broadcast(_Part):
    body: str = Field(max_length=_LARGEST)
    headers: _BroadcastHeaders = _BroadcastHeaders()
    properties: _Properties


class _Control(_Part):
    """Commands that Celery's tools, such as Flower, may send: to inspect, and to send events.

    Without ``pattern``, by which workers can be chosen: Celery takes it for a regular expression, and some never end.
    """

    method: str = Field(pattern=f"^({'|'.join(_OBEYED)})$")
    arguments: dict[str, Any] | None = None
    destination: list[str] | None = None
    ticket: str | None = Field(default=None, max_length=100)
    reply_to: dict[str, str] | None = None


def control_message(raw: Any) -> dict[str, Any]:
    """Return a broadcast to all workers, as Celery's own tools send it; nothing that changes or ends a worker.

    Raises:
        RequestError: it is not one of these.
    """
    try:
        found = _Broadcast.model_validate(raw)
        text = base64.b64decode(found.body) if found.properties.body_encoding == "base64" else found.body
        body = _Control.model_validate_json(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not an allowed control message: {_reason(error)}") from None
    headers = {"clock": found.headers.clock, "expires": None}
    return _sealed(body.model_dump(), headers, found.properties.delivery_tag, 1, {"exchange": "", "routing_key": ""})


def our_message(raw: Any, queue: str) -> dict[str, Any]:
    """Return the message of ``queue`` in the form in which a layerfarm client sends it.

    Raises:
        RequestError: a client cannot have sent it.
    """
    try:
        found = _Envelope.model_validate(raw)
        if found.headers.task not in TASKS:
            raise RequestError("not a task of layerfarm", where=found.headers.task)
        args, fields, _ = json.loads(base64.b64decode(found.body, validate=True))
        if args:
            raise ValueError("positional arguments")
        message = Message.model_validate(fields)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"not a layerfarm message: {_reason(error)}") from None
    redelivered = found.headers.redelivered is True
    headers = {
        "lang": "py",
        "task": found.headers.task,
        "id": found.headers.id,
        "root_id": found.headers.id,
        "parent_id": None,
        "group": None,
        "timelimit": [None, None],
        "eta": None,
        "expires": None,
        "retries": 0,
        "redelivered": redelivered,
        # Events, and so Flower, show the job of the task.
        "argsrepr": "()",
        "kwargsrepr": repr(message.model_dump(exclude_none=True)),
    }
    way = {"exchange": queue, "routing_key": queue, "redelivered": redelivered}
    sealed = _sealed([[], message.model_dump(), {}], headers, found.properties.delivery_tag, 2, way)
    sealed["properties"]["correlation_id"] = found.headers.id
    return sealed


def _sealed(body: Any, headers: dict[str, Any], tag: str, mode: int, way: dict[str, Any]) -> dict[str, Any]:
    """Return a message in kombu's form; ``tag``: for acknowledging, ``mode``: 2 if it is persistent."""
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "delivery_mode": mode,
            "delivery_info": way,
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": tag,
        },
    }


def _reason(error: Exception) -> str:
    return fault(error.errors()[0]) if isinstance(error, ValidationError) else str(error)
