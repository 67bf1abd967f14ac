"""A shared layout's files: replaced atomically, durable, readable by its owner (law 4, docs/architecture.md)."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.fs import Beneath
from layerfarm.jobs.fs.names import ask_for_names
from layerfarm.jobs.limits import limits

ResultT = TypeVar("ResultT")

PRIVATE_DIRECTORY: Final = ".layerfarm"
"""Holds layerfarm's own files in a layout, beside the specified ones; other tools ignore it."""
BLOBS: Final = "blobs"
"""Present in every layout, and created first."""
_SPECIFIED: Final = (BLOBS, "index.json", "oci-layout")
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL
_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY
_STALE: Final = 5.0, 50
"""Seconds, and attempts, of :func:`unmoved`; on a busy host one attempt takes long."""


def files_of(layout: Path) -> Beneath:
    """Access to the files of a layout, which may be another user's.

    The files of image-layout.md may be links: umoci and skopeo read such layouts (blobs shared between layouts, the
    link farms of build systems), and every blob is verified by its digest. In the private directory no link is
    followed.
    """
    return Beneath(layout, linked=_SPECIFIED)


@contextmanager
def explained(what: str, where: Path) -> Iterator[None]:
    """Turn an OSError (disk full, no permission) into a StoreError that begins with ``what``."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}, {error.strerror or error}", where=where) from error


# --- reading --------------------------------------------------------------------------------------


def read_file(path: Path, limit: str, layout: Path, *, newest: bool = False) -> bytes:
    """Read a small file of a layout.

    ``newest``: other hosts replace the file, and its content is to be what it is now (:func:`ask_for_names`).

    Raises:
        StoreError: it cannot be read.
        UnsafePath: the path goes through a symbolic link, or it is not a regular file.
        LimitExceeded: it is larger than the limit of that name.
    """
    bounds = limits()
    most: int = getattr(bounds, limit)
    files = files_of(layout)

    def look() -> bytes:
        if newest:
            ask_for_names(path.parent, listed=True)
        return files.read(path, most + 1)

    with explained("file cannot be read", path):
        content = unmoved(look)
    if len(content) > most:
        raise bounds.exceeded(limit, "file is larger than {} bytes", path)
    return content


def unmoved(look: Callable[[], ResultT]) -> ResultT:
    """Return the result of ``look``, which reads a file, or its status, that other hosts replace.

    NFS gives ESTALE if that happens twice while ``look`` finds the file by its name, opens and reads it; it is called
    again then.

    Raises:
        OSError: as ``look``; ESTALE only if it does so for 5 s.
    """
    waits = pauses()
    end, attempts = time.monotonic() + _STALE[0], _STALE[1]
    while True:
        try:
            return look()
        except OSError as error:
            attempts -= 1
            if error.errno != errno.ESTALE or (attempts <= 0 and time.monotonic() > end):
                raise
        time.sleep(next(waits))


def pauses(longest: float = 0.02) -> Iterator[float]:
    """Yield the seconds between two attempts at what other hosts prevent, at random: from 1 ms to about 30.

    ``longest``: for a wait that another ends, where fewer attempts lose no turn. After 0.4 s a pause is about a
    twentieth of the time waited, up to so many seconds: a hundred waiters would otherwise keep a file server busy.
    """
    pause, waited = 0.001, 0.0
    while True:
        chosen = random.uniform(0.5, 1.5) * pause
        yield chosen
        waited += chosen
        pause = max(min(pause * 1.4, 0.02), min(waited / 20, longest))


# --- writing --------------------------------------------------------------------------------------


def replace_file(
    path: Path, content: bytes, layout: Path, staging: Path | None = None, *, durable: bool = True
) -> None:
    """Replace a file of ``layout`` in one step: readers see the old content or the new, whole.

    Its directory, and the one for staging, are created if missing. ``staging``: where the new file is written first.
    ``durable``: False for content that is checked when it is read: a power cut may leave the file damaged.
    """
    temporary = new_file(staging or layout / PRIVATE_DIRECTORY / "ingest", layout, content, durable=durable)
    rename = partial(rename_durably, layout=layout) if durable else files_of(layout).rename
    try:
        try:
            rename(temporary, path)
        except FileNotFoundError:
            make_directory(path.parent, layout)
            rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            files_of(layout).unlink(temporary)
        raise


def new_file(directory: Path, layout: Path, content: bytes, *, durable: bool = True) -> Path:
    """Write ``content`` to a new file with a random name; as :func:`create_file`."""
    fd, path = create_file(directory, layout)
    try:
        try:
            write_all(fd, content)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        with suppress(OSError):
            files_of(layout).unlink(path)
        raise
    return path


def create_file(directory: Path, layout: Path, holder: str = "") -> tuple[int, Path]:
    """Create a file with a random name; return a descriptor open for writing, and the path.

    Its directory is created if missing; it seldom is, so that is not checked first.
    Its mode follows the umask and its owner is the layout's if root works: tempfile would make it 0600, unreadable
    for other users of a shared layout (umoci.md B7). ``holder``: beginning of the name, before a dot.
    """
    path = directory / ((f"{holder}." if holder else "") + os.urandom(16).hex())
    files = files_of(layout)
    try:
        fd = files.open(path, _NEW)
    except FileNotFoundError:
        make_directory(directory, layout)
        fd = files.open(path, _NEW)
    try:
        give_to_owner(fd, layout)
    except BaseException:
        os.close(fd)
        files.unlink(path)
        raise
    return fd, path


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Call write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def make_directory(path: Path, layout: Path, *, durable: bool = True) -> None:
    """Create ``path`` and its missing parents in ``layout``, with its owner; fine if they exist.

    ``durable``: they are there after a power cut, too.

    Raises:
        FileNotFoundError: the layout does not exist. Its disk may be unmounted, and a directory created in its place
            would be hidden beneath it.
    """
    files = files_of(layout)
    if files.is_directory(path):
        return
    if path == layout or (path.parent == layout and path.name != BLOBS and not (layout / BLOBS).is_dir()):
        raise FileNotFoundError(errno.ENOENT, "layout no longer exists", str(layout))
    if not files.is_directory(path.parent):
        make_directory(path.parent, layout, durable=durable)
    try:
        with files.directory(path.parent) as parent:
            os.mkdir(path.name, dir_fd=parent)
    except FileExistsError:
        if not files.is_directory(path):
            raise
        return
    except OSError as error:
        # mkdirat(2) was given only a name: the error must have the path of the directory whose mode is wrong.
        error.filename = str(path)
        raise
    if durable:
        _sync(files, path.parent)
    with files.directory(path, _LISTED) as fd:
        give_to_owner(fd, layout)


def give_to_owner(fd: int, layout: Path) -> None:
    """Give a file that root creates in another user's layout to that user."""
    owner, mine = os.stat(layout), os.fstat(fd)
    if (owner.st_uid, owner.st_gid) != (mine.st_uid, mine.st_gid):
        # Refused to ordinary users, to root without CAP_CHOWN, and behind an NFS server that squashes root.
        with suppress(PermissionError):
            os.fchown(fd, owner.st_uid, owner.st_gid)


class Renames:
    """Renames of one thread that become durable together: a directory is synced once for many new files.

    A file is nameless after a power cut until then. So nothing durable may name it before: :func:`sync_renames`.
    """

    def __init__(self) -> None:
        self._process = os.getpid()
        self._directories: dict[Path, Path] = {}

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Collect the renames of this thread inside the block."""
        token = _collecting.set(self)
        try:
            yield
        finally:
            _collecting.reset(token)

    def add(self, directory: Path, layout: Path) -> bool:
        """Collect a rename; return False in a child, which has no part in it."""
        if self._process != os.getpid():
            return False
        self._directories[directory] = layout
        return True

    def sync(self) -> None:
        """Make the collected renames durable. Raises StoreError: they may be lost."""
        for directory, layout in list(self._directories.items()):
            with explained("names of new files cannot be stored", directory):
                with suppress(FileNotFoundError):  # a temporary layout
                    _sync(files_of(layout), directory)
                del self._directories[directory]


_collecting: ContextVar[Renames | None] = ContextVar("layerfarm_renames", default=None)


def sync_renames() -> None:
    """Make renames of this thread durable that are collected. Raises StoreError: they may be lost."""
    renames = _collecting.get()
    if renames is not None:
        renames.sync()


def rename_durably(source: Path, target: Path, layout: Path, *, unique: bool = False) -> None:
    """Rename within a layout, and make the rename durable: now, or with those that are collected.

    ``unique``: see :func:`layerfarm.jobs.fs.names.rename`.
    """
    files = files_of(layout)
    files.rename(source, target, unique=unique)
    renames = _collecting.get()
    if renames is None or not renames.add(target.parent, layout):
        _sync(files, target.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a layout's top directory durable."""
    _sync(files_of(path), path)


def _sync(files: Beneath, path: Path) -> None:
    with files.directory(path, _LISTED) as fd:
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network filesystems cannot
                raise
