"""Walk a tree once: names and lstat only. No file is opened, no link followed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from layerfarm.jobs.errors import RootfsError, TreeChanged
from layerfarm.jobs.fs import Rootfs, Widened, unreadable
from layerfarm.jobs.fs.unprivileged import is_locked
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.clock import NO_CLOCK, Clock
from layerfarm.jobs.mtree.records import NLINK_DIGITS, format_linked_record, format_record

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# So many directories of the current branch stay open; above them a parent is reopened through "..".
_OPEN_DIRECTORIES = 64
_IS_DIRECTORY = 0o4  # st_mode >> 12, cheaper than stat.S_ISDIR in the inner loop
_IS_FILE = 0o10
_IS_SOCKET = 0o14


class Walk(NamedTuple):
    """What a walk found."""

    entries: int
    bytes: int
    """Content of the regular files; a file with several links counts once for each."""
    untrusted: int
    """Entries whose ctime vouches for nothing, and is not recorded."""


def walk_tree(root: Path, out: BinaryIO, clock: Clock = NO_CLOCK) -> Walk:
    """Write the walk file of the tree at ``root``: one line for each entry, in mtree order.

    ``out`` must be seekable: links from outside the tree do not travel with an image, so the link counts
    of files that have some are corrected once all of the tree has been seen. Mounts below the root are
    walked. Names may be any bytes, and paths longer than PATH_MAX. ``clock`` was read just before: a
    ctime that is not older, or by another file system's clock, is not recorded, nor is that of a socket
    (whoever compares two trees is to meet each of them, to warn of it).

    Raises:
        RootfsNotFound: the root does not exist or is not a directory.
        RootfsError: a directory cannot be read.
        TreeChanged: an entry went away or became something else during the walk.
    """
    with Rootfs(root, to_be_read=True) as opened:
        found = opened.found
        tree = _TreeWalk(out, clock)
        tree.write([format_record(found, tree.ctime(found), ".")], {})
        tree.walk(os.open(".", _DIRECTORY, dir_fd=opened.fd), found)
    tree.correct_link_counts()
    return Walk(tree.entries, tree.bytes, tree.untrusted)


class _Directory:
    """A directory of the current branch: its descriptor, if still open, and what is left to do in it."""

    __slots__ = ("fd", "identity", "prefix", "subdirectories", "widened")

    def __init__(self, fd: int, found: os.stat_result, prefix: str, widened: Widened | None = None) -> None:
        self.fd = fd
        self.identity = (found.st_dev, found.st_ino)
        self.prefix = prefix
        self.widened = widened
        """Until this directory is left its owner, an ordinary user, may read it against its mode."""
        self.subdirectories: list[tuple[str, str, os.stat_result]] = []
        """Name, encoded name and lstat; the next one last."""


class _Inode:
    """An inode with several links: where in the walk file its link counts stand."""

    __slots__ = ("links", "places")

    def __init__(self, links: int) -> None:
        self.links = links
        self.places: list[int] = []


class _TreeWalk:
    def __init__(self, out: BinaryIO, clock: Clock) -> None:
        self.entries = 0
        self.bytes = 0
        self.untrusted = 0
        self._clock = clock
        self._out = out
        self._position = out.tell()
        self._inodes: dict[tuple[int, int], _Inode] = {}
        self._branch: list[_Directory] = []

    def ctime(self, found: os.stat_result) -> int:
        """What is recorded of an entry's ctime; the inner loop has its own copy of this."""
        if found.st_ctime_ns < self._clock.now and found.st_dev in self._clock.devices:
            return found.st_ctime_ns
        self.untrusted += 1
        return 0

    def walk(self, fd: int, found: os.stat_result) -> None:
        """Everything below the open directory ``fd``, depth first without recursion."""
        branch = self._branch
        branch.append(_Directory(fd, found, ""))
        try:
            self._list(branch[-1])
            while branch:
                if branch[-1].subdirectories:
                    self._enter(branch[-1])
                else:
                    self._leave()
        finally:
            for directory in reversed(branch):
                if directory.fd >= 0:
                    os.close(directory.fd)
                if directory.widened is not None:
                    directory.widened.restore()

    def _enter(self, parent: _Directory) -> None:
        name, encoded, found = parent.subdirectories.pop()
        path = parent.prefix + encoded
        self.write([format_record(found, self.ctime(found), path)], {})
        widened: Widened | None = None
        try:
            if is_locked(parent.fd, name, found):
                widened = Widened(parent.fd, name)
                fd = widened.open(lambda: os.open(name, _DIRECTORY, dir_fd=parent.fd))
            else:
                fd = os.open(name, _DIRECTORY, dir_fd=parent.fd)
        except OSError as error:
            if widened is not None:
                widened.restore()
            raise _failure(error, path) from error
        child = _Directory(fd, found, path + "/", widened)
        self._branch.append(child)
        if len(self._branch) > _OPEN_DIRECTORIES:
            far = self._branch[-_OPEN_DIRECTORIES - 1]
            if far.fd >= 0:  # after a way up and down again it is closed already
                os.close(far.fd)
                far.fd = -1
        self._list(child)

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
        fd = os.open("..", _DIRECTORY, dir_fd=child)
        found = os.fstat(fd)
        if (found.st_dev, found.st_ino) != parent.identity:
            os.close(fd)
            raise TreeChanged("directory was moved during the walk", where=_decoded(parent.prefix))
        parent.fd = fd

    def _list(self, directory: _Directory) -> None:
        """Write the non-directories of a directory and remember its sub-directories."""
        fd, prefix = directory.fd, directory.prefix
        names, encoded = _sorted_names(fd, prefix)
        lines: list[str] = []
        linked: dict[int, tuple[os.stat_result, int]] = {}
        subdirectories = directory.subdirectories
        size = untrusted = 0
        now, devices = self._clock
        # The inner loop of a walk: one lstat and one formatted line, no call of our own.
        stat = os.stat
        append = lines.append
        for name, text in zip(names, encoded, strict=True):
            try:
                found = stat(name, dir_fd=fd, follow_symlinks=False)
            except OSError as error:
                raise _failure(error, prefix + text) from error
            mode = found.st_mode
            kind = mode >> 12
            if kind == _IS_DIRECTORY:
                subdirectories.append((name, text, found))
                continue
            ctime = found.st_ctime_ns
            if ctime >= now or found.st_dev not in devices or kind == _IS_SOCKET:
                ctime = 0
                untrusted += 1
            if kind == _IS_FILE:
                size += found.st_size
            if found.st_nlink == 1:
                append(
                    f"{ctime} {mode} {found.st_size} 1 {found.st_uid} {found.st_gid} {found.st_mtime_ns}"
                    f" {found.st_ino} {found.st_dev} {found.st_rdev} {prefix}{text}\n"
                )
            else:
                line, place = format_linked_record(found, ctime, prefix + text)
                linked[len(lines)] = (found, place)
                append(line)
        subdirectories.reverse()
        self.bytes += size
        self.untrusted += untrusted
        self.write(lines, linked)

    def write(self, lines: list[str], linked: dict[int, tuple[os.stat_result, int]]) -> None:
        """Append ``lines``; ``linked`` tells which of them, by index, have a link count to be corrected."""
        if linked:
            place = self._position
            for index, line in enumerate(lines):
                if index in linked:
                    found, within = linked[index]
                    self._seen(found, place + within)
                place += len(line)
        self.entries += len(lines)
        self._position += self._out.write("".join(lines).encode("ascii"))

    def _seen(self, found: os.stat_result, place: int) -> None:
        key = (found.st_dev, found.st_ino)
        inode = self._inodes.get(key)
        if inode is None:
            inode = self._inodes[key] = _Inode(found.st_nlink)
        inode.places.append(place)
        # An inode whose links have all been found needs no correction; forgetting it keeps memory small.
        if len(inode.places) == inode.links:
            del self._inodes[key]

    def correct_link_counts(self) -> None:
        """Put the number of links inside the tree where lstat counted links from outside too."""
        for inode in self._inodes.values():
            count = b"%0*d" % (NLINK_DIGITS, len(inode.places))
            for place in inode.places:
                self._out.seek(place)
                self._out.write(count)
        self._out.seek(self._position)


def _sorted_names(fd: int, prefix: str) -> tuple[list[str], list[str]]:
    """The names in a directory in bytewise order, and the same encoded."""
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
        return TreeChanged("entry went away during the walk", where=where)
    return unreadable(error, where)


def _decoded(path: str) -> bytes:
    return vis.decode(path.rstrip("/").encode("ascii")) or b"."
