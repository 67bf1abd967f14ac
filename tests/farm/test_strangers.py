"""Strangers are refused: on the wire, by their messages; and a user of Redis may see and do only so much."""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import redis
from certificates import certificates
from ground import Ground, stop, until
from toy_flow import ToyRequest, ToyResult

from layerfarm.jobs.errors import FarmUnreachable
from layerfarm.worker.client import Farm
from layerfarm.worker.doctor import Level, examine
from layerfarm.worker.jobstore.keys import Keys
from tests.redis_server import server_with_tls

KEYS = Keys()

ACL = (
    "~layerfarm:* &* -@all +@read +@write +@connection +@scripting +@pubsub +@transaction +time -@dangerous +keys +info"
)
"""Rights that deploy/redis/redis.conf gives a user of the farm."""


class Guarded(NamedTuple):
    """A Redis with TLS, a user with few rights, and nothing without a password."""

    url: str
    authority: Path
    directory: Path
    server: subprocess.Popen[bytes]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    authority = certificates(tmp_path, "server", "127.0.0.1", "IP:127.0.0.1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    configuration = tmp_path / "redis.conf"
    configuration.write_text(
        f'port 0\ntls-port {port}\nbind 127.0.0.1\nsave ""\ndir {tmp_path}\n'
        f"tls-cert-file {tmp_path}/server.crt\ntls-key-file {tmp_path}/server.key\ntls-ca-cert-file {authority}\n"
        f"tls-auth-clients no\nuser default off\nuser farm on >s3cret-w0rd {ACL}\n"
    )
    server = subprocess.Popen([server_with_tls(), configuration], stdout=(tmp_path / "redis.log").open("wb"))
    url = f"rediss://farm:s3cret-w0rd@127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={authority}"
    try:
        until(lambda: "Ready to accept connections" in (tmp_path / "redis.log").read_text())
        yield Guarded(url, authority, tmp_path, server)
    finally:
        stop(server)


def test_farm_works_through_tls_with_a_user_of_few_rights(guarded: Guarded) -> None:
    allowed = guarded.directory / "allowed"
    allowed.mkdir()
    environment = {
        "LAYERFARM_FARM": guarded.url,
        "LAYERFARM_ROOTS": str(allowed),
        "LAYERFARM_STORES": str(allowed),
        "LAYERFARM_FLOWS": "toy_flow",
        "LAYERFARM_CONCURRENCY": "2",
        "LAYERFARM_LOG_LEVEL": "debug",
        "PYTHONPATH": str(Path(__file__).parent),
    }
    log = guarded.directory / "worker.log"
    with ExitStack() as stack:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "layerfarm.worker"],
            env=os.environ | environment,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )
        stack.callback(stop, worker)
        farm = stack.enter_context(Farm(guarded.url))
        until(lambda: worker.poll() is not None or farm.workers())
        assert worker.poll() is None, log.read_text()
        job = farm.submit(ToyRequest(directory=allowed, numbers=6))
        assert job.result(90) == ToyResult(total=45)
        failed = farm.submit(ToyRequest(directory=allowed, trouble="bug"))
        until(lambda: failed.record().state.final)
        # The doctor looks through the same user's eyes.
        found = list(examine(farm, ()))
        assert "is reached through TLS" in [finding.what for finding in found if finding.level is Level.OK]
        assert [finding.what for finding in found if finding.level is Level.FAIL] == []
        processes = [psutil.Process(worker.pid), *psutil.Process(worker.pid).children(recursive=True)]
        shown = [" ".join(process.cmdline()) for process in processes]
        seen = json.dumps([record.model_dump(mode="json") for record in farm.jobs()]) + repr(farm.workers())
    assert "s3cret" not in "".join([*shown, seen, log.read_text()])


def test_farm_user_can_do_nothing_but_the_farms_work(guarded: Guarded) -> None:
    with redis.Redis.from_url(guarded.url) as client:
        for command in (("CONFIG", "GET", "*"), ("FLUSHALL",), ("SHUTDOWN",), ("ACL", "LIST"), ("SET", "other", "1")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command)


@pytest.mark.parametrize("wrong", ["password", "nobody", "authority", "plain"])
def test_stranger_is_refused_and_no_password_is_shown(guarded: Guarded, wrong: str, tmp_path: Path) -> None:
    url = guarded.url
    if wrong == "password":
        url = url.replace("s3cret-w0rd", "gu3ssed-w0rd")
    elif wrong == "nobody":
        url = url.replace("farm:s3cret-w0rd@", "")
    elif wrong == "authority":
        other = tmp_path / "other"
        other.mkdir()
        url = url.replace(str(guarded.authority), str(certificates(other, "server", "127.0.0.1", "IP:127.0.0.1")))
    else:
        url = url.replace("rediss://", "redis://").partition("?")[0]
    with pytest.raises(FarmUnreachable) as caught:
        Farm(url)
    assert "w0rd" not in str(caught.value)


# --- a queue full of strangers' messages -------------------------------------------------------------

COUNT = int(os.environ.get("STRANGE_MESSAGES", "400"))
"""``make torture`` sends 10,000."""


def test_strangers_messages_reach_no_task_and_kill_no_worker(ground: Ground) -> None:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    rng = random.Random(seed)
    worker = ground.start_worker()
    pool = {process.pid for process in psutil.Process(worker.pid).children()}
    farm = ground.farm()
    # A real message of a job, to mutate.
    stopped = ground.farm(queue="nobody-listens")
    stopped.submit(ToyRequest(directory=ground.allowed)).cancel()
    client = redis.Redis.from_url(f"unix://{ground.directory}/redis.sock")
    silent = Keys("nobody-listens").broker + "nobody-listens.start"
    original = client.lrange(silent, 0, 0)[0]
    client.delete(silent)
    queues = [KEYS.broker + name for name in farm._settings.queues]
    for number in range(COUNT):
        client.lpush(rng.choice(queues), _strange(rng, json.loads(original), number))
    until(lambda: not any(client.llen(queue) for queue in queues), timeout=120)

    # Each is counted, none did anything, and who works is who worked before.
    until(lambda: int(client.get(KEYS.refused) or 0) == COUNT, timeout=30)
    assert worker.poll() is None, f"SEED={seed}"
    assert {process.pid for process in psutil.Process(worker.pid).children()} == pool, f"SEED={seed}"
    assert farm.submit(ToyRequest(directory=ground.allowed)).result(90) == ToyResult(total=18)
    assert ground.marks("begin") == 1
    # A message is acknowledged when its work is done, which the result does not wait for.
    until(lambda: client.hlen(KEYS.broker + "unacked") == 0)


def _strange(rng: random.Random, message: dict[str, Any], number: int) -> bytes:
    """A message that no client of layerfarm sends."""
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randrange(200))
        case 1:
            return json.dumps(rng.choice([None, 1, [], {}, "x", {"body": 1}, {"headers": {}}])).encode()
        case 2:
            message["headers"]["task"] = rng.choice(["os.system", "layerfarm.unheard", "", None, "celery.chord"])
        case 3:
            strange = rng.choice([{}, {"job": "../../x"}, {"job": 1, "stage": 0}, {"job": "aa", "stage": "0"}])
            message["body"] = _body([[], strange, {}])
        case 4:
            message["content-type"] = rng.choice(["application/x-python-serialize", "application/x-yaml", "x", None])
        case _:
            message["body"] = rng.choice(
                [_body([[1, 2], {}, {}]), _body("x"), "%%%", base64.b64encode(b"\xff").decode()]
            )
    return json.dumps(message).encode()


def _body(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()
