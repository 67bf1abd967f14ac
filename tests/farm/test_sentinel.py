"""A farm behind Redis Sentinel: it continues with the server that the sentinels make the primary."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis
from ground import Ground, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import FarmUnreachable
from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.connection import connect, ports_behind
from layerfarm.worker.model import JobState
from tests.redis_server import server

QUORUM = 2
CONFIGURATION = """
port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor farm 127.0.0.1 {primary} {quorum}
sentinel down-after-milliseconds farm 1000
sentinel failover-timeout farm 5000
"""


class Guarded:
    """A primary with a replica, and three sentinels that look after them."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        with ExitStack() as held:
            sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(5)]
            self.first, self.second, *sentinels = (each.getsockname()[1] for each in sockets)
        self.primary = self._server(self.first)
        self._server(self.second, "--replicaof", f"127.0.0.1 {self.first}")
        for port in sentinels:
            path = ground.directory / f"sentinel-{port}.conf"
            values = {"port": port, "directory": ground.directory, "primary": self.first, "quorum": QUORUM}
            path.write_text(CONFIGURATION.format(**values))
            ground.start([str(server()), str(path), "--sentinel"], {}, f"sentinel-{port}.log")
        self.url = "sentinel://" + ",".join(f"127.0.0.1:{port}" for port in sentinels) + "/farm/1"
        for port in sentinels:
            with redis.Redis(port=port, decode_responses=True) as sentinel:
                until(lambda sentinel=sentinel: self._is_ready(sentinel))

    def _server(self, port: int, *options: str) -> int:
        data = self._ground.directory / str(port)
        data.mkdir()
        command = [str(server()), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(data)]
        return self._ground.start([*command, *options], {}, f"redis-{port}.log").pid

    def _is_ready(self, sentinel: redis.Redis) -> bool:
        """It knows the replica, which is in step, and the other sentinels."""
        try:
            others = sentinel.sentinel_sentinels("farm")  # type: ignore[no-untyped-call]
            (replica,) = sentinel.sentinel_slaves("farm")  # type: ignore[no-untyped-call]
        except (redis.RedisError, ValueError):
            return False
        return len(others) == 2 and bool(replica["master-link-status"] == "ok") and not replica["is_sdown"]


def test_jobs_go_on_when_the_primary_is_killed_in_the_middle_of_them(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ground = Ground(tmp_path, stack)
        guarded = Guarded(ground)
        ground.url = guarded.url
        assert ports_behind(Address(guarded.url)) == {guarded.first, guarded.second}
        workers = [ground.start_worker(lease=3, look_every=1) for _ in range(2)]
        farm = ground.farm(look_every=1)
        jobs = [farm.submit(ToyRequest(directory=ground.allowed, numbers=8, sleep=0.5)) for _ in range(3)]
        watched = [job.watch() for job in jobs]
        for progress in watched:
            next(progress)
        until(lambda: ground.marks("run-0") and ground.marks("run-1"))
        os.kill(guarded.primary, signal.SIGKILL)
        for progress in watched:
            assert list(progress)[-1].state is JobState.SUCCEEDED
        assert [job.result(90) for job in jobs] == [ToyResult(total=3 * 28)] * 3
        assert farm.submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
        assert [worker.poll() for worker in workers] == [None, None]
        assert connect(Address(guarded.url)).info("replication")["role"] == "master"


def test_sentinels_that_do_not_know_the_name_are_reported(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ground = Ground(tmp_path, stack)
        url = Guarded(ground).url.replace("/farm/", "/another/")
        with pytest.raises(FarmUnreachable, match="No master found for 'another'"):
            connect(Address(url))
