"""Checks that the farm's Redis loses no job. They need only the rights of the farm's own user."""

from __future__ import annotations

import ipaddress
import statistics
import time
from collections.abc import Iterator
from typing import Any, Final, cast

import redis

from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.connection import clock_offset
from layerfarm.worker.doctor.finding import Finding, clock, expect, fail, ok, warn
from layerfarm.worker.jobstore.keys import Keys

_TOPIC: Final = "redis"
_OLDEST: Final = (6, 2)
"""The oldest version that the tests run with."""
_PINGS: Final = 9
_SLOW: Final = 0.010
"""Seconds for one answer: a unit sends some ten requests."""
_FULL: Final = 0.8
"""Fraction of ``maxmemory``."""


def examine_redis(client: redis.Redis, keys: Keys, address: Address) -> Iterator[Finding]:
    """Check the Redis of the farm.

    Raises:
        redis.RedisError: it went away.
    """
    info = client.info()
    yield _version(info)
    yield _latency(client)
    yield from _memory(info)
    yield from _persistence(info)
    if info.get("role") == "slave":
        yield fail(_TOPIC, "is a replica, and takes no writes", "let the address lead to the primary")
    yield _transport(address)
    advice = "synchronize the clocks by NTP; the farm itself uses only that of Redis"
    yield clock(clock_offset(client), _TOPIC, "this machine's clock and that of Redis", advice)
    refused = int(cast("Any", client.get(keys.refused)) or 0)
    if refused:
        yield warn(
            _TOPIC,
            f"refused messages that a layerfarm client does not send: {refused}",
            "another program writes to this Redis: see 'message refused' in the workers' logs",
        )


def _version(info: dict[str, Any]) -> Finding:
    text = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) if part.isdigit() else 0 for part in text.split("."))
    if numbers < _OLDEST:
        return fail(_TOPIC, f"version {text}", f"upgrade to {'.'.join(map(str, _OLDEST))} or newer")
    return ok(_TOPIC, f"version {text}")


def _latency(client: redis.Redis) -> Finding:
    seconds = []
    for _ in range(_PINGS):
        begun = time.monotonic()
        client.ping()
        seconds.append(time.monotonic() - begun)
    typical = statistics.median(seconds)
    advice = "small units will wait for it longer than they work: move it closer to the workers"
    return expect(typical <= _SLOW, _TOPIC, f"answers in {typical * 1000:.1f} ms", advice)


def _memory(info: dict[str, Any]) -> Iterator[Finding]:
    policy, most, used = info.get("maxmemory_policy"), int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if policy != "noeviction":
        yield fail(_TOPIC, f"maxmemory-policy is {policy}", "set maxmemory-policy noeviction, or queued jobs vanish")
    else:
        yield ok(_TOPIC, "maxmemory-policy is noeviction")
    if not most:
        yield warn(_TOPIC, "maxmemory is not set", "set it below the machine's memory: Redis then refuses writes")
    elif used > _FULL * most:
        yield warn(
            _TOPIC, f"{used * 100 // most} % of maxmemory are used", "raise maxmemory; when it is full, all jobs stop"
        )
    else:
        yield ok(_TOPIC, f"{used >> 20} of {most >> 20} MiB are used")


def _persistence(info: dict[str, Any]) -> Iterator[Finding]:
    if not info.get("aof_enabled"):
        yield warn(_TOPIC, "keeps no append-only file", "set appendonly yes, or a restart loses all jobs")
    elif info.get("aof_last_write_status") != "ok":
        yield fail(_TOPIC, "cannot write its append-only file", "check its disk: a restart would lose jobs")
    else:
        yield ok(_TOPIC, "keeps an append-only file")


def _transport(address: Address) -> Finding:
    if address.is_socket:
        return ok(_TOPIC, "is reached by a socket of this machine")
    if address.is_tls:
        return ok(_TOPIC, "is reached through TLS")
    if all(_is_loopback(host) for host, _ in address.hosts):
        return ok(_TOPIC, "is reached on this machine")
    return warn(_TOPIC, "password and jobs are sent unencrypted", "use rediss://, see docs/operating.md#redis-over-tls")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
