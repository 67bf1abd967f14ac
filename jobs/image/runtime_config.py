"""``config.json`` of a bundle, from the image's config (image-spec conversion.md, umoci.md C)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final, Literal

from layerfarm.jobs.errors import ImageConfigError
from layerfarm.jobs.image.bundle import ROOTFS_NAME, BundleIdMapping, MapOptions
from layerfarm.jobs.image.documents import ConfigSection, ImageConfig
from layerfarm.jobs.image.users import User

Volumes = Literal["tmpfs", "none"]
"""Mounts over ``Config.Volumes``: an empty tmpfs each, as umoci does, or none, so that the image's content shows."""

# --- umoci's template (umoci.md C) -----------------------------------------------------------------

_SPEC_VERSION: Final = "1.0.2"
"""The runtime-spec version whose fields are used; every runc and crun in use supports it."""
_DEFAULT_ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "xterm",
}
_CAPABILITIES: Final = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
_NAMESPACES: Final = ("cgroup", "pid", "network", "ipc", "uts", "mount")


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    mount: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    if options:
        mount["options"] = list(options)
    return mount


_MOUNTS: Final = (
    _mount("/proc", "proc", "proc"),
    _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
    _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
    _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
)
_MASKED_PATHS: Final = (
    "/proc/kcore",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
_READONLY_PATHS: Final = (
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)

# --- the configuration -----------------------------------------------------------------------------


def runtime_config(
    config: ImageConfig,
    user: User,
    maps: MapOptions,
    volumes: Volumes = "tmpfs",
    root: str = ROOTFS_NAME,
) -> dict[str, Any]:
    """Return the runtime-spec configuration of a container of this image.

    ``root``: ``root.path``, relative to the directory of config.json.

    Raises:
        ImageConfigError: the image is not for Linux, or a field of its config is invalid.
    """
    if config.os != "linux":
        raise ImageConfigError(f"image is for {config.os or 'no known system'!r}, only 'linux' bundles can be made")
    section = config.config or ConfigSection()
    spec: dict[str, Any] = {
        "ociVersion": _SPEC_VERSION,
        "process": _process(section, user),
        "root": {"path": root},
        "hostname": "layerfarm",
        "mounts": [*(dict(mount) for mount in _MOUNTS), *_volume_mounts(section, volumes)],
        "annotations": _annotations(config, section),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "maskedPaths": list(_MASKED_PATHS),
            "readonlyPaths": list(_READONLY_PATHS),
        },
    }
    if maps.uid_mappings or maps.gid_mappings:
        spec["linux"]["uidMappings"] = _rows(maps.uid_mappings)
        spec["linux"]["gidMappings"] = _rows(maps.gid_mappings)
        spec["linux"]["namespaces"].append({"type": "user"})
    if maps.rootless:
        make_rootless(spec)
    return spec


def encode_runtime_config(spec: dict[str, Any]) -> bytes:
    """Return the file's bytes, indented by tabs like umoci's."""
    return (json.dumps(spec, indent="\t", ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _process(section: ConfigSection, user: User) -> dict[str, Any]:
    identity: dict[str, Any] = {"uid": user.uid, "gid": user.gid}
    if user.additional_gids:
        identity["additionalGids"] = list(user.additional_gids)
    cwd = section.working_dir or "/"
    if not cwd.startswith("/"):
        raise ImageConfigError(f"WorkingDir of the image is not an absolute path: {cwd[:200]!r}")
    return {
        "terminal": True,
        "user": identity,
        "args": [*(section.entrypoint or []), *(section.cmd or [])] or ["sh"],
        "env": _environment(section.env or [], user.home),
        "cwd": cwd,
        "capabilities": {
            kind: list(_CAPABILITIES) for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _environment(wanted: list[str], home: str | None) -> list[str]:
    """Return the default variables, overridden in place by the image's; the last value of a name counts.

    HOME is the user's from passwd only if the image sets none (umoci #652).
    """
    found = dict(_DEFAULT_ENV)
    for entry in wanted:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise ImageConfigError(f"entry of Env is not NAME=VALUE: {entry[:200]!r}")
        found[name] = value
    if home is not None:
        found.setdefault("HOME", home)
    for name, value in found.items():
        if "\0" in name + value:
            raise ImageConfigError(f"environment variable holds a NUL byte: {name[:200]!r}")
    return [f"{name}={value}" for name, value in found.items()]


def _volume_mounts(section: ConfigSection, volumes: Volumes) -> list[dict[str, Any]]:
    if volumes == "none":
        return []
    return [
        {
            "destination": path,
            "type": "tmpfs",
            "source": "none",
            "options": ["rw", "nosuid", "nodev", "noexec", "relatime"],
        }
        for path in sorted(section.volumes or {})
    ]


def _annotations(config: ImageConfig, section: ConfigSection) -> dict[str, str]:
    """Return the image's fields under their conventional names; a label of the same name overrides them."""
    values = {
        "org.opencontainers.image.architecture": config.architecture,
        "org.opencontainers.image.author": config.author,
        "org.opencontainers.image.created": config.created,
        "org.opencontainers.image.exposedPorts": ",".join(sorted(section.exposed_ports or {})),
        "org.opencontainers.image.os": config.os,
        "org.opencontainers.image.stopSignal": section.stop_signal,
        "org.opencontainers.image.variant": config.variant,
    }
    found = {name: value for name, value in values.items() if value}
    return dict(sorted((found | (section.labels or {})).items()))


def _rows(rows: list[BundleIdMapping] | None) -> list[dict[str, int]]:
    return [{"containerID": row.container, "hostID": row.host, "size": row.size} for row in rows or []]


# --- rootless --------------------------------------------------------------------------------------

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
    """Change ``spec`` in place: no cgroups, the host's network, a user namespace, only permitted mounts.

    umoci changes the mounts only on a host that has /etc/resolv.conf; here only the mount of that file depends on it
    (umoci.md C).
    """
    spec["process"]["user"].pop("additionalGids", None)
    linux = spec["linux"]
    linux.pop("resources", None)
    kept = [namespace for namespace in linux["namespaces"] if namespace["type"] not in ("network", "user")]
    linux["namespaces"] = [*kept, {"type": "user"}]
    spec["mounts"] = [_without_ids(mount) for mount in spec["mounts"] if not _is_below_sys(mount["destination"])]
    # sysfs belongs to the network namespace, now the host's, so it can only be bound.
    spec["mounts"].append(_bind("/sys", "rbind", "nosuid", "noexec", "nodev", "ro"))
    if resolv_conf.exists():
        spec["mounts"].append(_bind(_RESOLV_CONF, "rbind", "ro", *_locked(resolv_conf)))


def _is_below_sys(destination: str) -> bool:
    return (os.path.normpath(destination) + "/").startswith("/sys/")


def _without_ids(mount: dict[str, Any]) -> dict[str, Any]:
    """Remove the options whose ids are not mapped: the mount would fail."""
    if "options" not in mount:
        return mount
    return mount | {"options": [o for o in mount["options"] if not o.startswith(("uid=", "gid="))]}


def _bind(path: str, *options: str) -> dict[str, Any]:
    return {"destination": path, "type": "bind", "source": path, "options": list(options)}


def _locked(path: Path) -> list[str]:
    flags = os.statvfs(path).f_flag
    return [name for flag, name in _LOCKED_FLAGS if flags & flag]
