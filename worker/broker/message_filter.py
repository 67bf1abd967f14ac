"""What a worker makes of the bytes on its queues: messages of ours, built anew, or nothing.

Celery reads much in a message that a stranger can use: callbacks, chains, time limits, dates. So only what
layerfarm itself needs is taken over, the task's name, its typed arguments and the tag for acknowledging; the
rest is written anew.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.broker.messages import TASKS, Message

LARGEST: Final = 16 * 1024
"""Bytes of a body; ours have some 150."""


class _Headers(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    task: str = Field(max_length=100)
    id: str = Field(pattern=r"^[0-9a-f-]{36}$")


class _Properties(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    delivery_tag: str = Field(min_length=1, max_length=100)


class _BroadcastHeaders(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    clock: int = 0


class _BroadcastProperties(_Properties):
    body_encoding: str | None = None


class _Broadcast(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    body: str = Field(max_length=LARGEST)
    headers: _BroadcastHeaders = _BroadcastHeaders()
    properties: _BroadcastProperties


class _Raw(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    body: str = Field(max_length=LARGEST)
    headers: _Headers
    properties: _Properties
    content_type: str = Field(alias="content-type", pattern="^application/json$")


_OBEYED: Final = (
    *("ping", "stats", "report", "conf", "clock", "active", "active_queues", "registered", "scheduled"),
    *("reserved", "revoked", "query_task", "enable_events", "disable_events"),
)


class _Control(BaseModel):
    """What the tools of Celery may ask of a worker, Flower for one: to look, and to send events."""

    model_config = ConfigDict(strict=True, extra="ignore")

    method: str = Field(pattern=f"^({'|'.join(_OBEYED)})$")
    arguments: dict[str, Any] | None = None
    destination: list[str] | None = None
    pattern: str | None = None
    matcher: str | None = None
    ticket: str | None = Field(default=None, max_length=100)
    reply_to: dict[str, str] | None = None


def control_message(raw: Any) -> dict[str, Any]:
    """A broadcast to all workers, as Celery's own tools send it.

    Whoever may publish in this Redis reaches every worker at once; so nothing is done that changes or ends one.

    Raises:
        RequestError: it is none, or asks for something else.
    """
    try:
        found = _Broadcast.model_validate(raw)
        text = base64.b64decode(found.body) if found.properties.body_encoding == "base64" else found.body
        body = _Control.model_validate_json(text)
    except (ValueError, RecursionError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise RequestError(f"not a message that a worker obeys: {first}") from None
    return {
        "body": base64.b64encode(json.dumps(body.model_dump()).encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"clock": found.headers.clock, "expires": None},
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": "", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": found.properties.delivery_tag,
        },
    }


def our_message(raw: Any, queue: str) -> dict[str, Any]:
    """The message of ``queue`` as a client of ours sends it.

    Raises:
        RequestError: none does.
    """
    try:
        found = _Raw.model_validate(raw)
    except ValidationError as error:
        raise RequestError(f"not a message for layerfarm: {error.errors()[0]['msg']}") from None
    if found.headers.task not in TASKS:
        raise RequestError("not a task of layerfarm", where=found.headers.task)
    message = Message.parse(_arguments(found.body))
    body = json.dumps([[], message.model_dump(), {}])
    redelivered = raw["headers"].get("redelivered") is True
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
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
            # What events, and so Flower, show of the task: the job that it is of.
            "argsrepr": "()",
            "kwargsrepr": repr(message.model_dump(exclude_none=True)),
        },
        "properties": {
            "correlation_id": found.headers.id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": queue, "routing_key": queue, "redelivered": redelivered},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": found.properties.delivery_tag,
        },
    }


def _arguments(body: str) -> dict[str, Any]:
    try:
        args, fields, _ = json.loads(base64.b64decode(body, validate=True))
    except (ValueError, TypeError, RecursionError):
        raise RequestError("not a message for layerfarm: its body is not a call") from None
    if args or not isinstance(fields, dict):
        raise RequestError("not a message for layerfarm: positional arguments")
    return fields
