"""Connections to the farm's Redis that fail soon, with an error that names what could not be reached."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError
from redis.retry import Retry
from redis.sentinel import Sentinel

from layerfarm.jobs.errors import FarmUnreachable, RequestError
from layerfarm.worker.broker.address import Address

CONNECT_TIMEOUT = 3.0
"""Seconds for one connection."""
SOCKET_TIMEOUT = 10.0
"""Seconds for one answer; longer than any blocking read."""
_PATIENCE = 4.5
"""Seconds until the first answer, including name resolution."""


class _SocketConnection(redis.UnixDomainSocketConnection):
    """Fixes redis-py, which asks a failed connection for host and port; the AttributeError would hide Redis' error."""

    host = port = None  # type: ignore[assignment]


def client_of(address: Address) -> redis.Redis:
    """Return a client that has not connected yet; its answers are text."""
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "health_check_interval": 30,
        "retry": RetryOnce(),
    }
    if address.is_sentinel:
        options |= address.login | address.tls | {"db": address.database}
        return cast("redis.Redis", _manager(address).master_for(address.service, redis.Redis, **options))
    if address.is_socket:
        options["connection_class"] = _SocketConnection
    return redis.Redis.from_url(address.for_redis, **options)


def _manager(address: Address) -> Any:
    return Sentinel(address.hosts, sentinel_kwargs=sentinel_options(address))  # type: ignore[no-untyped-call]


def sentinel_options(address: Address) -> dict[str, Any]:
    """Options of a connection to a sentinel."""
    timeouts = {"socket_timeout": CONNECT_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT}
    return address.sentinel_login | address.tls | timeouts


class RetryOnce(Retry):
    """Retry once on a new connection: Redis closed the old one, or it leads to the old primary after a failover.

    Scripts may run twice without harm.
    """

    def __init__(self) -> None:
        super().__init__(NoBackoff(), 1, (redis.ConnectionError, redis.TimeoutError, redis.ResponseError))

    def call_with_retry(self, do: Any, fail: Any, is_retryable: Any = None, with_failure_count: bool = False) -> Any:
        return super().call_with_retry(do, fail, is_retryable or _is_of_the_connection, with_failure_count)


def is_read_only(error: Exception) -> bool:
    """Return True if a replica refused a write. Before Redis 7, only the text of a script's error has the code."""
    cause = error.__cause__ or error
    return isinstance(cause, redis.ReadOnlyError) or "-READONLY " in str(cause)


def _is_of_the_connection(error: Exception) -> bool:
    return not isinstance(error, redis.ResponseError) or is_read_only(error)


def connect(address: Address) -> redis.Redis:
    """Return a client of a Redis that answers.

    Raises:
        FarmUnreachable: it does not answer within 5 seconds, refuses the login, or is older than Redis 6.
        RequestError: an option in the address is unknown or wrong.
    """
    client = client_of(address)
    outcome: list[Exception | None] = []

    def ping() -> None:
        try:
            client.ping()
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    # getaddrinfo(3) has no time limit, so the limit is enforced from outside.
    thread = threading.Thread(target=ping, daemon=True, name="layerfarm-ping")
    thread.start()
    thread.join(_PATIENCE)
    if not outcome:
        raise _unreachable(address, f"Redis does not answer (no answer within {_PATIENCE:.0f} s)")
    error = outcome[0]
    if error is not None:
        # redis-py begins with HELLO, which Redis 6 introduced.
        if "unknown command" in str(error) and "HELLO" in str(error):
            hint = "upgrade to Redis 6 or newer, or to Valkey"
            raise FarmUnreachable("this Redis is older than 6", where=address.masked, hint=hint)
        if isinstance(error, TypeError | ValueError):
            raise _wrong_option(address, error) from None
        raise _unreachable(address, _what(error)) from None
    return client


def _wrong_option(address: Address, error: Exception) -> RequestError:
    """Convert redis-py's answer to an option in the address that it does not know, or with a wrong value."""
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if found is None:
        return RequestError(f"wrong option in the address of the farm ({reason(error)})", where=address.masked)
    hint = "TLS needs rediss://" if found[1].startswith("ssl_") else "see redis-py for the options of a connection"
    return RequestError(f"unknown option {found[1]!r} in the address of the farm", where=address.masked, hint=hint)


@contextmanager
def reaching(address: Address) -> Iterator[None]:
    """Convert errors of redis-py and kombu to FarmUnreachable."""
    from kombu.exceptions import OperationalError

    try:
        yield
    except (redis.RedisError, OperationalError, OSError) as error:
        raise _unreachable(address, _what(error)) from None


def reason(error: BaseException) -> str:
    """Return the reason why Redis could not be reached, on one line."""
    if isinstance(error, redis.TimeoutError):
        return "no answer in time"
    text = str(error.__cause__ or error) if isinstance(error, redis.ConnectionError) else str(error)
    return " ".join(text.split()) or type(error).__name__


def _what(error: BaseException) -> str:
    """Return the text for ``error``: one that Redis itself answers with is no outage."""
    raised = (error, error.__cause__)
    if any(isinstance(each, redis.AuthenticationError | NoPermissionError) for each in raised):
        return f"Redis refuses the connection ({reason(error)})"
    if any(isinstance(each, redis.ResponseError) for each in raised):
        return f"Redis refuses a command ({reason(error)})"
    return f"Redis does not answer ({reason(error)})"


def _unreachable(address: Address, what: str) -> FarmUnreachable:
    return FarmUnreachable(what, where=address.masked, hint="see docs/troubleshooting.md#a-command-cannot-reach-redis")


def clock_offset(client: redis.Redis) -> float:
    """Return the seconds by which this machine's clock is ahead of that of Redis."""
    seconds, micros = client.time()
    return float(time.time() - (seconds + micros / 1e6))


def ports_behind(address: Address) -> set[int]:
    """Return the ports of the primary and the replicas that the sentinels know; none if no sentinel answers."""
    if not address.is_sentinel:
        return set()
    found: set[int] = set()
    manager = _manager(address)
    with suppress(redis.RedisError):
        found.add(int(manager.discover_master(address.service)[1]))
        found.update(int(port) for _, port in manager.discover_slaves(address.service))
    return found
