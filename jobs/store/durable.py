"""Files of a shared layout that survive a crash and that their owner can read (DESIGN law 4)."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from layerfarm.jobs.errors import StoreError
from layerfarm.jobs.fs import Beneath

BLOBS: Final = "blobs"
"""What every layout has, and a new one has first."""
_SPECIFIED: Final = (BLOBS, "index.json", "oci-layout")
_LISTED: Final = os.O_RDONLY | os.O_DIRECTORY


def files_of(layout: Path) -> Beneath:
    """The way to the files of a layout, which somebody else may have made.

    What image-layout.md specifies may be links: umoci and skopeo read such layouts (blobs shared between layouts, the
    link farms of build systems), and no blob is believed before its digest is verified. The private directory is
    layerfarm's own, and has none.
    """
    return Beneath(layout, linked=_SPECIFIED)


@contextmanager
def explained(what: str, where: Path) -> Iterator[None]:
    """Turn an OSError (disk full, no permission) into a StoreError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{what}, {error.strerror or error}", where=where) from error


def create_file(directory: Path, owner_of: Path, whose: str = "") -> tuple[int, Path]:
    """A new file with a random name: mode by the umask, owner that of ``owner_of`` when we are root.

    ``whose``: what the name begins with, before a dot.

    tempfile would make it 0600, and a blob or index of that mode is unreadable for the other users
    of a shared layout (umoci.md B7). Returns a descriptor open for writing, and the path.
    """
    path = directory / ((f"{whose}." if whose else "") + os.urandom(16).hex())
    files = files_of(owner_of)
    fd = files.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        give_to_owner(fd, owner_of)
    except BaseException:
        os.close(fd)
        files.unlink(path)
        raise
    return fd, path


def make_directory(path: Path, owner_of: Path) -> None:
    """``path`` and its missing parents in the layout ``owner_of``, owned like that; fine if they exist.

    Raises:
        FileNotFoundError: the layout is not there. Its disk may just not be mounted, and what came into being in its
            place would lie beneath it, seen by nobody.
    """
    files = files_of(owner_of)
    if files.is_directory(path):
        return
    if path == owner_of or (path.parent == owner_of and path.name != BLOBS and not (owner_of / BLOBS).is_dir()):
        raise FileNotFoundError(errno.ENOENT, "there is no layout here any more", str(owner_of))
    if not files.is_directory(path.parent):
        make_directory(path.parent, owner_of)
    try:
        with files.directory(path.parent) as parent:
            os.mkdir(path.name, dir_fd=parent)
    except FileExistsError:
        if not files.is_directory(path):
            raise
        return
    _sync(files, path.parent)
    with files.directory(path, _LISTED) as fd:
        give_to_owner(fd, owner_of)


def give_to_owner(fd: int, owner_of: Path) -> None:
    """When root works in somebody's layout, what it makes belongs to that somebody."""
    owner, mine = os.stat(owner_of), os.fstat(fd)
    if (owner.st_uid, owner.st_gid) != (mine.st_uid, mine.st_gid):
        # An ordinary user may not, nor root without CAP_CHOWN or behind an NFS server that takes root for nobody.
        with suppress(PermissionError):
            os.fchown(fd, owner.st_uid, owner.st_gid)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def rename_durably(source: Path, target: Path, layout: Path) -> None:
    """Rename within a layout, and make the rename itself survive a crash.

    An NFS client whose server's answer was lost asks once more, and is told that there is no such file any
    more; then the target says whether the rename was done (relayer.md 4.2, point 2).
    """
    files = files_of(layout)
    ours = files.lstat(source)
    try:
        files.rename(source, target)
    except FileNotFoundError:
        if not (files.is_file(target) and os.path.samestat(ours, files.lstat(target))):
            raise
    _sync(files, target.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a layout's own directory survive a crash."""
    _sync(files_of(path), path)


def _sync(files: Beneath, path: Path) -> None:
    with files.directory(path, _LISTED) as fd:
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network filesystems cannot
                raise


def read_unmoved(path: Path, most: int, layout: Path) -> bytes:
    """At most ``most`` bytes of a file in a layout that others replace meanwhile.

    One that is replaced on another host while it is read here gives ESTALE on NFS, not its old content; whoever
    opens it again has the new one.
    """
    for _ in range(_STALE_READS):
        try:
            return files_of(layout).read(path, most)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            stale = error
    raise stale


_STALE_READS: Final = 10


def replace_file(path: Path, content: bytes, staging: Path, owner_of: Path) -> None:
    """Give ``path`` new content in one step: readers see the old file or the new one, whole."""
    fd, temporary = create_file(staging, owner_of)
    try:
        try:
            write_all(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        rename_durably(temporary, path, owner_of)
    except BaseException:
        with suppress(OSError):
            files_of(owner_of).unlink(temporary)
        raise
