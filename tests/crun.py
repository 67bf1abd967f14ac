"""crun on machines whose cgroups it refuses: a hybrid of both versions, or none that a user may make."""

from __future__ import annotations

from pathlib import Path
from typing import Final

FLAGS: Final = ("--cgroup-manager=disabled",)
_MOUNT: Final = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'


def with_cgroups(command: list[str]) -> list[str]:
    """Return the command of crun, on a hybrid in a mount namespace of its own with a cgroup2 file system."""
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        return command
    return ["unshare", "--mount", "sh", "-c", _MOUNT, "sh", *command]
