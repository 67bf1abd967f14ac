"""Whoever may publish in the farm's Redis reaches every worker: what one makes of that, and of messages."""

from __future__ import annotations

import base64
import json
from queue import Empty
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.transport import TRANSPORT_ALIASES

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.broker import transport
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
    found = control_message(broadcast(ASKED | {"pattern": "(?:.*.*)*=", "matcher": "pcre"}))
    assert not {"pattern", "matcher"} & json.loads(base64.b64decode(found["body"])).keys()
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


class Consumer:
    """The transport of a worker, as far as a message passes through it on its way to Celery."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.refused: list[str] = []
        transport.use_in_this_process({"units"}, self.refused.append)
        self.transport = transport.Transport.__new__(transport.Transport)
        self.transport._callbacks = dict.fromkeys(("units", "worker.pidbox"), self.received.append)

    def published(self, payload: bytes) -> None:
        """Read what a client published to all workers."""
        channel = transport.Channel.__new__(transport.Channel)
        channel.connection = self.transport
        channel._fanout_to_queue = {"celery.pidbox": "worker.pidbox"}
        channel._receive_one(
            SimpleNamespace(connection=None, parse_response=lambda: [b"message", b"/0.celery.pidbox", payload])
        )


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Consumer:
    for scheme in ("redis", "rediss", "sentinel"):
        monkeypatch.setitem(TRANSPORT_ALIASES, scheme, TRANSPORT_ALIASES[scheme])
    for name in ("_guarded", "_refused"):
        monkeypatch.setattr(transport, name, getattr(transport, name))
    return Consumer()


@pytest.mark.parametrize("raw", [1, None, {}, broadcast(ASKED | {"method": "cancel_consumer"})])
@pytest.mark.parametrize("queue", ["units", "worker.pidbox"])
def test_invalid_message_of_any_queue_does_not_reach_celery(consumer: Consumer, queue: str, raw: Any) -> None:
    assert consumer.transport._deliver(raw, queue) is None
    assert (len(consumer.refused), consumer.received) == (1, [])


@pytest.mark.parametrize("body", [1, broadcast(ASKED | {"method": "cancel_consumer"})])
def test_published_message_that_is_invalid_does_not_reach_celery(consumer: Consumer, body: Any) -> None:
    consumer.published(json.dumps(body).encode())
    assert (len(consumer.refused), consumer.received) == (1, [])


@pytest.mark.parametrize("payload", [b"{", b"\xff", b"\xff\xfe", b"[" * 100_000], ids=range(4))
def test_published_bytes_that_are_not_json_are_no_message(consumer: Consumer, payload: bytes) -> None:
    with pytest.raises(Empty):  # which the event loop expects
        consumer.published(payload)
    assert consumer.received == []
    assert consumer.refused == (["published JSON is nested too deeply"] if payload.startswith(b"[") else [])


def test_published_control_message_reaches_celery_filtered(consumer: Consumer) -> None:
    message = broadcast(ASKED)
    consumer.published(json.dumps(message).encode())
    assert (consumer.refused, consumer.received) == ([], [control_message(message)])
