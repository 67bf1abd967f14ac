"""End of a worker whose grace period is over: it hands back what it can, and ends although Redis does not answer."""

from __future__ import annotations

import mmap
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from layerfarm.worker.background.shutdown import HANDING_BACK, Drain
from layerfarm.worker.jobstore.owner import owner_of
from tests.explorer.memory_store import MemoryJobStore
from tests.unit.jobstore.stores import Bench, Clock, unit


class Left(Exception):
    """The worker has ended."""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the pool that does not respond."""
    with subprocess.Popen(["sleep", "600"]) as child:
        yield child
        child.kill()


class Stopped:
    """A worker with one unit in its pool, at the end of its grace period."""

    def __init__(self, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
        clock = Clock()
        self.bench = Bench(MemoryJobStore(clock), clock)
        self.bench.opened()
        self.bench.claimed(unit(1), owner_of(child.pid))
        self.child = child
        self.sent: list[Any] = []
        self.send: Any = lambda items, traffic: self.sent.extend(items)
        self.monkeypatch = monkeypatch

    def ends(self) -> None:
        def leave(status: int) -> None:
            raise Left(status)

        self.monkeypatch.setattr("time.sleep", lambda seconds: None)
        self.monkeypatch.setattr("os._exit", leave)
        shared = mmap.mmap(-1, 1)
        sender: Any = self
        with pytest.raises(Left, match=r"^0$"):
            Drain(1, shared, self.bench.store, sender, lambda: [self.child.pid])._run()
        assert shared[0] == HANDING_BACK
        self.monkeypatch.undo()
        assert self.child.wait(10) == -signal.SIGKILL


@pytest.fixture
def stopped(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Stopped:
    return Stopped(child, monkeypatch)


def test_unit_of_a_process_that_does_not_respond_is_handed_back(stopped: Stopped) -> None:
    stopped.ends()
    assert stopped.sent == [unit(1)]
    stopped.bench.claimed(unit(1))


@pytest.mark.parametrize("error", [OperationalError("x"), redis.ConnectionError("x"), redis.ReadOnlyError("x")])
def test_worker_ends_although_the_unit_cannot_be_sent(stopped: Stopped, error: Exception) -> None:
    def send(items: Any, traffic: Any) -> None:
        raise error

    stopped.send = send
    stopped.ends()


def test_worker_ends_although_redis_does_not_answer(stopped: Stopped) -> None:
    def active() -> list[str]:
        raise redis.ConnectionError("x")

    stopped.monkeypatch.setattr(stopped.bench.store, "active", active)
    stopped.ends()
