"""The settings of a worker and of a client, from ``LAYERFARM_*`` in the environment or from options."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.errors import RequestError
from jobs.flows.base import Policy
from worker.address import Address
from worker.traffic import Queues, Traffic


def _this_user() -> str:
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"[:100]


class Settings(BaseSettings):
    """Each field is also an environment variable: ``LAYERFARM_CONCURRENCY``, ``LAYERFARM_ROOTS``…

    Lists are separated by ``:`` as in PATH.
    """

    model_config = SettingsConfigDict(env_prefix="LAYERFARM_", extra="forbid", frozen=True, populate_by_name=True)

    farm: SecretStr | None = None
    """Address of the farm's Redis; secret because it may hold a password."""
    roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Directories below which rootfs and bundles may lie."""
    stores: Annotated[tuple[Path, ...], NoDecode] = ()
    """Layouts that may be used, or directories below which layouts may lie."""
    concurrency: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    """Processes of one worker."""
    shards: int | None = Field(default=None, ge=1, le=4096)
    """Pieces a tree is cut into; default: one per process. Never changes the resulting bytes."""
    threads: int | None = Field(default=None, ge=1, le=256)
    """Threads of one unit; default: the machine's processors."""
    queue: str = Field(default="layerfarm", pattern=r"^[A-Za-z0-9_-]+$")
    """Prefix of the queues of the farm."""
    traffic: Traffic = Field(default=Traffic.INTERACTIVE, validation_alias=AliasChoices("traffic", "LAYERFARM_CLASS"))
    """Class of the jobs that are submitted (``LAYERFARM_CLASS``)."""
    submitter: str = Field(default_factory=_this_user, pattern=r"^[\w.@+/-]{1,100}$")
    """In whose name jobs are submitted; those that wait begin in turns of their submitters."""
    most_queued: int = Field(default=10_000, ge=0)
    """Jobs that may wait for their beginning; one more is refused, or waits outside. 0: any number."""
    unit_time_limit: float = Field(default=3600, gt=0)
    """Seconds after which a unit is ended with an error."""
    lease: float = Field(default=30, gt=0)
    """Seconds after which a unit whose worker says nothing more is taken over."""
    deliveries: int = Field(default=3, ge=1)
    """How often a unit is tried whose process dies each time."""
    look_every: float = Field(default=5, gt=0)
    """Seconds between two looks for jobs that are stuck."""
    drain: float = Field(default=60, ge=0)
    """Seconds for which a worker that was asked to stop lets its units go on; then it hands them back."""
    retry_for: float = Field(default=3600, ge=0)
    """Seconds for which the finished units of a failed job, and the files they staged, are kept for a retry."""
    result_expires: float = Field(default=24 * 3600, gt=0)
    """Seconds for which the record of an ended job is kept."""
    job_expires: float = Field(default=7 * 24 * 3600, gt=0)
    """Seconds after which a job that does not advance is forgotten."""
    visibility_timeout: int = Field(default=900, gt=0)
    """Seconds after which Redis hands a message out again whose worker vanished; equal for all of a farm."""
    flows: Annotated[tuple[str, ...], NoDecode] = ()
    """Python modules that add flows to ``jobs.flows.FLOWS`` when the worker imports them."""
    log_level: str = "info"

    @field_validator("roots", "stores", mode="before")
    @classmethod
    def _split_paths(cls, value: Any) -> Any:
        items = value.split(os.pathsep) if isinstance(value, str) else list(value)
        for item in items:
            # An empty path would mean the current directory, and so allow what nobody meant to allow.
            if not str(item).strip():
                raise ValueError("empty path")
            if not Path(item).is_absolute():
                raise ValueError(f"path must be absolute: {item}")
        return tuple(items)

    @field_validator("flows", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return tuple(name for name in value.split(os.pathsep) if name) if isinstance(value, str) else value

    @property
    def address(self) -> Address:
        """Where the farm's Redis is.

        Raises:
            RequestError: no farm is configured, or not by an address.
        """
        if self.farm is None or not self.farm.get_secret_value():
            raise RequestError("no farm is configured", hint="set LAYERFARM_FARM or name its Redis with --farm")
        return Address(self.farm.get_secret_value())

    @property
    def policy(self) -> Policy:
        """What a worker with these settings allows; unlike in the local command, nothing is allowed unsaid."""
        return Policy(
            roots=self.roots,
            stores=self.stores,
            shards=self.shards or self.concurrency,
            threads=self.threads or os.cpu_count() or 1,
        )

    @property
    def queues(self) -> Queues:
        return Queues.of(self.queue)


def load_settings(**overrides: Any) -> Settings:
    """The settings from the environment, with those that are not None replaced.

    Raises:
        RequestError: one of them is out of range; the message names it and never its value if secret.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"].removeprefix("Value error, ")
        variable = "CLASS" if name == "traffic" else name.upper().removeprefix("LAYERFARM_")
        raise RequestError(f"setting {name!r} is wrong: {message}", hint=f"or LAYERFARM_{variable}") from None
