"""A channel of a closed connection says so in the way that lets a worker connect again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import redis
from kombu.transport import redis as kombu_redis

from worker.transport import Channel, Transport


@pytest.mark.parametrize("connection", [None, SimpleNamespace(client=None)])
def test_closed_connection_is_an_error_of_the_connection(connection: object) -> None:
    channel = Channel.__new__(Channel)
    channel.connection = connection
    with pytest.raises(redis.ConnectionError, match="closed"):
        channel._connparams()


def test_error_is_one_that_the_consumer_recovers_from() -> None:
    assert issubclass(redis.ConnectionError, kombu_redis.get_redis_error_classes().connection_errors)
    assert Transport.Channel is Channel
