"""The heartbeat of a process: claims stay alive, progress is reported, a cancel is noticed, and no error ends it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from layerfarm.jobs.errors import JobCancelled
from layerfarm.worker.engine.heartbeat import HandedBack, Heartbeat, Watched
from layerfarm.worker.jobstore.model import Claim, Status
from layerfarm.worker.model import JobState
from tests.explorer.memory_store import MemoryJobStore
from tests.unit.jobstore.stores import ONE, Bench, Clock, unit


class Store(MemoryJobStore):
    """Fails as often as ``fails`` says."""

    fails = 0

    def beat(self, claim: Claim, nbytes: int) -> Status:
        if self.fails:
            self.fails -= 1
            raise MemoryError
        return super().beat(claim, nbytes)


@pytest.fixture
def store() -> Store:
    return Store(Clock())


@contextmanager
def beating(store: Store, stopping: Callable[[], bool] = bool, indexes: int = 1) -> Iterator[tuple[Bench, Heartbeat]]:
    bench = Bench(store, Clock())
    bench.opened()
    yield bench, Heartbeat(store, interval=0.02, stopping=stopping)


def test_observer_learns_of_a_cancel(store: Store) -> None:
    with beating(store) as (bench, heart), heart.watching(bench.claimed(unit(0), ONE)) as observer:
        observer.advanced(4)
        _until(lambda: store.job("job").bytes_done == 4)
        store.end("job", JobState.CANCELLED)
        with pytest.raises(JobCancelled, match="job is ending"):
            _until(lambda: observer.advanced(0))


def test_observer_learns_that_the_worker_stops(store: Store) -> None:
    with (
        beating(store, stopping=lambda: True) as (bench, heart),
        heart.watching(bench.claimed(unit(0), ONE)) as observer,
        pytest.raises(HandedBack),
    ):
        _until(lambda: observer.advanced(0))


def test_heart_watches_one_item_after_the_other(store: Store) -> None:
    with beating(store) as (bench, heart):
        for index in range(3):
            with heart.watching(bench.claimed(unit(index), ONE)) as observer:
                observer.advanced(2)
                _until(lambda done=2 * index + 2: store.job("job").bytes_done == done)  # type: ignore[misc]
            time.sleep(0.05)


def test_no_error_ends_the_heartbeat(store: Store) -> None:
    with beating(store) as (bench, heart), heart.watching(bench.claimed(unit(0), ONE)) as observer:
        store.fails = 3
        observer.advanced(6)
        _until(lambda: store.job("job").bytes_done == 6)


def test_loser_of_a_claim_is_notified(store: Store) -> None:
    with beating(store) as (bench, _):
        claim = bench.claimed(unit(0), ONE)
        watched = Watched(claim)
        store.release(claim)
        watched.tell(store)
        with pytest.raises(JobCancelled, match="another worker"):
            watched.advanced(1)


def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
