"""``config.json`` of a bundle, from the image's config (image-spec conversion.md, umoci.md C)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from layerfarm.jobs.errors import ImageConfigError
from layerfarm.jobs.image.bundle import ROOTFS_NAME, BundleIdMapping
from layerfarm.jobs.image.documents import ConfigSection, ImageConfig
from layerfarm.jobs.image.users import User

SPEC_VERSION = "1.0.2"
"""The runtime-spec whose fields are used; every runc and crun in use knows it."""

Volumes = Literal["tmpfs", "none"]
"""What becomes of ``Config.Volumes``: an empty tmpfs over each, as umoci does, or nothing, so that the
container sees what the image holds there."""


@dataclass(frozen=True)
class RuntimeOptions:
    """How a runtime configuration is made."""

    uid_map: Sequence[BundleIdMapping] = ()
    gid_map: Sequence[BundleIdMapping] = ()
    rootless: bool = False
    volumes: Volumes = "tmpfs"
    root: str = ROOTFS_NAME
    """``root.path``, from the directory of config.json."""


def runtime_config(config: ImageConfig, user: User, options: RuntimeOptions = RuntimeOptions()) -> dict[str, Any]:
    """The runtime-spec configuration of a container of this image.

    Raises:
        ImageConfigError: the image is not for Linux, or a field of its config makes no sense.
    """
    if config.os != "linux":
        raise ImageConfigError(f"image is for {config.os or 'no known system'!r}, a bundle can only be for 'linux'")
    section = config.config or ConfigSection()
    spec: dict[str, Any] = {
        "ociVersion": SPEC_VERSION,
        "process": _process(section, user),
        "root": {"path": options.root},
        "hostname": "layerfarm",
        "mounts": [*(dict(mount) for mount in MOUNTS), *_volume_mounts(section, options.volumes)],
        "annotations": _annotations(config, section),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
        },
    }
    if options.uid_map or options.gid_map:
        _add_user_namespace(spec, options)
    if options.rootless:
        make_rootless(spec)
    return spec


def encode_runtime_config(spec: dict[str, Any]) -> bytes:
    """The file's bytes: indented by tabs like umoci's, so that the two can be compared line by line."""
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
            kind: list(CAPABILITIES) for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": True,
    }


def _environment(wanted: list[str], home: str | None) -> list[str]:
    """The image's variables in the place of the default ones they override; of two the later wins.

    HOME is the user's from passwd only where the image sets none (umoci #652).
    """
    found = dict(DEFAULT_ENV)
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
    """The image's own fields under their conventional names; a label of the same name wins."""
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


def _add_user_namespace(spec: dict[str, Any], options: RuntimeOptions) -> None:
    linux = spec["linux"]
    linux["uidMappings"] = [_row(row) for row in options.uid_map]
    linux["gidMappings"] = [_row(row) for row in options.gid_map]
    linux["namespaces"].append({"type": "user"})


def _row(row: BundleIdMapping) -> dict[str, int]:
    return {"containerID": row.container, "hostID": row.host, "size": row.size}


DEFAULT_ENV: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "TERM": "xterm",
}
CAPABILITIES: Final = ("CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE")
NAMESPACES: Final = ("cgroup", "pid", "network", "ipc", "uts", "mount")


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    mount: dict[str, Any] = {"destination": destination, "type": kind, "source": source}
    if options:
        mount["options"] = list(options)
    return mount


MOUNTS: Final = (
    _mount("/proc", "proc", "proc"),
    _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
    _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
    _mount("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
    _mount("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
    _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    _mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"),
)
MASKED_PATHS: Final = (
    "/proc/kcore",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
)
READONLY_PATHS: Final = (
    "/proc/asound",
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


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
