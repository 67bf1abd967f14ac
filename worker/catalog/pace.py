"""Count the requests to registries, and limit their rate."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Final

_SENT: Final = re.compile(rb'level=debug msg="(GET|HEAD|POST|PUT|PATCH|DELETE) https?://')
"""Log line of skopeo for a request, with ``--debug``."""
_NO_ANSWER: Final = re.compile(rb'level=debug msg="Ping https?://\S+ err ')
"""Log line for a first request that found no registry, usually HTTPS to an HTTP server."""


class Pace:
    """Counts and limits the requests of all threads together.

    The requests of one transfer follow one another without a pause; later ones wait longer for it.
    """

    def __init__(self, per_minute: int | None) -> None:
        self._step = 60.0 / per_minute if per_minute else 0.0
        self._lock = threading.Lock()
        self._next = 0.0
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """Requests sent so far, by method."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def wait(self) -> None:
        """Wait for the turn of the next request."""
        if not self._step:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._step
        time.sleep(begin - now)

    def sent(self, methods: Iterable[str]) -> None:
        """Count requests sent after one :meth:`wait` for the first of them."""
        with self._lock:
            before = self._counts.total()
            self._counts.update(methods)
            more = self._counts.total() - before - 1
            if self._step and more > 0:
                self._next = max(self._next, time.monotonic()) + more * self._step


def requests_in(log: bytes) -> list[str]:
    """Return the methods of the requests in skopeo's log, without those that found no registry."""
    methods = [method.decode() for method in _SENT.findall(log)]
    for _ in _NO_ANSWER.findall(log):
        methods.remove("GET")
    return methods
