"""The settings file: one TOML document with the names of ``layerfarm.worker.settings.Settings`` and a table of limits.

It is ``$LAYERFARM_CONFIG``, else the user's file, else the machine's; the first that this user can read.
Kept free of pydantic, because every command reads the farm and the limits here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from layerfarm.jobs.errors import RequestError
from layerfarm.jobs.limits import PREFIX as LIMIT_PREFIX
from layerfarm.jobs.limits import set_limit

VARIABLE: Final = "LAYERFARM_CONFIG"
SYSTEM: Final = Path("/etc/layerfarm/layerfarm.toml")


@dataclass(frozen=True)
class SettingsFile:
    path: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    """Settings by name; not validated yet."""
    limits: Mapping[str, Any] = field(default_factory=dict)
    """Its table ``[limits]``: numbers, or texts such as ``20M``."""


def settings_file(environment: Mapping[str, str] = os.environ) -> SettingsFile | None:
    """Return the settings file of this process, or None if there is none.

    Raises:
        RequestError: it cannot be read, is not TOML, or ``$LAYERFARM_CONFIG`` names a missing one.
    """
    path = _path(environment)
    if path is None:
        return None
    # Imported here: it costs 5 ms, which commands without a file save.
    import tomllib

    try:
        values = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise RequestError(f"settings file cannot be read, {error.strerror}", where=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"settings file is not TOML: {error}", where=path) from None
    limits = values.pop("limits", {})
    if not isinstance(limits, dict):
        raise RequestError("settings file: limits is not a table", where=path, hint="write [limits]")
    return SettingsFile(path, values, limits)


def apply_limits(file: SettingsFile, environment: MutableMapping[str, str] = os.environ) -> frozenset[str]:
    """Set the limits of the file for this process and its children, except those that are already set.

    Return the names of those that were set.

    Raises:
        RequestError: there is no such limit, or its value is not a number.
    """
    taken = set()
    for name, value in file.limits.items():
        overridden = LIMIT_PREFIX + name.upper() in environment
        try:
            set_limit(f"{name}={value}", {} if overridden else environment)
        except RequestError as error:
            raise RequestError(error.what, where=file.path, hint=error.hint) from None
        if not overridden:
            taken.add(name)
    return frozenset(taken)


def _path(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(VARIABLE)
    if named:
        return Path(named)
    home = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or "/nonexistent") / ".config"
    # A file that this user may not read is another's: /etc/layerfarm may hold a worker's password, $HOME be root's.
    return next((path for path in (Path(home) / "layerfarm/layerfarm.toml", SYSTEM) if os.access(path, os.R_OK)), None)
