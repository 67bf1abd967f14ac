"""Both job stores, with a clock that the test sets."""

from __future__ import annotations

import time
from collections.abc import Iterator

import fakeredis
import pytest

from tests.explorer.memory_store import MemoryJobStore
from tests.unit.jobstore.stores import Bench, Clock, redis_store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    return clock


@pytest.fixture
def client(clock: Clock) -> Iterator[fakeredis.FakeRedis]:
    with fakeredis.FakeRedis(decode_responses=True) as client:
        yield client


@pytest.fixture(params=["redis", "memory"])
def bench(request: pytest.FixtureRequest, clock: Clock) -> Bench:
    if request.param == "memory":
        return Bench(MemoryJobStore(clock), clock)
    return Bench(redis_store(fakeredis.FakeRedis(decode_responses=True)), clock)
