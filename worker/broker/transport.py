"""Overrides of kombu's Redis transport, in the processes of workers only (:func:`use_in_this_process`).

- ``QoS.ack``: a message that a full or read-only Redis cannot acknowledge keeps its place, and no others are fetched.
- ``Channel.conn_or_acquire``: making a client for each command takes longer than the command.
- ``Channel._connparams``: returning a message after the connection was closed ends the worker (kombu #582, #970).
- ``Channel._receive_one``: redis-py reconnects inside it and waits, which blocks the event loop (celery #8091); a
  published message of many nested lists ends the worker.
- ``Channel._brpop_read``: a message that is not JSON ends the worker (celery #1113); so does a primary that becomes a
  replica.
- ``Transport.connection_errors``: errors of a replica or a full Redis end the worker, instead of a reconnection to the
  current primary (celery #7946).
- ``Transport._deliver``: any message that others put on a queue reaches Celery (celery #4308).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis
from redis.backoff import NoBackoff
from redis.connection import DefaultParser
from redis.exceptions import ExecAbortError
from redis.retry import Retry

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.broker.connection import RetryOnce
from layerfarm.worker.broker.message_filter import control_message, our_message

# A Redis whose disk is full, or that lost its replicas, refuses writes like a replica and is treated as one; redis-py
# has no class for it.
for _code in ("MISCONF", "NOREPLICAS"):
    DefaultParser.EXCEPTION_CLASSES.setdefault(_code, redis.ReadOnlyError)

# As layerfarm.worker.broker.connection does for layerfarm's own connections; these are kombu's.
for _name in ("host", "port"):
    if not hasattr(redis.UnixDomainSocketConnection, _name):
        setattr(redis.UnixDomainSocketConnection, _name, None)


class QoS(kombu_redis.QoS):
    def ack(self, delivery_tag: str) -> None:
        """Acknowledge. A Redis that cannot write that now delivers the message again later.

        Celery logs the error and continues, but a message that stays on the list takes the place of another: after as
        many as there are processes, the worker would wait for ever.
        """
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except Transport.connection_errors:
            self._quick_ack(delivery_tag)
            raise


class Channel(kombu_redis.Channel):
    """Raises connection errors, on which Celery's consumer reconnects."""

    QoS = QoS
    _idle: redis.Redis | None = None
    """A client of ``pool``."""

    @contextmanager
    def conn_or_acquire(self, client: redis.Redis | None = None) -> Iterator[redis.Redis]:
        """Yield ``client``, or the same one each time until the channel gets another pool, as in a fork."""
        if client is None:
            if self._idle is None or self._idle.connection_pool is not self.pool:
                self._idle = self._create_client()  # type: ignore[no-untyped-call]
            client = self._idle
        yield client

    def _connparams(self, *args: Any, **kwargs: Any) -> Any:
        if self.connection is None or self.connection.client is None:
            raise redis.ConnectionError("the connection to Redis is closed")
        return super()._connparams(*args, **kwargs) | {"retry": RetryOnce()}  # type: ignore[no-untyped-call]

    def _receive_one(self, c: Any) -> Any:
        """Read a published message. A lost connection is an error: redis-py would reconnect in here and wait for the
        next message, while the worker's event loop is blocked.
        """
        if c.connection is not None:
            c.connection.retry = Retry(NoBackoff(), 0)
        try:
            return super()._receive_one(c)  # type: ignore[no-untyped-call]
        except RecursionError:
            _refused("published JSON is nested too deeply")
            raise Empty from None

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except (ValueError, RecursionError) as error:
            # Bytes that are not JSON would end the worker; they are already off the queue.
            _refused(f"not JSON: {type(error).__name__}")
            raise Empty from None
        except redis.ResponseError as error:
            # The answer of a Redis to a client that waits for a message when it becomes a replica.
            if str(error).startswith("UNBLOCKED"):
                raise redis.ConnectionError(str(error)) from error
            raise


class Transport(kombu_redis.Transport):
    """Delivers on layerfarm's queues only messages that a layerfarm client can send."""

    Channel = Channel

    # Celery asks the class, kombu's channels ask the instance; both find this.
    connection_errors = (
        *kombu_redis.Transport.connection_errors,
        redis.ReadOnlyError,
        redis.OutOfMemoryError,
        ExecAbortError,
    )

    def _deliver(self, message: Any, queue: str) -> Any:
        try:
            message = our_message(message, queue) if queue in _guarded else control_message(message)
        except RequestError as error:
            _refused(str(error))
            return None
        return super()._deliver(message, queue)  # type: ignore[no-untyped-call]


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """The channel of a Redis behind sentinels."""


class SentinelTransport(Transport, kombu_redis.SentinelTransport):
    Channel = SentinelChannel


_guarded: frozenset[str] = frozenset()
_refused: Callable[[str], None] = print


def use_in_this_process(queues: Iterable[str], refused: Callable[[str], None]) -> None:
    """Use these overrides for every Redis connection of this process, a worker's.

    ``refused`` is called with the reason for each message on ``queues`` that a layerfarm client cannot have sent.
    """
    global _guarded, _refused
    _guarded, _refused = frozenset(queues), refused
    for scheme, transport in (("redis", Transport), ("rediss", Transport), ("sentinel", SentinelTransport)):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{transport.__name__}"
