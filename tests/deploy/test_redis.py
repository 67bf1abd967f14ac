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

from tests import redis_server


@pytest.fixture
def server(deploy: Path, tmp_path: Path) -> Iterator[str]:
    """A server as an operator starts it, on a private socket; the URL of the farm's user."""
    (tmp_path / "users.acl").write_text((deploy / "redis/users.acl").read_text().replace("CHANGE-ME", "s3cret"))
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
