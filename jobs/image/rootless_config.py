"""Makes a runtime configuration one that a user without privileges can run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_RESOLV_CONF = "/etc/resolv.conf"
# statvfs(3) flags that a user namespace must keep when it bind-mounts (mount_namespaces(7), "locked").
_LOCKED_FLAGS = (
    (os.ST_NOSUID, "nosuid"),
    (os.ST_NODEV, "nodev"),
    (os.ST_NOEXEC, "noexec"),
    (os.ST_NOATIME, "noatime"),
    (os.ST_NODIRATIME, "nodiratime"),
)


def make_rootless(spec: dict[str, Any], resolv_conf: Path = Path(_RESOLV_CONF)) -> None:
    """Change ``spec`` in place: no cgroups, no network of its own, a user namespace, mounts that may be made.

    umoci changes the mounts only on a host that has /etc/resolv.conf; here only the mount of that file
    depends on it (umoci.md C).
    """
    spec["process"]["user"].pop("additionalGids", None)
    linux = spec["linux"]
    linux.pop("resources", None)
    kept = [namespace for namespace in linux["namespaces"] if namespace["type"] not in ("network", "user")]
    linux["namespaces"] = [*kept, {"type": "user"}]
    spec["mounts"] = [_without_ids(mount) for mount in spec["mounts"] if not _is_below_sys(mount["destination"])]
    # sysfs belongs to the network namespace, which is the host's now, so it can only be bound.
    spec["mounts"].append(_bind("/sys", "rbind", "nosuid", "noexec", "nodev", "ro"))
    if resolv_conf.exists():
        spec["mounts"].append(_bind(_RESOLV_CONF, "rbind", "ro", *_locked(resolv_conf)))


def _is_below_sys(destination: str) -> bool:
    return (os.path.normpath(destination) + "/").startswith("/sys/")


def _without_ids(mount: dict[str, Any]) -> dict[str, Any]:
    """The ids in these options are not mapped, so the mount would fail."""
    if "options" not in mount:
        return mount
    return mount | {"options": [o for o in mount["options"] if not o.startswith(("uid=", "gid="))]}


def _bind(path: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": "bind", "source": path, "options": list(options)}


def _locked(path: Path) -> list[str]:
    flags = os.statvfs(path).f_flag
    return [name for flag, name in _LOCKED_FLAGS if flags & flag]
