"""The sandbox of a worker's units: access to the roots, the stores and Redis, and nothing else.

Each process of the pool enters it before its first unit, and never leaves. By Landlock it may use the worker's roots
and stores and a temporary directory of its own, read the system's programs and libraries, and connect to Redis. It
keeps only root's powers needed for layers, or becomes another user (``layerfarm.worker.security.privileges``).
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog

from layerfarm.jobs.errors import RequestError
from layerfarm.worker.broker.connection import ports_behind
from layerfarm.worker.security import landlock, privileges
from layerfarm.worker.settings import Settings

_SYSTEM: Final = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/proc")
"""Readable. Landlock protects other processes' files in /proc by its rule about ptrace(2)."""
_NAMES: Final = (
    "hosts",
    "resolv.conf",
    "nsswitch.conf",
    "host.conf",
    "gai.conf",
    "services",
    "localtime",
    "ssl",
    "pki",
)
"""Files of /etc that are read to find and trust the host of Redis. The others, such as shadow, stay closed."""
_OTHERS: Final = ("passwd", "group", "ld.so.cache")
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_TRACES: Final = (4317, 4318)
"""Default ports of OpenTelemetry's collector."""

_log = structlog.get_logger()


@dataclass(frozen=True)
class Sandbox:
    """The sandbox of one worker. Created in its main process, entered in each of the pool."""

    settings: Settings
    temporary: Path
    confined: bool
    """Landlock is used."""
    _entered: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """The files of the host that the process may read, as they were when it entered."""

    def enter(self) -> None:
        """Enter the sandbox.

        Raises:
            OSError: the kernel's error.
        """
        settings = self.settings
        tempfile.tempdir = str(self.temporary)
        # Trees of base images are cached for as long as the worker runs; untrusted units cannot reach the user's cache.
        os.environ["XDG_CACHE_HOME"] = str(self.temporary)
        if settings.unit_memory_limit:
            resource.setrlimit(resource.RLIMIT_DATA, (settings.unit_memory_limit, settings.unit_memory_limit))
        privileges.give_up(privileges.user_of(settings.user) if settings.user else None)
        if self.confined:
            writable = [*settings.roots, *settings.stores, self.temporary, *map(Path, _DEVICES)]
            if settings.metrics:
                writable.append(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
            landlock.restrict(_readable(settings), writable, _ports(settings))
            self._entered.update(_identities(settings))

    def is_outdated(self) -> bool:
        """Return True if a file was replaced since, as DHCP does with resolv.conf and cert-manager with certificates.

        Landlock's rules apply to files, not to names: this process cannot read the new file, the next one can.
        """
        return self.confined and _identities(self.settings) != self._entered


@contextmanager
def sandbox(settings: Settings) -> Iterator[Sandbox]:
    """Yield the sandbox of a worker; its temporary directory is removed at the end.

    Raises:
        RequestError: the settings require one that this machine does not support, or a user that does not exist.
    """
    user = privileges.user_of(settings.user) if settings.user else None
    confined = settings.sandbox != "off" and landlock.version() > 0
    if settings.sandbox == "require" and not confined:
        raise RequestError("this kernel has no Landlock", hint="LAYERFARM_SANDBOX=auto works without it")
    if not confined:
        _log.warning("units run without a sandbox", kernel=os.uname().release, asked=settings.sandbox)
    temporary = Path(tempfile.mkdtemp(prefix="layerfarm-worker-"))
    try:
        if user is not None and os.geteuid() == 0:
            os.chown(temporary, user.pw_uid, user.pw_gid)
        place = Sandbox(settings, temporary, confined)
        _try(place)
        yield place
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _try(place: Sandbox) -> None:
    """Enter it once in a separate process, so that a failure shows at the start.

    Raises:
        RequestError: it cannot be entered.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            place.enter()
        except BaseException as error:
            os.write(writer, str(error).encode()[:1000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read().decode(errors="replace")
    os.waitpid(child, 0)
    if told:
        hint = "see LAYERFARM_SANDBOX and LAYERFARM_USER"
        raise RequestError(f"the sandbox for units cannot be entered: {told}", hint=hint)


def _readable(settings: Settings) -> list[Path]:
    # Not the current directory, which `python -m layerfarm.worker` puts into sys.path: it may be any.
    python = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path} - {"", str(Path.cwd())}
    ours = str(Path(__file__).resolve().parents[2])
    return [Path(path) for path in (*_SYSTEM, *python, ours, *_certificates(settings))] + [
        Path("/etc", name) for name in (*_NAMES, *_OTHERS)
    ]


def _identities(settings: Settings) -> dict[Path, tuple[int, int]]:
    found = {}
    for path in (*(Path("/etc", name) for name in _NAMES), *map(Path, _certificates(settings))):
        with suppress(OSError):
            status = path.stat()
            found[path] = status.st_dev, status.st_ino
    return found


def _certificates(settings: Settings) -> list[str]:
    query = settings.address.query
    return [query[name] for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile") if name in query]


def _ports(settings: Settings) -> set[int]:
    """Return the port of Redis, none at a socket of this machine; and that of the collector of traces, if used.

    Behind sentinels: their ports, and those of the servers that they know now.
    """
    ports = {port for _, port in settings.address.hosts} | ports_behind(settings.address)
    if settings.traces:
        told = [value for name, value in os.environ.items() if name.startswith("OTEL_EXPORTER_OTLP") and "://" in value]
        ports.update(urlsplit(url).port or (443 if url.startswith("https") else 80) for url in told)
        ports.update(_TRACES)
    return ports
