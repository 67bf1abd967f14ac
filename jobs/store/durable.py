"""Files of a shared layout that survive a crash and that their owner can read (DESIGN law 4)."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs.errors import StoreError


@contextmanager
def explained(what: str, where: Path) -> Iterator[None]:
    """Turn an OSError (disk full, no permission) into a StoreError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}, {error.strerror or error}", where=where) from error


def create_file(directory: Path, owner_of: Path) -> tuple[int, Path]:
    """A new file with a random name: mode by the umask, owner that of ``owner_of`` when we are root.

    tempfile would make it 0600, and a blob or index of that mode is unreadable for the other users
    of a shared layout (umoci.md B7). Returns a descriptor open for writing, and the path.
    """
    path = directory / os.urandom(16).hex()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        give_to_owner(fd, owner_of)
    except BaseException:
        os.close(fd)
        path.unlink(missing_ok=True)
        raise
    return fd, path


def make_directory(path: Path, owner_of: Path) -> None:
    """``path`` and its missing parents, owned like ``owner_of``; fine if they exist."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_directory(path.parent, owner_of)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        give_to_owner(fd, owner_of)
    finally:
        os.close(fd)


def give_to_owner(fd: int, owner_of: Path) -> None:
    """When root works in somebody's layout, what it makes belongs to that somebody."""
    if os.geteuid() != 0:
        return
    owner, mine = os.stat(owner_of), os.fstat(fd)
    if (owner.st_uid, owner.st_gid) != (mine.st_uid, mine.st_gid):
        os.fchown(fd, owner.st_uid, owner.st_gid)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def rename_durably(source: Path, target: Path) -> None:
    """Rename, and make the rename itself survive a crash."""
    os.rename(source, target)
    sync_directory(target.parent)


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network filesystems cannot
            raise
    finally:
        os.close(fd)


def replace_file(path: Path, content: bytes, staging: Path, owner_of: Path) -> None:
    """Give ``path`` new content in one step: readers see the old file or the new one, whole."""
    fd, temporary = create_file(staging, owner_of)
    try:
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        rename_durably(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


_thread_locks: dict[str, threading.Lock] = {}
_thread_locks_guard = threading.Lock()
# A child forked while another thread holds a lock would wait for ever for a thread it has not got.
os.register_at_fork(after_in_child=_thread_locks.clear)


@contextmanager
def exclusive(lock_file: Path, owner_of: Path) -> Iterator[None]:
    """Hold the lock named by ``lock_file`` against other threads, processes and hosts.

    An fcntl lock works on NFSv4, where flock may not. It belongs to the process, so threads are kept
    apart by a lock of their own. The file is never removed: a waiter could hold a lock on a file that
    no longer has the name, while a third process locks a new one.
    """
    with _thread_locks_guard:
        threads = _thread_locks.setdefault(os.path.realpath(lock_file), threading.Lock())
    with threads:
        fd = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            give_to_owner(fd, owner_of)
            fcntl.lockf(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)  # releases the lock
