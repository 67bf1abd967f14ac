"""Set-up of the farm's tests: a real Redis server on a private unix socket and real prefork workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import redis

from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.client import Farm, Job
from layerfarm.worker.model import JobState
from layerfarm.worker.security.kernel import die_with_parent
from layerfarm.worker.settings import Settings, load_settings
from tests.redis_server import server

HERE = Path(__file__).parent
_OTHER_VERSION = (
    "import sys; sys.path.insert(0, sys.argv[1]); from layerfarm.worker.__main__ import main; sys.exit(main())"
)


class Ground:
    """One Redis, as many workers as asked for, one allowed directory."""

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        *,
        durable: bool = False,
        redis_at: Sequence[str] = (),
        allowed: Path | None = None,
    ) -> None:
        """``redis_at``: the prefix of Redis' command, which then listens on port 6379 too.

        ``allowed``: that of another farm, which is then shared.
        """
        self.directory = directory
        self.allowed = allowed or directory / "allowed"
        self.allowed.mkdir(exist_ok=True)
        self.url = f"unix://{directory}/redis.sock"
        self._durable = durable
        self._redis_at = tuple(redis_at)
        self._stack = stack
        self._logs = 0
        self.redis = self.start_redis()

    def start_redis(self, name: str = "redis", port: int = 6379) -> subprocess.Popen[bytes]:
        """A server at the socket ``<name>.sock``, with its data, if they are kept, in a directory of that name."""
        data, socket = self.directory / name, self.directory / f"{name}.sock"
        data.mkdir(exist_ok=True)
        command = [*self._redis_at, str(server()), "--save", "", "--dir", str(data)]
        command += ["--port", str(port), "--protected-mode", "no"] if self._redis_at else ["--port", "0"]
        if self._durable:
            command += ["--appendonly", "yes", "--appendfsync", "everysec"]
        # One that was killed leaves it behind.
        socket.unlink(missing_ok=True)
        process = self.start([*command, "--unixsocket", str(socket)], {}, f"{name}.log")
        until(lambda: socket.exists() and _answers(f"unix://{socket}"))
        return process

    def settings(self, **values: object) -> Settings:
        return load_settings(farm=self.url, roots=(self.allowed,), stores=(self.allowed,), **values)

    def farm(self, **values: object) -> Farm:
        return self._stack.enter_context(Farm(settings=self.settings(**values)))

    def start_worker(
        self,
        *,
        at: Sequence[str] = (),
        extra: Mapping[str, str] | None = None,
        version: Path | None = None,
        **values: object,
    ) -> subprocess.Popen[bytes]:
        """A worker, once it listens; ``values`` are its settings, ``at`` is the prefix of its command.

        ``version``: the directory of another ``layerfarm`` than the one that is tested.
        """
        self._logs += 1
        environment = {
            "LAYERFARM_FARM": self.url,
            "LAYERFARM_ROOTS": str(self.allowed),
            "LAYERFARM_STORES": str(self.allowed),
            "LAYERFARM_FLOWS": "toy_flow",
            "LAYERFARM_CONCURRENCY": "2",
            # A failed job is cleaned up at once, as most tests expect; those of retry say otherwise.
            "LAYERFARM_RETRY_FOR": "0",
            "PYTHONPATH": os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", ""))),
        }
        environment |= {f"LAYERFARM_{name.upper()}": str(value) for name, value in values.items()}
        environment |= extra or {}
        farm = self.farm()  # one connection, however long it takes
        known = {info.pid for info in farm.workers()}
        module = ["-m", "layerfarm.worker"] if version is None else ["-c", _OTHER_VERSION, str(version)]
        process = self.start([*at, sys.executable, "-P", *module], environment, f"worker-{self._logs}.log")
        until(lambda: process.poll() is not None or {info.pid for info in farm.workers()} - known)
        assert process.poll() is None, self.log()
        return process

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.directory.glob("worker-*.log")))

    def marks(self, name: str) -> int:
        """Number of times that the toy flow did ``name``."""
        return len(list(self.allowed.glob(f"{name}.*")))

    def start(self, command: list[str], environment: dict[str, str], log: str) -> subprocess.Popen[bytes]:
        parent = os.getpid()
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=(self.directory / log).open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(parent),
        )
        self._stack.callback(stop, process)
        return process


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _answers(url: str) -> bool:
    with client_of(Address(url)) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def until(condition: Callable[[], object], timeout: float = 300.0) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out waiting"
        time.sleep(0.02)


def running(job: Job, units: int = 0) -> None:
    """Wait until the job is running and ``units`` of its units are done."""
    until(lambda: job.record().state is JobState.RUNNING and job.record().units_done >= units)
