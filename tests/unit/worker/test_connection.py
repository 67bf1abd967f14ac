"""Errors of a client whose server cannot be used."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import redis
from celery.worker.consumer import Consumer
from kombu.exceptions import OperationalError

from layerfarm.jobs.errors import FarmUnreachable, RequestError
from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.app import make_app
from layerfarm.worker.broker.connection import connect, reaching
from layerfarm.worker.settings import Settings


@contextmanager
def _answering(answer: Callable[[bytes], bytes]) -> Iterator[str]:
    """The address of a server that gives ``answer`` to each command, by its name."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while count := self.rfile.readline():
                words = []
                for _ in range(int(count[1:])):
                    length = int(self.rfile.readline()[1:])
                    words.append(self.rfile.read(length))
                    self.rfile.readline()
                self.wfile.write(answer(words[0]) + b"\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
        server.shutdown()


def _redis5(command: bytes) -> bytes:
    """As Redis 5 answers: it knows PING, and no HELLO."""
    known = command in (b"PING", b"CLIENT", b"SELECT")
    return b"+OK" if known else b"-ERR unknown command `%s`, with args: " % command


@pytest.mark.parametrize(
    ("query", "message"),
    [("ssl_ca_certs=/ca.crt", "unknown option 'ssl_ca_certs'.*TLS needs rediss://"), ("colour=red", "unknown option")],
)
def test_option_that_a_connection_does_not_have_is_named(query: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        connect(Address(f"redis://:s3cret@127.0.0.1:1/0?{query}"))
    assert "s3cret" not in str(refused.value)


def test_a_redis_before_6_is_refused_with_one_line() -> None:
    with _answering(_redis5) as address, pytest.raises(FarmUnreachable) as refused:
        connect(Address(address))
    said = f"this Redis is older than 6: {address} (upgrade to Redis 6 or newer, or to Valkey)"
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("-WRONGPASS invalid username-password pair", "Redis refuses the connection (invalid username-password pair)"),
        ("-NOAUTH HELLO must be called", "Redis refuses the connection (HELLO must be called)"),
        ("-NOPERM this user has no permissions", "Redis refuses the connection (this user has no permissions)"),
        ("-OOM command not allowed", "Redis refuses a command (command not allowed)"),
        ("-LOADING loading the dataset", "Redis does not answer (loading the dataset)"),
    ],
)
def test_a_redis_that_refuses_is_not_called_one_that_does_not_answer(answer: str, said: str) -> None:
    with _answering(lambda _: answer.encode()) as address, pytest.raises(FarmUnreachable) as refused:
        connect(Address(address))
    assert str(refused.value) == f"{said}: {address} (see docs/troubleshooting.md#a-command-cannot-reach-redis)"


def test_a_refusal_that_kombu_wraps_is_recognized() -> None:
    with pytest.raises(FarmUnreachable, match="Redis refuses the connection"), reaching(Address("redis://host/0")):
        try:
            raise redis.AuthenticationError("invalid username-password pair")
        except redis.AuthenticationError as error:
            raise OperationalError(str(error)) from error


def test_worker_tries_to_connect_as_long_as_redis_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(Settings(farm="redis://127.0.0.1:1/0"))
    worker = SimpleNamespace(app=app, first_connection_attempt=False, broker_connection_retry_attempt=0)
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda seconds: None)
    with app.connection_for_read() as connection:
        factory = Mock(side_effect=[*repeat(ConnectionRefusedError, 1000), None])
        monkeypatch.setattr(connection, "_connection_factory", factory)
        Consumer.ensure_connected(worker, connection)
    assert factory.call_count == 1001
