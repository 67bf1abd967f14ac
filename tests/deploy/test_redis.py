"""deploy/redis: a real server starts with it, and a farm works with the rights that it gives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from layerfarm.jobs.errors import FarmUnreachable, JobTimeout
from layerfarm.jobs.flows.requests import BuildRequest, ImageRef
from layerfarm.jobs.store import Layout
from layerfarm.worker.background.registry import WorkerInfo
from layerfarm.worker.client import Farm
from layerfarm.worker.doctor import examine
from layerfarm.worker.doctor.views import examine_views
from layerfarm.worker.jobstore.in_redis import RedisJobStore
from layerfarm.worker.model import JobState
from layerfarm.worker.settings import Settings
from tests import redis_server
from tests.unit.jobstore.stores import CLOSE, Bench, Clock, unit


@pytest.fixture
def server(deploy: Path, tmp_path: Path) -> Iterator[str]:
    """A server as an operator starts it, on a private socket; the URL of the farm's user."""
    users = (deploy / "redis/users.acl").read_text().replace("CHANGE-ME", "s3cret")
    (tmp_path / "users.acl").write_text(users.replace("user operator off", "user operator on >0perator"))
    # The directory is entered as soon as its line is read, whatever an option behind it says.
    configuration = (deploy / "redis/redis.conf").read_text().replace("dir /var/lib/redis\n", f"dir {tmp_path}\n")
    (tmp_path / "redis.conf").write_text(configuration)
    overrides = ["--port", "0", "--unixsocket", str(tmp_path / "s")]
    process = subprocess.Popen(
        [redis_server.server(), tmp_path / "redis.conf", *overrides, "--aclfile", tmp_path / "users.acl"],
        stdout=(tmp_path / "log").open("wb"),
    )
    url = f"unix://layerfarm:s3cret@{tmp_path}/s"
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with suppress(redis.RedisError):
                redis.Redis.from_url(url).ping()
                break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_nothing_is_evicted_and_everything_is_written_down(server: str, tmp_path: Path) -> None:
    client = redis.Redis.from_url(server)
    info = client.info("memory")
    assert info["maxmemory_policy"] == "noeviction" and info["maxmemory"] == 1 << 30
    persistence = client.info("persistence")
    assert persistence["aof_enabled"] == 1
    client.set("layerfarm:probe", "1")
    # A file up to Redis 6, a directory since.
    assert list(tmp_path.glob("appendonly*"))


def test_others_are_refused_and_the_farms_user_is_limited(server: str) -> None:
    with pytest.raises(redis.AuthenticationError):
        redis.Redis.from_url(server.replace("layerfarm:s3cret@", "")).ping()
    client = redis.Redis.from_url(server)
    for command in (
        ("CONFIG", "GET", "*"),
        ("FLUSHALL",),
        ("ACL", "LIST"),
        ("SET", "other", "1"),
        ("SHUTDOWN", "NOSAVE"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)


def test_a_farm_builds_with_these_rights(server: str, tmp_path: Path) -> None:
    (tmp_path / "roots/tree").mkdir(parents=True)
    (tmp_path / "roots/tree/file").write_text("content")
    command = str(Path(sys.executable).with_name("layerfarm"))
    environment = os.environ | {"LAYERFARM_FARM": server}
    subprocess.run([command, "init", "--layout", tmp_path / "store"], check=True)
    worker = subprocess.Popen(
        [command, "worker", "--root", tmp_path / "roots", "--store", tmp_path / "store", "--concurrency=1"],
        env=environment,
        stderr=(tmp_path / "worker.log").open("wb"),
    )
    try:
        done = subprocess.run(
            [command, "build", "--rootfs", tmp_path / "roots/tree", "--image", f"{tmp_path}/store:a"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert subprocess.run([command, "ping", "--this-host"], env=environment, capture_output=True).returncode == 0
        assert subprocess.run([command, "top", "--once"], env=environment, capture_output=True).returncode == 0
    finally:
        worker.terminate()
        worker.wait(30)
    gone = subprocess.run([command, "ping"], env=environment, capture_output=True, text=True)
    assert gone.returncode == 1 and "no worker is listening at" in gone.stderr and "s3cret" not in gone.stderr


@pytest.fixture
def operator(server: str) -> Iterator[Farm]:
    """The farm as its operator reaches it."""
    url = server.replace("layerfarm:s3cret", "operator:0perator")
    with Farm(url, Settings(look_every=0.1)) as farm:
        yield farm


@pytest.fixture
def bench(server: str) -> Bench:
    """The jobs of the farm, as a worker has them."""
    client = redis.Redis.from_url(server, decode_responses=True)
    return Bench(RedisJobStore(client, Settings()), Clock())


def kept_for_a_retry(bench: Bench) -> None:
    bench.store.end("job", JobState.FAILED)
    assert bench.store.keep(bench.claimed(CLOSE), 3600) == "ok"


def test_operator_can_run_every_command_that_operates_a_farm(
    operator: Farm, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerfarm.worker.doctor.views._PATIENCE", 0.0)
    bench.submit("queued")
    bench.opened(2)
    assert operator.census().jobs.total() == 2 and operator.workers() == []
    assert {record.id for record in operator.jobs()} == {"queued", "job"}
    assert "maxmemory-policy is noeviction" in [finding.what for finding in examine(operator, [])]
    absent = WorkerInfo.of_this_process(concurrency=1, roots=(), stores=(), kinds=())
    (view,) = examine_views(operator.client, operator.keys, Layout.create(tmp_path / "store").path, [absent])
    assert "did not answer" in view.what
    assert operator.job("queued").cancel()
    job = operator.job("job")
    with pytest.raises(JobTimeout):
        list(job.watch(timeout=1, heartbeat=0.1))
    bench.done(unit(0))
    kept_for_a_retry(bench)
    assert job.retry()
    kept_for_a_retry(bench)
    assert job.discard()
    assert not job.retry(restart=True)
    assert job.cancel()
    assert job.record().ending is JobState.CANCELLED
    assert operator.client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_operator_is_refused_everything_else(operator: Farm, tmp_path: Path) -> None:
    request = BuildRequest(rootfs=tmp_path, image=ImageRef(store=Layout.create(tmp_path / "store").path, tag="a"))
    with pytest.raises(FarmUnreachable, match=r"permission|can't run this command"):
        operator.submit(request)
    assert operator.jobs() == [] and operator.census().jobs.total() == 0, "nothing of the refused job is left"
    for command in (
        ("SET", "other", "1"),
        ("GET", "other"),
        ("RPUSH", "layerfarm:waiting:bulk:me", "job"),
        ("HSETNX", "layerfarm:job:job", "request", "{}"),
        ("APPEND", "layerfarm:work:a", "1"),
        ("RENAME", "layerfarm:jobs", "layerfarm:gone"),
        ("EVAL", "return 1", "0"),
        ("PUBLISH", "layerfarm:", "1"),
        ("KEYS", "*"),
        ("FLUSHALL",),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("ACL", "LIST"),
        ("SCRIPT", "FLUSH"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("SHUTDOWN", "NOSAVE"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            operator.client.execute_command(*command)


def test_operator_has_no_access_until_a_password_is_set(deploy: Path) -> None:
    users = [line.split() for line in (deploy / "redis/users.acl").read_text().splitlines()]
    (rules,) = [rules for _, name, *rules in users if name == "operator"]
    assert rules[0] == "off" and not [rule for rule in rules if rule.startswith((">", "#", "nopass"))]
