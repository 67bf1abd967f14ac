"""The settings of a worker and of a client: from options, ``LAYERFARM_*`` in the environment, or the settings file.

The first of these that names a setting decides it. An unknown name is an error, so that a misspelt setting is not
ignored.
"""

from __future__ import annotations

import difflib
import getpass
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.flows.base import Policy
from layerfarm.jobs.limits import NAMES, limits, parse_number
from layerfarm.jobs.limits import PREFIX as LIMIT_PREFIX
from layerfarm.jobs.store.validation import fault
from layerfarm.worker.broker.address import Address
from layerfarm.worker.broker.priorities import Queues, Traffic
from layerfarm.worker.configuration import VARIABLE, SettingsFile, settings_file

PREFIX: Final = "LAYERFARM_"
_NOT_SETTINGS: Final = frozenset(
    (
        VARIABLE,
        "LAYERFARM_GC_GRACE",
        # For tests and their processes.
        "LAYERFARM_KILL_AT",
        "LAYERFARM_KILL_ONCE",
        "LAYERFARM_REQUIRE_ALL",
        "LAYERFARM_TEST_REDIS",
    )
)
"""Variables that are not settings: the default of a command's option, and those that only tests set."""


def _this_user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"[:100]


class Settings(BaseSettings):
    """Each field is also an environment variable, ``LAYERFARM_CONCURRENCY``, and a key of the settings file,
    ``concurrency``.

    Lists are lists in the file; in the environment they are separated by ``:`` as in PATH.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, populate_by_name=True)

    farm: SecretStr | None = None
    """Address of the farm's Redis. Secret, because it may contain a password."""
    roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Directories in which jobs may use root filesystems and bundles."""
    stores: Annotated[tuple[Path, ...], NoDecode] = ()
    """Layouts that jobs may use, or directories that contain such layouts."""
    concurrency: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    """Number of processes of a worker."""
    shards: int | None = Field(default=None, ge=1, le=4096)
    """Number of shards that a tree is split into. Changes the speed, not the bytes."""
    threads: int | None = Field(default=None, ge=1, le=256)
    """Number of threads of one unit; at most 8 processes also walk a large tree or read the files of a large layer."""
    queue: str = Field(default="layerfarm", pattern=r"^[A-Za-z0-9_-]+$")
    """Name of the farm and prefix of all its keys in Redis; equal on all workers and clients of the farm."""
    traffic: Traffic = Field(default=Traffic.INTERACTIVE, validation_alias="LAYERFARM_CLASS")
    """Class of submitted jobs: ``interactive`` or ``bulk``."""
    submitter: str = Field(default_factory=_this_user, pattern=r"^[\w.@+/-]{1,100}$")
    """Name of the submitter; queued jobs start in turns of their submitters."""
    most_queued: int = Field(default=10_000, ge=0)
    """Maximum number of queued jobs; further submissions fail or wait. 0: unlimited."""
    unit_time_limit: float = Field(default=3600, gt=0)
    """Seconds after which a unit fails."""
    job_time_limit: float = Field(default=24 * 3600, ge=0)
    """Seconds from its start after which a job fails. 0: unlimited."""
    job_bytes_limit: int = Field(default=0, ge=0)
    """Bytes that the units of a job may read or write, according to its plan, such as ``2T``. 0: unlimited."""
    unit_memory_limit: int = Field(default=0, ge=0)
    """Bytes of memory of one process with its unit (``RLIMIT_DATA``), such as ``2G``. 0: unlimited."""
    lease: float = Field(default=30, gt=0)
    """Seconds without a heartbeat after which another process takes over a unit."""
    deliveries: int = Field(default=3, ge=1)
    """Number of attempts of a unit whose process dies each time."""
    look_every: float = Field(default=5, gt=0)
    """Seconds between two searches for stuck jobs."""
    drain: float = Field(default=60, ge=0)
    """Seconds that a stopping worker gives its running units; then it returns them to the queue."""
    retry_for: float = Field(default=3600, ge=0)
    """Seconds for which the results and staged files of a failed job are kept for a retry. 0: not kept."""
    result_expires: float = Field(default=24 * 3600, gt=0)
    """Seconds for which the record of an ended job is kept."""
    job_expires: float = Field(default=7 * 24 * 3600, gt=0)
    """Seconds without progress after which the record and the leases of a job expire."""
    visibility_timeout: int = Field(default=900, gt=0)
    """Seconds after which the message of a vanished worker is delivered again; equal on all workers of a farm."""
    sandbox: Literal["auto", "require", "off"] = "auto"
    """Confine units to the roots, the stores and Redis. ``auto``: if the kernel supports Landlock."""
    user: str | None = None
    """User that the processes of the worker switch to before they run units."""
    key_file: Path | None = None
    """File with the key that signs requests. Without it requests are not signed."""
    keys: Path | None = None
    """Directory with one file of keys per submitter. With it a worker accepts signed requests only."""
    signature_valid: float = Field(default=24 * 3600, gt=0, le=7 * 24 * 3600)
    """Seconds for which a signature is valid; longer than jobs wait to start. Workers refuse longer ones."""
    flows: Annotated[tuple[str, ...], NoDecode] = ()
    """Python modules that add flows to ``layerfarm.jobs.flows.FLOWS`` when the worker imports them."""
    log_level: str = "info"
    """Log level of a worker: ``debug``, ``info``, ``warning``, ``error`` or ``critical``."""
    events: bool = False
    """Send Celery's events for Flower: three small messages per task."""
    metrics: str | None = None
    """``HOST:PORT`` at which a worker serves metrics for Prometheus. Without it no metrics are served."""
    traces: bool = False
    """Send traces with OTLP to ``OTEL_EXPORTER_OTLP_ENDPOINT``; needs ``layerfarm[traces]``."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = settings_file()
        values = {} if file is None else {_FIELDS[key]: value for key, value in file.values.items()}
        return init_settings, env_settings, InitSettingsSource(settings_cls, values)

    @field_validator("roots", "stores", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        items = value.split(os.pathsep) if isinstance(value, str) else list(value)
        for item in items:
            # An empty path would mean the current directory, and allow it by accident.
            if not str(item).strip():
                raise ValueError("empty path")
            if not Path(item).is_absolute():
                raise ValueError(f"path must be absolute: {item}")
        return tuple(items)

    @field_validator("job_bytes_limit", "unit_memory_limit", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        return parse_number(value) if isinstance(value, str) else value

    @field_validator("flows", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return tuple(name for name in value.split(os.pathsep) if name) if isinstance(value, str) else value

    @property
    def address(self) -> Address:
        """Address of the farm's Redis.

        Raises:
            RequestError: no farm is configured, or not by an address.
        """
        if self.farm is None or not self.farm.get_secret_value():
            raise RequestError("no farm is configured", hint="set LAYERFARM_FARM or name its Redis with --farm")
        return Address(self.farm.get_secret_value())

    @property
    def policy(self) -> Policy:
        """Policy of a worker with these settings; unlike in the local command, nothing is allowed by default."""
        return Policy(
            roots=self.roots,
            stores=self.stores,
            shards=self.shards or self.concurrency,
            threads=self.threads or os.cpu_count() or 1,
        )

    @property
    def queues(self) -> Queues:
        return Queues.of(self.queue)


@dataclass(frozen=True)
class Origin:
    """A setting and where its value came from."""

    name: str
    """As in the settings file."""
    value: str
    """As people read it; a password is masked."""
    source: str
    """``default``, the name of a variable, or the path of the settings file."""


def load_settings(**overrides: Any) -> Settings:
    """Return the settings; those in ``overrides`` that are not None take precedence.

    Raises:
        RequestError: one of them is unknown or out of range; the message names it and never its value if secret.
    """
    return _load(settings_file(), overrides)


def origins() -> list[Origin]:
    """Every setting of this process, sorted by name, with where it came from.

    Raises:
        RequestError: as :func:`load_settings`.
    """
    file = settings_file()
    settings = _load(file, {})
    return [Origin(key, _shown(getattr(settings, _FIELDS[key])), _source(key, file)) for key in sorted(_FIELDS)]


def limit_origins(of_file: frozenset[str] = frozenset()) -> list[Origin]:
    """Return the limits with their origins; ``of_file``: those that the settings file set (``apply_limits``)."""
    file = settings_file()
    rows = []
    for name in sorted(NAMES):
        variable = LIMIT_PREFIX + name.upper()
        source = variable if variable in os.environ else "default"
        if file is not None and name in of_file:
            source = str(file.path)
        rows.append(Origin(f"limits.{name}", str(getattr(limits(), name)), source))
    return rows


_KEYS: Final = {field: "class" if field == "traffic" else field for field in Settings.model_fields}
"""The key of each field in the settings file; in the environment it is the same in capitals."""
_FIELDS: Final = {key: field for field, key in _KEYS.items()}


def _load(file: SettingsFile | None, overrides: Mapping[str, Any]) -> Settings:
    variables = {_variable(key) for key in _FIELDS} | _NOT_SETTINGS
    given = (name for name in os.environ if name.startswith(PREFIX) and not name.startswith(LIMIT_PREFIX))
    _refuse_unknown(given, variables, None)
    if file is not None:
        _refuse_unknown(file.values, _FIELDS, file.path)
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).lower().removeprefix(PREFIX.lower())
        key = _KEYS.get(name, name)
        from_file = file is not None and key in file.values and _variable(key) not in os.environ
        where, hint = (file.path, None) if file is not None and from_file else (None, f"or {_variable(key)}")
        raise RequestError(f"setting {key!r} is wrong: {fault(first)}", where=where, hint=hint) from None


def _refuse_unknown(given: Iterable[str], known: Iterable[str], where: Path | None) -> None:
    known = sorted(known)
    for name in sorted(given):
        if name not in known:
            hint = "`layerfarm config show` lists them, docs/operating.md#settings says more"
            # Without the prefix, which makes any two variables alike.
            bare = {each.removeprefix(PREFIX): each for each in known}
            for close in difflib.get_close_matches(name.removeprefix(PREFIX), bare, 1):
                hint = f"did you mean {bare[close]}?"
            raise RequestError(f"unknown setting {name[:100]!r}", where=where, hint=hint)


def _variable(key: str) -> str:
    return PREFIX + key.upper()


def _source(key: str, file: SettingsFile | None) -> str:
    if _variable(key) in os.environ:
        return _variable(key)
    return str(file.path) if file is not None and key in file.values else "default"


def _shown(value: Any) -> str:
    if isinstance(value, SecretStr):
        return Address(value.get_secret_value()).masked if value.get_secret_value() else ""
    if isinstance(value, tuple):
        return os.pathsep.join(map(str, value))
    return "" if value is None else str(value)
