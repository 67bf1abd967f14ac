"""The walk of a tree, or of some of its directories: names and lstat only. No file is opened, no link followed.

The walk file has one record, a line, for each entry in mtree order:
``ctime-ns mode size nlink uid gid mtime-ns ino dev rdev path``, numbers in decimal, the path encoded as in a
manifest. The ctime is 0 where it proves nothing (:mod:`layerfarm.jobs.mtree.clock`). A record that equals that of an
earlier walk byte for byte, and does not begin with ``0``, belongs to an untouched entry: no number has to be parsed.
"""

from __future__ import annotations

import os
import stat
from operator import itemgetter
from typing import IO, Final, NamedTuple

from layerfarm.jobs.errors import RootfsError, TreeChanged, UnsafePath
from layerfarm.jobs.fs import DirectoryCache, Widened, unreadable
from layerfarm.jobs.fs.closing import ClosedOnError
from layerfarm.jobs.fs.unprivileged import is_locked
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.clock import NO_CLOCK, Clock
from layerfarm.jobs.mtree.model import EntryType, mtree_key

RACY: Final = b"0 "
"""Beginning of the record of a racily clean entry."""

TYPE_OF: Final[dict[int, EntryType]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# At most this many directories of the current branch stay open; above them a parent is reopened through "..".
_OPEN_DIRECTORIES = 64
_IS_DIRECTORY = 0o4  # st_mode >> 12, cheaper than stat.S_ISDIR in the inner loop
_IS_SOCKET = 0o14
_ARE_DEVICES = (0o2, 0o6)
_SHARED = itemgetter(stat.ST_MODE, stat.ST_DEV, stat.ST_NLINK, stat.ST_UID, stat.ST_GID)
"""Fields of an lstat that are the same for most entries of a directory."""
_NLINK_DIGITS = 10
"""Width of the link count of an entry with several links, which is corrected in place at the end."""
_FLUSH_LINES = 1024


class Walk(NamedTuple):
    """Counts of a walk."""

    entries: int
    racy: int
    """Entries whose ctime proves nothing and is not recorded."""


def key_of_record(line: bytes) -> bytes:
    """Return the mtree key of a record.

    Raises:
        ValueError: it is not a line of a walk file.
    """
    fields = line.split()
    return mtree_key(vis.decode(fields[10]), int(fields[1]) >> 12 == _IS_DIRECTORY)


class Pending(NamedTuple):
    """A directory that is known, and not walked yet."""

    path: str
    """From the root, encoded."""
    found: os.stat_result
    """Its lstat."""


class Part(NamedTuple):
    """Walked directories."""

    text: bytes
    entries: int
    racy: int
    links: dict[tuple[int, int], list[int]]
    """By inode with links elsewhere: the places of their link counts in the text."""


class _Directory:
    """A directory of the current branch: its descriptor, if still open, and its unvisited sub-directories."""

    __slots__ = ("fd", "identity", "prefix", "subdirectories", "widened")

    def __init__(self, fd: int, found: os.stat_result, prefix: str, widened: Widened | None = None) -> None:
        self.fd = fd
        self.identity = (found.st_dev, found.st_ino)
        self.prefix = prefix
        self.widened = widened
        """Widened mode of an ordinary user's own directory, restored when the walk leaves it."""
        self.subdirectories: list[tuple[str, str, os.stat_result]] = []
        """Name, encoded name and lstat; the next one last."""


class TreeWalk:
    """Writes records to ``out``, which must be seekable; ``clock`` as for :func:`layerfarm.jobs.mtree.walk_tree`."""

    def __init__(self, out: IO[bytes], clock: Clock) -> None:
        self.entries = 0
        self.racy = 0
        self.links: dict[tuple[int, int], list[int]] = {}
        """By inode with several links: the places of their link counts in the walk file."""
        self._clock = clock
        self._out = out
        self._position = out.tell()
        self._lines: list[str] = []
        self._branch: list[_Directory] = []

    def walk(self, fd: int, found: os.stat_result, limit: int | None = None) -> list[Pending]:
        """Walk the open root ``fd`` and everything below, depth first without recursion.

        ``limit``: entries after which the walk stops. Return the directories that are left to be walked, in order.

        Raises:
            RootfsError, TreeChanged: as :func:`layerfarm.jobs.mtree.walk_tree`.
        """
        return self._walk(_Directory(fd, found, ""), found, ".", limit)

    def walk_pending(self, directories: DirectoryCache, pending: Pending, limit: int | None = None) -> list[Pending]:
        """Walk a directory below the root of ``directories`` the same way."""
        try:
            parent, name = directories.parent(_decoded(pending.path))
        except UnsafePath as error:
            raise TreeChanged(error.what, where=_decoded(pending.path)) from error
        except OSError as error:
            raise _failure(error, pending.path) from error
        fd, widened = self._open(parent, os.fsdecode(name), pending.found, pending.path)
        directory = _Directory(fd, pending.found, pending.path + "/", widened)
        return self._walk(directory, pending.found, pending.path, limit)

    def append(self, part: Part) -> None:
        """Write what another walk has found."""
        for inode, places in part.links.items():
            self.links.setdefault(inode, []).extend(self._position + place for place in places)
        self._position += self._out.write(part.text)
        self.entries += part.entries
        self.racy += part.racy

    def _walk(self, first: _Directory, found: os.stat_result, path: str, limit: int | None) -> list[Pending]:
        branch = self._branch
        branch.append(first)
        left: list[Pending] = []
        try:
            self._list(first, found, path)
            while branch:
                if not branch[-1].subdirectories:
                    self._leave()
                elif limit is not None and self.entries + len(self._lines) >= limit and self._may_stop():
                    for directory in reversed(branch):
                        waiting = reversed(directory.subdirectories)
                        left += [Pending(directory.prefix + text, found) for _, text, found in waiting]
                    break
                else:
                    self._enter(branch[-1])
        finally:
            for directory in reversed(branch):
                if directory.fd >= 0:
                    os.close(directory.fd)
                if directory.widened is not None:
                    directory.widened.restore()
            branch.clear()
        self._flush()
        return left

    def _may_stop(self) -> bool:
        """Return False while a directory is widened: those below it could not be entered later."""
        return all(directory.widened is None for directory in self._branch)

    def _enter(self, parent: _Directory) -> None:
        name, encoded, found = parent.subdirectories.pop()
        path = parent.prefix + encoded
        fd, widened = self._open(parent.fd, name, found, path)
        child = _Directory(fd, found, path + "/", widened)
        self._branch.append(child)
        if len(self._branch) > _OPEN_DIRECTORIES:
            far = self._branch[-_OPEN_DIRECTORIES - 1]
            if far.fd >= 0:  # it may be closed already
                os.close(far.fd)
                far.fd = -1
        self._list(child, found, path)

    def _open(self, parent: int, name: str, found: os.stat_result, path: str) -> tuple[int, Widened | None]:
        """Open a directory; its mode is widened if its owner, an ordinary user, could not list it."""
        widened: Widened | None = None
        try:
            if is_locked(parent, name, found):
                widened = Widened(parent, name)
                return widened.open(lambda: os.open(name, DIRECTORY, dir_fd=parent)), widened
            return os.open(name, DIRECTORY, dir_fd=parent), None
        except OSError as error:
            if widened is not None:
                widened.restore()
            raise _failure(error, path) from error

    def _leave(self) -> None:
        child = self._branch.pop()
        try:
            if self._branch and self._branch[-1].fd < 0:
                self._reopen(self._branch[-1], child.fd)
        finally:
            os.close(child.fd)
            if child.widened is not None:
                child.widened.restore()

    def _reopen(self, parent: _Directory, child: int) -> None:
        fd = os.open("..", DIRECTORY, dir_fd=child)
        with ClosedOnError(fd):
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != parent.identity:
                raise TreeChanged("directory was moved during the walk", where=_decoded(parent.prefix))
        parent.fd = fd

    def _list(self, directory: _Directory, itself: os.stat_result, path: str) -> None:
        """Record a directory and the non-directories in it, and remember its sub-directories."""
        fd, prefix = directory.fd, directory.prefix
        now, devices = self._clock
        append = self._lines.append
        ctime, racy = itself.st_ctime_ns, 0
        if ctime >= now or itself.st_dev not in devices:
            ctime, racy = 0, 1
        append(_record(itself, ctime, itself.st_nlink, path))
        names, encoded = _sorted_names(fd, prefix)
        subdirectories = directory.subdirectories
        # The inner loop of a walk: one lstat and one formatted line, no call of Python code. The fields that an entry
        # shares with the one before it are checked and formatted once, which saves a tenth of the time.
        lstat, like = os.lstat, None
        for name, text in zip(names, encoded, strict=True):
            try:
                found = lstat(name, dir_fd=fd)
            except OSError as error:
                raise _failure(error, prefix + text) from error
            shared = _SHARED(found)
            if shared != like:
                mode, device, links, uid, gid = shared
                kind = mode >> 12
                if kind == _IS_DIRECTORY:
                    subdirectories.append((name, text, found))
                    continue
                like = shared
                before = now if device in devices and kind != _IS_SOCKET else NO_CLOCK.now
                plain = links == 1 and kind not in _ARE_DEVICES
                shared_mode, shared_owner, shared_end = f" {mode} ", f" 1 {uid} {gid} ", f" {device} 0 {prefix}"
            ctime = found.st_ctime_ns
            if ctime >= before:
                ctime = 0
                racy += 1
            if plain:
                append(
                    f"{ctime}{shared_mode}{found.st_size}{shared_owner}{found.st_mtime_ns}"
                    f" {found.st_ino}{shared_end}{text}\n"
                )
            elif found.st_nlink == 1:
                append(_record(found, ctime, 1, prefix + text))
            else:
                self._append_linked(found, ctime, prefix + text)
        subdirectories.reverse()
        self.racy += racy
        if len(self._lines) >= _FLUSH_LINES:
            self._flush()

    def _append_linked(self, found: os.stat_result, ctime: int, path: str) -> None:
        """Record an entry with several links, and the place of its link count."""
        self._flush()
        before = f"{ctime} {found.st_mode} {found.st_size} "
        self._lines.append(_record(found, ctime, f"{found.st_nlink:0{_NLINK_DIGITS}d}", path))
        inode = (found.st_dev, found.st_ino)
        places = self.links.setdefault(inode, [])
        places.append(self._position + len(before))
        # An inode whose links are all found needs no correction; dropping it saves memory.
        if len(places) == found.st_nlink:
            del self.links[inode]

    def _flush(self) -> None:
        self.entries += len(self._lines)
        self._position += self._out.write("".join(self._lines).encode("ascii"))
        self._lines.clear()

    def correct_link_counts(self) -> None:
        """Replace link counts of lstat by those inside the tree."""
        for places in self.links.values():
            for place in places:
                self._out.seek(place)
                self._out.write(b"%0*d" % (_NLINK_DIGITS, len(places)))
        self._out.seek(self._position)


def _record(found: os.stat_result, ctime: int, links: int | str, path: str) -> str:
    return (
        f"{ctime} {found.st_mode} {found.st_size} {links} {found.st_uid} {found.st_gid}"
        f" {found.st_mtime_ns} {found.st_ino} {found.st_dev} {found.st_rdev} {path}\n"
    )


def _sorted_names(fd: int, prefix: str) -> tuple[list[str], list[str]]:
    """Return the names in a directory in bytewise order, and the same encoded."""
    try:
        names = os.listdir(fd)
    except OSError as error:
        raise _failure(error, prefix) from error
    if vis.all_plain("\0".join(names)):
        names.sort()
        return names, names
    raw = sorted(map(os.fsencode, names))
    return list(map(os.fsdecode, raw)), [vis.encode(name).decode("ascii") for name in raw]


def _failure(error: OSError, path: str) -> RootfsError:
    where = _decoded(path)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return TreeChanged("entry was removed during the walk", where=where)
    return unreadable(error, where)


def _decoded(path: str) -> bytes:
    return vis.decode(path.rstrip("/").encode("ascii")) or b"."
