"""Whoever waits for a job is not lost when nothing happens, nor when Redis is away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import fakeredis
import pytest
import redis
from kombu.exceptions import OperationalError

from layerfarm.jobs.errors import FarmUnreachable, JobFailed, JobTimeout
from layerfarm.worker.broker.address import Address
from layerfarm.worker.client import Job
from layerfarm.worker.model import JobState, Progress
from layerfarm.worker.watching import Watch
from tests.unit.jobstore.stores import CLOSE, Bench, Clock, redis_store, unit

QUIET = Progress(JobState.RUNNING, "toy")
DONE = Progress(JobState.SUCCEEDED, "toy")


class Quiet:
    """A farm in which a job does nothing for a while; ``look`` is what the second look comes to."""

    look_every = 0.0
    address = Address("redis://localhost")

    def __init__(self, rounds: int, look: Any = lambda job_id: None) -> None:
        self.rounds = rounds
        self.store = self
        self.recovery = SimpleNamespace(look_at=look)

    def workers(self) -> list[str]:
        return ["one"]

    def progress(self, job_id: str) -> tuple[str, Progress]:
        return "0", QUIET

    def events(self, job_id: str, after: str, block: float) -> list[tuple[str, Progress]]:
        self.rounds -= 1
        return [] if self.rounds > 0 else [("1", DONE)]


class Busy(fakeredis.FakeRedis):
    """A Redis whose job advances by one of ``steps`` before this client reads anything but events."""

    steps: Iterator[Callable[[], None]] = iter(())

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] != "XREAD":
            self._step()
        return super().execute_command(*args, **options)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Any:
        self._step()
        return super().pipeline(transaction, shard_hint)

    def _step(self) -> None:
        next(self.steps, lambda: None)()


def watch(farm: Quiet, heartbeat: float | None = None) -> list[Progress]:
    return list(Watch(farm, "job", None, heartbeat).run())  # type: ignore[arg-type]


def test_without_a_heartbeat_only_events_are_yielded() -> None:
    assert watch(Quiet(5)) == [QUIET, DONE]


def test_with_one_the_caller_is_asked_again_and_again_whether_it_still_wants_to_wait() -> None:
    assert watch(Quiet(5), heartbeat=0.01) == [QUIET] * 5 + [DONE]


def test_progress_never_goes_back_while_the_job_advances_between_two_reads() -> None:
    server = fakeredis.FakeServer()
    bench = Bench(redis_store(fakeredis.FakeRedis(server=server, decode_responses=True)), Clock())
    bench.opened(8)

    def two_units(first: int) -> None:
        bench.done(unit(first))
        bench.done(unit(first + 1))

    def end() -> None:
        bench.store.end("job", JobState.FAILED)
        bench.store.closed(bench.claimed(CLOSE))

    watcher = Busy(server=server, decode_responses=True)
    watcher.steps = iter([*(partial(two_units, first) for first in (0, 2, 4, 6)), end])
    farm = Quiet(0)
    farm.store = redis_store(watcher)  # type: ignore[assignment]
    found = watch(farm, heartbeat=0.001)
    done = [each.units_done for each in found]
    assert done == sorted(done)
    assert {2, 4, 6, 8} <= set(done) and found[-1].state is JobState.FAILED


def test_events_of_a_retry_that_came_at_once_are_not_those_of_the_job_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    farm = Quiet(1)
    failed = Progress(JobState.FAILED, "toy", stage_number=2)
    monkeypatch.setattr(farm, "events", lambda *_: [("1", failed), ("2", QUIET), ("3", DONE)])
    assert watch(farm) == [QUIET, failed]


def test_broker_that_refuses_the_second_look_is_tolerated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfarm.worker.watching.time.sleep", lambda seconds: None)

    def full(job_id: str) -> None:
        raise OperationalError("max number of clients reached")

    found = watch(Quiet(5, full))
    assert found[-1] == DONE
    assert "does not answer" in str(found[1].notice)


def test_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 30))
    monkeypatch.setattr("layerfarm.worker.watching.time.sleep", lambda seconds: None)
    monkeypatch.setattr("layerfarm.worker.watching.time.monotonic", lambda: float(next(clock)))

    def full(*_: object) -> None:
        raise redis.ConnectionError("max number of clients reached")

    farm = Quiet(10_000)
    monkeypatch.setattr(farm, "events", full)
    with pytest.raises(FarmUnreachable, match=r"gave up waiting for job job.*max number of clients reached"):
        watch(farm)


def test_a_time_limit_names_the_job_and_how_to_follow_it() -> None:
    with pytest.raises(JobTimeout, match=r"in time: job \(it may still run: .* jobs watch job"):
        list(Watch(Quiet(10_000), "job", 0.01).run())  # type: ignore[arg-type]


@pytest.mark.parametrize(("age", "nap"), [(0.0, 0.0), (1.0, 0.02), (60.0, 0.1)])
def test_a_job_of_which_only_the_end_is_awaited_is_looked_at_less_often_the_longer_it_takes(
    age: float, nap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    farm, naps, now = Quiet(0), list[float](), [0.0]
    monkeypatch.setattr("layerfarm.worker.client.time.sleep", naps.append)
    monkeypatch.setattr("layerfarm.worker.client.time.monotonic", lambda: now[0])
    states = iter((JobState.RUNNING, JobState.FAILED))
    monkeypatch.setattr(farm, "job", lambda job_id: SimpleNamespace(state=next(states), error=None), raising=False)
    events = iter((QUIET, QUIET, DONE))
    monkeypatch.setattr(farm, "events", lambda *_: [("1", next(events))])
    job = Job(farm, "job")  # type: ignore[arg-type]
    now[0] = age
    with pytest.raises(JobFailed):
        job.result()
    assert naps == [nap] * 3
