"""Effects of layerfarm on a program that imports its client, and on Celery's own tools."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_LOOK = """
import kombu.transport.redis, kombu.transport.virtual, redis, redis.client, redis.connection, redis.retry
modules = (redis, redis.client, redis.connection, redis.retry, kombu.transport.redis, kombu.transport.virtual)
def seen():
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            found[module.__name__, name] = id(value)
            if isinstance(value, type):
                found |= {(module.__name__, name, member): id(each) for member, each in vars(value).items()}
    return found
before = seen()
import layerfarm.worker.client, layerfarm.worker.broker.app, layerfarm.worker.broker.messages
after = seen()
print(sorted(str(key) for key in before if before[key] != after.get(key) and key[-1] != "__abstractmethods__"))
"""


def test_importing_the_client_changes_no_library() -> None:
    ran = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_celery_makes_no_worker_that_throws_our_messages_away(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "layerfarm.worker.celery_app", "worker", "--pool", "solo"]
    environment = os.environ | {"LAYERFARM_FARM": f"unix://{tmp_path}/nobody"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == "layerfarm: start workers with `layerfarm worker`, see docs/farm.md"
