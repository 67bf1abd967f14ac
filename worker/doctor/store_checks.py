"""Checks from this machine that many writers can share a store."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.store import Layout
from layerfarm.jobs.store.probe import clock_offset, locks_exclude, probe_file, rename_fault, room, sync_seconds
from layerfarm.worker.doctor.finding import Finding, clock, expect, fail, ok, warn
from layerfarm.worker.doctor.mount_checks import examine_mount

_LITTLE: Final = 0.05
"""Fraction of the filesystem that should be free."""
_SLOW: Final = 0.2
"""Seconds to make one small file durable; a layer waits for it a few times."""


def examine_store(store: Path) -> Iterator[Finding]:
    topic = f"store {store}"
    try:
        Layout.open(store)
        yield ok(topic, "is an OCI layout")
    except StoreError as error:
        if not store.is_dir():
            yield fail(topic, "is not a directory here", "mount it at the path at which the workers have it")
            return
        if _has_layouts(store):
            yield ok(topic, f"is a directory for layouts ({error.what})")
        else:
            advice = "is its disk mounted on this machine? a new store: layerfarm init --layout PATH"
            yield warn(topic, "has no layout, neither itself nor in its directories", advice)
    yield from examine_mount(store, topic)
    yield from _room(store, topic)
    try:
        with probe_file(store) as probe:
            yield _locks(probe, topic)
            yield _renames(probe, topic)
            yield _syncs(probe, topic)
            advice = "synchronize the clocks by NTP; gc itself uses that of the store"
            yield clock(clock_offset(probe), topic, "its clock and this machine's", advice)
    except PermissionError as error:
        advice = "run the doctor as the worker's user; if that is this one, let it write to the store"
        yield fail(topic, f"this user cannot write to it, {error.strerror}", advice)
    except OSError as error:
        yield fail(topic, f"cannot be written, {error.strerror}", "mount it read-write")


def _has_layouts(store: Path) -> bool:
    """Return True if one of the directories in ``store`` is a layout."""
    with suppress(OSError):
        return any((each / "oci-layout").is_file() for each in store.iterdir())
    return False


def _room(store: Path, topic: str) -> Iterator[Finding]:
    found = room(store)
    what = f"{found.bytes >> 20} of {found.bytes_of >> 20} MiB are free"
    yield expect(found.bytes >= _LITTLE * found.bytes_of, topic, what, "make room: layerfarm gc, or a larger disk")
    if found.inodes_of and found.inodes < _LITTLE * found.inodes_of:
        yield warn(topic, f"{found.inodes} of {found.inodes_of} inodes are free", "make room: layerfarm gc")


def _locks(probe: Path, topic: str) -> Finding:
    try:
        if locks_exclude(probe):
            return ok(topic, "fcntl locks work between processes")
        seen = "an fcntl lock excludes no other process"
    except OSError as error:
        seen = f"fcntl locks do not work, {error.strerror}"
    return fail(topic, seen, "mount NFS as version 4, or with its lock daemon; without locks tags are lost")


def _renames(probe: Path, topic: str) -> Finding:
    fault = rename_fault(probe)
    if not fault:
        return ok(topic, "a rename replaces a file in one step")
    what = f"during a rename a reader saw: {fault}"
    return fail(topic, what, "use another filesystem: index.json would be torn")


def _syncs(probe: Path, topic: str) -> Finding:
    try:
        seconds = sync_seconds(probe)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP):
            advice = "after a crash of the server the last tags may be missing"
            return warn(topic, "directories cannot be made durable by fsync", advice)
        return fail(topic, f"fsync fails, {error.strerror}", "check the disk")
    what = f"a file is durable in {seconds * 1000:.1f} ms"
    return expect(seconds < _SLOW, topic, what, "jobs will wait for this disk")
