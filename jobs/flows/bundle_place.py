"""Stage a bundle, move it to its place, and restore the place after an error.

An existing directory is filled: it may be a mount point, the working directory of a shell, or the only directory that
the user may write. So the bundle is staged inside it, and its parts are renamed within it. A new bundle is staged in
the nearest existing directory above and appears in one rename; the directories between are created then.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from layerfarm.jobs.errors import BundleError, BundleExists, RootfsError
from layerfarm.jobs.flows.base import Model, WorkDirectory, staging_name
from layerfarm.jobs.flows.requests import UnpackResult
from layerfarm.jobs.fs import open_file, own_directory
from layerfarm.jobs.fs.names import rename
from layerfarm.jobs.fs.remove import remove_tree
from layerfarm.jobs.image.bundle import CONFIG_NAME, META_NAME, ROOTFS_NAME
from layerfarm.jobs.paths import is_directory
from layerfarm.jobs.store.blob import late_pauses

_FOUND = "place"
_PUBLISHED = "published"


class _Found(Model):
    """The place as the job found it."""

    missing: list[str]
    """Directories above the bundle that did not exist, outermost first."""
    mode: int | None = None
    """Mode of the bundle's directory; None: it did not exist."""
    atime: int = 0
    mtime: int = 0
    """Nanoseconds."""


class _Published(Model):
    """A finished bundle, recorded before it is moved."""

    inode: list[int]
    """Device and inode of the rootfs, which identify the bundle in place."""
    staged: str
    names: list[str]
    """Parts of the bundle, the rootfs first: once it is there, other jobs refuse the place."""
    result: UnpackResult


def base_of(bundle: Path) -> Path:
    """Return the directory to stage in: ``bundle`` if it is one, else the nearest existing one above."""
    while not is_directory(bundle):
        bundle = bundle.parent
    return bundle


def refuse_existing(bundle: Path) -> None:
    """Raise if a bundle cannot be unpacked to this place.

    Raises:
        BundleExists: a part of a bundle is there, or the path is not a directory.
    """
    _refuse(bundle, (ROOTFS_NAME, CONFIG_NAME, META_NAME))
    base = base_of(bundle)
    if base != bundle:
        first = base / bundle.relative_to(base).parts[0]
        if os.path.lexists(first):
            raise BundleExists("path exists and is not a directory", where=first)


def _refuse(bundle: Path, names: Iterable[str]) -> None:
    for name in names:
        if os.path.lexists(bundle / name):
            raise BundleExists("directory already holds a " + name, where=bundle, hint="choose another directory")


class _Beside(WorkDirectory):
    """Records in the directory in which the bundle is staged."""

    def __init__(self, base: Path, job: str) -> None:
        super().__init__(base, job)
        self.path = base / staging_name(job) / "records"

    def create(self) -> None:
        own_directory(self.path.parent)
        own_directory(self.path)


_locks: dict[Path, int] = {}
"""Open files that this process has locked, by the records of the job that it does alone."""
_LOCK = "lock"
_MOMENT = 60.0
"""Seconds: far longer than between creating a lock and taking it."""


def remove_abandoned(bundle: Path) -> None:
    """Remove staging directories of killed processes from the directory in which ``bundle`` is staged.

    A process that does a whole job locks a file in its records while it lives. Directories without such a lock
    (a farm's), those of other users, and all on a network filesystem, where other hosts may not see the lock, are kept.
    """
    base = base_of(bundle)
    if late_pauses(base):
        return
    with suppress(OSError):
        for name in os.listdir(base):
            if name.startswith(staging_name("")):
                _remove_abandoned(base / name)


def _remove_abandoned(staging: Path) -> None:
    lock = staging / "records" / _LOCK
    with suppress(OSError, RootfsError):
        if staging.lstat().st_uid != os.geteuid():
            return
        with open_file(lock) as stream:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(stream.fileno()).st_mtime < time.time() - _MOMENT:
                remove_tree(staging)


def records_beside(bundle: Path, job: str) -> WorkDirectory:
    """Return the records of a job that does not write into its store: existing ones, else in the staging directory."""
    for staging in staged_by(bundle, job):
        if is_directory(staging / "records"):
            return _Beside(staging.parent, job)
    return _Beside(base_of(bundle), job)


def remember(work: WorkDirectory, bundle: Path, *, alone: bool) -> None:
    """Record the place as it is, for :func:`end`; the first call of a job counts.

    ``alone``: this process does the whole job, and holds a lock for :func:`remove_abandoned` until its end.
    """
    if (work.path / _FOUND).exists():
        return
    base = base_of(bundle)
    if base == bundle:
        now = bundle.stat()
        found = _Found(missing=[], mode=stat.S_IMODE(now.st_mode), atime=now.st_atime_ns, mtime=now.st_mtime_ns)
    else:
        between = [path for path in bundle.parents if path.is_relative_to(base) and path != base]
        found = _Found(missing=[str(path) for path in reversed(between)])
    work.create()
    if alone:
        _hold(work.path)
    work.publish(_FOUND, lambda path: _write(path, found))


def _hold(records: Path) -> None:
    fd = os.open(records / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with suppress(OSError):  # a filesystem without flock(2): other processes cannot check it either
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _locks[records] = fd


def stage(bundle: Path, job: str) -> Path:
    """Create a directory for one copy of the unit; the caller passes it to :func:`discard` at the end.

    The mode of an existing ``bundle`` becomes 0700.

    Raises:
        BundleError: the directory cannot be created, or belongs to another user.
        UnsafePath: its path exists and is not a directory.
    """
    base = base_of(bundle)
    parent = base / staging_name(job)
    try:
        if base == bundle and stat.S_IMODE(bundle.stat().st_mode) != 0o700:
            os.chmod(bundle, 0o700)
        while True:
            # Another copy of the unit that is ending may remove the parent.
            with suppress(FileNotFoundError):
                own_directory(parent)
                if parent.lstat().st_uid != os.geteuid():
                    raise BundleError("staging directory of the bundle belongs to another user", where=parent)
                staged = parent / os.urandom(4).hex()
                staged.mkdir(mode=0o700)
                return staged
    except OSError as error:
        raise BundleError(f"bundle cannot be created, {error.strerror}", where=bundle) from error


def discard(staged: Path) -> None:
    """Remove the directory that :func:`stage` made, with its content."""
    remove_tree(staged)
    with suppress(OSError):
        staged.parent.rmdir()


def publish(work: WorkDirectory, staged: Path, bundle: Path, result: UnpackResult) -> None:
    """Record ``result`` for :func:`published`, then move the finished bundle to its place.

    Raises:
        BundleExists: another one appeared there meanwhile; it stays.
        BundleError: the bundle cannot be moved; no part of it is left there.
    """
    names = sorted(os.listdir(staged), key=lambda name: (name != ROOTFS_NAME, name == META_NAME, name))
    record = _Published(inode=_identity(staged), staged=str(staged), names=names, result=result)
    work.publish(f"{_PUBLISHED}-{staged.name}", lambda path: _write(path, record))
    _refuse(bundle, names)
    try:
        if is_directory(bundle):
            _move_parts(staged, bundle, names)
        else:
            bundle.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            rename(staged, bundle)
    except OSError as error:
        raise BundleError(f"bundle cannot be moved to its place, {error.strerror}", where=bundle) from error


def published(work: WorkDirectory, bundle: Path) -> UnpackResult | None:
    """Return the result of an earlier copy of the unit, if its bundle is in place.

    The renames of a copy that was killed between them are completed.
    """
    record = _record_of(work, bundle)
    if record is None:
        return None
    for name in record.names:
        if not os.path.lexists(bundle / name):
            with suppress(FileNotFoundError):
                rename(Path(record.staged, name), bundle / name)
    return record.result


def end(work: WorkDirectory, bundle: Path, stagings: Iterable[Path], succeeded: bool) -> None:
    """Remove the staged files and the records; after a failure also the job's own bundle.

    The place is then restored as the job found it, if ``work`` has a record of it.
    """
    record, found, made = _record_of(work, bundle), _found(work), bool(_records(work))
    for staging in stagings:
        # shutil.rmtree removes nothing in an ordinary user's own directory of mode 000.
        with suppress(OSError):
            remove_tree(staging)
    if not succeeded:
        # The rootfs last: it identifies the bundle if this is interrupted.
        for name in reversed(record.names if record is not None else ()):
            remove_tree(bundle / Path(name).name)
        if found is not None:
            with suppress(OSError):
                _restore(found, bundle, own=record is not None, made=made)
    work.remove()
    lock = _locks.pop(work.path, None)
    if lock is not None:
        os.close(lock)


def _restore(found: _Found, bundle: Path, *, own: bool, made: bool) -> None:
    """``own``: the bundle is the job's. ``made``: a copy of the unit may have created the directories above it."""
    if found.mode is None:
        if own:
            bundle.rmdir()
        for directory in reversed(found.missing if made else ()):
            os.rmdir(directory)
        return
    if stat.S_IMODE(bundle.stat().st_mode) != found.mode:
        os.chmod(bundle, found.mode)
    os.utime(bundle, ns=(found.atime, found.mtime))


def staged_by(bundle: Path, job: str) -> list[Path]:
    """Return possible staging directories of the job: directories above the bundle may have appeared or vanished."""
    return [place / staging_name(job) for place in (bundle, *bundle.parents)]


def _move_parts(staged: Path, bundle: Path, names: list[str]) -> None:
    moved: list[str] = []
    try:
        for name in names:
            rename(staged / name, bundle / name)
            moved.append(name)
    except BaseException:
        for name in reversed(moved):
            rename(bundle / name, staged / name)
        raise


def _record_of(work: WorkDirectory, bundle: Path) -> _Published | None:
    """Return the record of the bundle in place; None: it is not this job's."""
    try:
        identity = _identity(bundle)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return next((record for record in _records(work) if record.inode == identity), None)


def _records(work: WorkDirectory) -> list[_Published]:
    return [_Published.model_validate_json(_read(path)) for path in work.path.glob(f"{_PUBLISHED}-*")]


def _found(work: WorkDirectory) -> _Found | None:
    try:
        return _Found.model_validate_json(_read(work.path / _FOUND))
    except FileNotFoundError:
        return None


def _read(path: Path) -> bytes:
    with open_file(path) as stream:
        return stream.read()


def _identity(bundle: Path) -> list[int]:
    found = (bundle / ROOTFS_NAME).lstat()
    return [found.st_dev, found.st_ino]


def _write(path: Path, record: Model) -> None:
    path.write_text(json.dumps(record.model_dump(mode="json")))
