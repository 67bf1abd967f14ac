"""Check how a store is mounted: options of network filesystems whose effect no trial on one host shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from layerfarm.worker.doctor.finding import Finding, fail, ok, warn

_LOCAL: Final = frozenset(("btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"))
"""Filesystems of one host, on which :mod:`layerfarm.worker.doctor.store_checks` shows enough."""
_LOSING: Final = {"cifs": "SMB", "smb3": "SMB", "fuse.glusterfs": "GlusterFS"}
"""Filesystems of servers on which the trials of ``make smb`` and ``make glusterfs`` fail."""
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """A line of ``/proc/self/mountinfo``."""

    point: Path
    kind: str
    """Type of the filesystem: ``ext4``, ``nfs4``."""
    options: dict[str, str]
    """Options of the filesystem; the value of a flag is empty."""


def mount_of(path: Path, mountinfo: str) -> Mount | None:
    """Return the mount on which ``path`` is, from the text of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)).

    None: no line fits.
    """
    found: Mount | None = None
    for line in mountinfo.splitlines():
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            continue
        point = Path(_ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[4]))
        # A later mount covers an earlier one at the same place.
        if path.is_relative_to(point) and (found is None or len(point.parts) >= len(found.point.parts)):
            options = dict(option.partition("=")[::2] for option in rest[2].split(","))
            found = Mount(point, rest[0], options)
    return found


def examine_mount(store: Path, topic: str) -> Iterator[Finding]:
    """Yield what the mount of ``store`` promises, or does not."""
    try:
        mount = mount_of(store.resolve(), Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))
    except OSError:
        return
    if mount is not None:
        yield from judge(mount, topic)


def judge(mount: Mount, topic: str) -> Iterator[Finding]:
    """Yield the findings for a mount; none for a filesystem of this host."""
    if mount.kind in ("nfs", "nfs4"):
        yield from _nfs(mount.options, topic)
    elif mount.kind in _LOSING:
        advice = "use NFS version 4, or a filesystem of one host: docs/store.md#other-shared-filesystems"
        what = f"is on {_LOSING[mount.kind]}: several hosts that set tags lose some, or wait without end"
        yield fail(topic, what, advice)
    elif mount.kind not in _LOCAL:
        advice = "test it with several hosts first: docs/store.md#other-shared-filesystems"
        yield warn(topic, f"is on {mount.kind}, on which layerfarm is not tested", advice)


def _nfs(options: dict[str, str], topic: str) -> Iterator[Finding]:
    version = options.get("vers", "?")
    losing = list(_losing(options, topic))
    yield from losing
    if not losing and not version.startswith("4"):
        advice = "mount it as version 4: there, the server frees the locks of a host that died"
        yield warn(topic, f"is on NFS version {version}", advice)
    if "hard" not in options:
        soft = "softerr" if "softerr" in options else "soft"
        advice = "mount it with hard: operations then wait for the server instead of failing"
        yield warn(topic, f"is on NFS with {soft}", advice)
    if options.get("lookupcache") not in ("pos", "positive", "none"):
        advice = "mount it with lookupcache=positive: a client else believes for up to a minute that a blob is missing"
        yield warn(topic, "is on NFS without lookupcache=positive", advice)
    if not losing:
        yield ok(topic, f"is on NFS version {version}, with locks on the server")


def _losing(options: dict[str, str], topic: str) -> Iterator[Finding]:
    """Yield the findings for options of NFS with which tags are lost."""
    local_lock = options.get("local_lock", "none")
    bad = ["nolock"] * ("nolock" in options) + [f"local_lock={local_lock}"] * (local_lock != "none")
    if bad:
        what = f"is on NFS with {' and '.join(bad)}: its locks exclude no process of another host"
        yield fail(topic, what, "mount it without these options, as version 4; otherwise tags are lost")
    if "nocto" in options:
        what = "is on NFS with nocto: a host may read an index.json that another has replaced"
        yield fail(topic, what, "mount it without nocto; otherwise tags are lost")
