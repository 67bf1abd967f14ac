"""A channel of a closed connection says so in the way that lets a worker connect again."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from kombu.transport import redis as kombu_redis
from redis.connection import DefaultParser

from layerfarm.worker.broker.transport import Channel, Transport


@pytest.mark.parametrize("connection", [None, SimpleNamespace(client=None)])
def test_closed_connection_is_an_error_of_the_connection(connection: object) -> None:
    channel = Channel.__new__(Channel)
    channel.connection = connection
    with pytest.raises(redis.ConnectionError, match="closed"):
        channel._connparams()


def test_channel_has_one_client_for_each_pool() -> None:
    channel = Channel.__new__(Channel)
    channel.Client = redis.Redis
    channel._pool = first = redis.ConnectionPool()
    with channel.conn_or_acquire() as client, channel.conn_or_acquire() as again:
        assert client is again
        assert client.connection_pool is first
    channel._pool = redis.ConnectionPool()
    with channel.conn_or_acquire() as client:
        assert client.connection_pool is channel._pool
    given = redis.Redis()
    with channel.conn_or_acquire(given) as client:
        assert client is given


def test_error_is_one_that_the_consumer_recovers_from() -> None:
    assert issubclass(redis.ConnectionError, kombu_redis.get_redis_error_classes().connection_errors)
    assert Transport.Channel is Channel


@pytest.mark.parametrize(
    "answer",
    [
        "MISCONF Errors writing to the AOF file: No space left on device",
        "NOREPLICAS Not enough good replicas to write.",
        "READONLY You can't write against a read only replica.",
        "OOM command not allowed when used memory > 'maxmemory'.",
    ],
)
def test_redis_that_refuses_to_write_is_recovered_from_too(answer: str) -> None:
    error = DefaultParser.parse_error(answer)
    assert isinstance(error, Transport.connection_errors)
    assert answer.endswith(str(error))


def test_connection_by_a_socket_is_given_up_without_another_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "redis.sock"))
        server.listen()
        connection = redis.UnixDomainSocketConnection(path=str(tmp_path / "redis.sock"))
        connection._sock = connection._connect()
        connection.disconnect(error=redis.ReadOnlyError("x"), failure_count=9)
