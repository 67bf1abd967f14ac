"""Whoever may publish in the farm's Redis reaches every worker: what one makes of that, and of messages."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.broker.message_filter import control_message


def broadcast(body: Any, /, **changed: Any) -> dict[str, Any]:
    """As ``celery inspect`` and Flower send it."""
    return {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 7, "expires": 1.0},
        "properties": {"delivery_tag": "tag", "body_encoding": "base64", "priority": 0},
    } | changed


ASKED = {"method": "ping", "arguments": {}, "destination": None, "ticket": "t", "reply_to": {"exchange": "e"}}


def test_read_only_control_messages_pass_without_an_expiry() -> None:
    found = control_message(broadcast(ASKED))
    assert ASKED.items() <= json.loads(base64.b64decode(found["body"])).items()
    assert found["headers"] == {"clock": 7, "expires": None}
    assert found["properties"]["delivery_tag"] == "tag"


@pytest.mark.parametrize(
    "method",
    [
        *("shutdown", "pool_restart", "pool_grow", "pool_shrink", "autoscale", "rate_limit", "time_limit", "revoke"),
        *("terminate", "add_consumer", "cancel_consumer", "election", "objgraph", "memdump", ""),
    ],
)
def test_control_messages_that_change_or_end_a_worker_are_refused(method: str) -> None:
    with pytest.raises(RequestError, match="not an allowed control message"):
        control_message(broadcast(ASKED | {"method": method}))


@pytest.mark.parametrize(
    "raw",
    [
        1,
        None,
        [],
        {},
        broadcast(1),
        broadcast([ASKED]),
        broadcast({}),
        broadcast(ASKED | {"arguments": 1}),
        broadcast(ASKED, body="@"),
        broadcast(ASKED, body=1),
        broadcast(ASKED, body="[" * 10_000, properties={"delivery_tag": "tag"}),
        broadcast(ASKED, body="x" * 20_000),
        broadcast(ASKED, properties=None),
        broadcast(ASKED, properties={"body_encoding": "base64"}),
    ],
)
def test_invalid_control_messages_are_refused_without_another_error(raw: Any) -> None:
    with pytest.raises(RequestError, match="not an allowed control message"):
        control_message(raw)
