"""The Redis server that tests start: ``LAYERFARM_TEST_REDIS``, a path or a name on PATH; without it, the wheel's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from layerfarm.worker.embedded import wheel_server

_TLS = b"SSL_CTX_new"
"""A function of OpenSSL that a server with TLS calls; the wheel's server is built without."""


def server() -> Path:
    """The server that the farm is tested with."""
    named = os.environ.get("LAYERFARM_TEST_REDIS")
    if not named:
        return wheel_server()
    found = shutil.which(named)
    assert found is not None, f"LAYERFARM_TEST_REDIS is no program: {named}"
    return Path(found)


def server_with_tls() -> Path:
    """That server, or else the first one on PATH that was built with TLS."""
    on_path = filter(None, map(shutil.which, ("valkey-server", "redis-server")))
    for found in (server(), *map(Path, on_path)):
        if _TLS in found.read_bytes():
            return found
    raise AssertionError("no Redis server with TLS on PATH: install redis-server or valkey-server")
