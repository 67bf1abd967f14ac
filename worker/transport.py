"""kombu's Redis transport, with a lost connection that is reported as one.

kombu 5.7 closes the channels of a broken connection after it has forgotten the connection's
parameters; giving back or acknowledging a message then ends in an AttributeError, which Celery takes
for a bug: the whole worker stops instead of connecting again (kombu #582 is an older case of it).
"""

from __future__ import annotations

from typing import Any

import redis
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as kombu_redis


class Channel(kombu_redis.Channel):
    """Raises an error of the connection, which Celery's consumer answers by connecting again."""

    def _connparams(self, *args: Any, **kwargs: Any) -> Any:
        if self.connection is None or self.connection.client is None:
            raise redis.ConnectionError("the connection to Redis is closed")
        return super()._connparams(*args, **kwargs)  # type: ignore[no-untyped-call]


class Transport(kombu_redis.Transport):
    """The transport that uses it."""

    Channel = Channel


def use_in_this_process() -> None:
    """Let every Redis connection of this process have it: for a worker, whose process is its own."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
