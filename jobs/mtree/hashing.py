"""Read what a walk does not: contents, link targets, xattrs; in shards of equal cost or all at once."""

from __future__ import annotations

import errno
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep
from typing import BinaryIO, NamedTuple

from layerfarm.jobs.errors import MtreeSyntaxError, RootfsError, TreeChanged, UnsafePath
from layerfarm.jobs.fs import DirectoryCache, Rootfs, Widened, get_xattrs, proc_path, stat_regular, unreadable
from layerfarm.jobs.fs.unprivileged import ATTEMPTS
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.fragments import merge_fragments
from layerfarm.jobs.mtree.model import BILLION, Entry
from layerfarm.jobs.mtree.vis import xattr_keywords
from layerfarm.jobs.mtree.walk import TYPE_OF
from layerfarm.jobs.mtree.walkers import walk_tree

_SMALL = 256 << 10  # a file up to this size is read by one call into a string of its own
_BUFFER = 1 << 20
_REPORT_BYTES = 4 << 20
_REPORT_ENTRIES = 512
# Cost of an entry besides its content, as bytes hashed in the same time. Opening, two fstat, the xattrs and a line
# take 12 us for a file and 4 us without content, as measured; sha256 does 1.8 GB/s.
_FILE_COST = 22_000
_ENTRY_COST = 7_000


class Shard(NamedTuple):
    """A byte range of a walk file, on line boundaries."""

    offset: int
    length: int
    entries: int
    bytes: int
    """Content of the regular files in it."""


def snapshot(root: Path, hash_content: bool = True) -> Iterator[Entry]:
    """Yield the entries of a small tree at ``root`` in mtree order, read by one process on first use.

    Without ``hash_content`` no regular file is opened and ``sha256`` is None.

    Raises:
        RootfsError, TreeChanged: as :func:`layerfarm.jobs.mtree.walk_tree` and :func:`hash_shard`.
    """
    with TemporaryDirectory(prefix="layerfarm-") as work:
        walk_file, fragment = Path(work, "walk"), Path(work, "fragment")
        with walk_file.open("w+b") as out:
            walk = walk_tree(root, out)
        (shard,) = plan_shards(walk_file, 1)
        with fragment.open("wb") as out:
            hash_shard(root, walk_file, shard, out, lambda nbytes: None, content=hash_content)
        yield from merge_fragments([fragment], walk.entries)


def plan_shards(walk_file: Path, count: int) -> list[Shard]:
    """Cut the walk file into at most ``count`` shards of about equal cost, none of them empty.

    The same walk file and count always give the same shards, and their concatenation is the file.

    Raises:
        MtreeSyntaxError: it is not a walk file.
    """
    ends = array("Q")  # offset in the file after each line
    contents = array("Q")  # bytes to hash up to and including each line
    costs = array("Q")
    end = content = cost = 0
    with walk_file.open("rb") as stream:
        for line in stream:
            try:
                _, mode, length, _ = line.split(b" ", 3)
                end += len(line)
                if int(mode) >> 12 == 0o10:
                    size = int(length)
                    content += size
                    cost += size + _FILE_COST
                else:
                    cost += _ENTRY_COST
            except ValueError as error:
                raise MtreeSyntaxError("not a line of a walk file", where=line[:200]) from error
            ends.append(end)
            contents.append(content)
            costs.append(cost)
    shards = []
    first = 0
    for number in range(1, count + 1):
        # The line that crosses the share of this shard belongs to it.
        last = min(bisect_left(costs, cost * number // count) + 1, len(ends))
        if last > first:
            offset, before = (ends[first - 1], contents[first - 1]) if first else (0, 0)
            shards.append(Shard(offset, ends[last - 1] - offset, last - first, contents[last - 1] - before))
            first = last
    return shards


def hash_shard(
    root: Path,
    walk_file: Path,
    shard: Shard,
    out: BinaryIO,
    advanced: Callable[[int], None],
    *,
    content: bool = True,
) -> None:
    """Write the fragment of one shard: a full-path mtree line for each entry, with all its keywords.

    A regular file is opened once, and must be as the walk recorded it, before and after it is read. With
    ``content=False`` no file is opened and the fragment has no digests. ``advanced`` is called about every 4 MiB or
    few hundred entries with the bytes of content done since its last call; it may raise to stop.

    Raises:
        RootfsNotFound: the root does not exist or is not a directory.
        RootfsError: an entry cannot be read.
        TreeChanged: an entry is no longer as the walk recorded it.
        MtreeSyntaxError: the walk file is damaged.
    """
    with (
        Rootfs(root, to_be_read=True) as opened,
        DirectoryCache(opened.fd) as directories,
        walk_file.open("rb") as records,
    ):
        records.seek(shard.offset)
        reader = _Reader(opened, directories, advanced, content)
        left = shard.length
        lines: list[str] = []
        for record in records:
            if left <= 0:
                break
            left -= len(record)
            lines.append(reader.line(record.decode("ascii")))
            if len(lines) >= _REPORT_ENTRIES:
                out.write("".join(lines).encode("ascii"))
                lines.clear()
                reader.report()
        if left:
            raise MtreeSyntaxError("walk file does not hold the shard", where=walk_file)
        out.write("".join(lines).encode("ascii"))
        reader.report()


class _Reader:
    """Turns walk records into fragment lines."""

    def __init__(
        self, rootfs: Rootfs, directories: DirectoryCache, advanced: Callable[[int], None], content: bool
    ) -> None:
        self._rootfs = rootfs
        self._root = rootfs.fd
        self._directories = directories
        self._advanced = advanced
        self._content = content
        self._done = 0
        self._prefix = ""
        self._parent = rootfs.fd
        self._buffer = memoryview(bytearray(_BUFFER))

    def report(self) -> None:
        done, self._done = self._done, 0
        self._advanced(done)

    def line(self, record: str) -> str:
        try:
            _ctime, mode, size, nlink, uid, gid, mtime, ino, _dev, rdev, path = record.split()
            bits = int(mode)
            kind = TYPE_OF[bits & 0o170000]
            length, nanoseconds, inode, device = int(size), int(mtime), int(ino), int(rdev)
        except (ValueError, KeyError) as error:
            raise MtreeSyntaxError("not a line of a walk file", where=record[:200]) from error
        try:
            try:
                if kind == "file":
                    rest = self._file(path, length, inode, nanoseconds)
                else:
                    rest = self._other(path, kind, length, device)
            except PermissionError:
                rest = self._own(path, kind, length, inode, nanoseconds, device)
        except OSError as error:
            raise _failure(error, path) from error
        except (TreeChanged, UnsafePath) as error:
            raise TreeChanged(error.what, where=vis.decode(path.encode("ascii"))) from error
        seconds, nanoseconds = divmod(nanoseconds, BILLION)
        return (
            f"{'.' if path == '.' else './' + path} type={kind} mode=0{bits & 0o7777:o} uid={uid} gid={gid}"
            f" size={size} nlink={int(nlink)} time={seconds}.{nanoseconds:09d}{rest}\n"
        )

    def _own(self, path: str, kind: str, size: int, ino: int, mtime: int, rdev: int) -> str:
        """Read an ordinary user's own entry despite its mode; retry if another process restored the mode."""
        attempts = 0
        while True:
            attempts += 1
            try:
                if kind != "file":
                    return self._other(path, kind, size, rdev)
                directory, name = self._locate(path)
                with Widened(directory, name) as widened:
                    return widened.open(lambda: self._file(path, size, ino, mtime))
            except PermissionError:
                if attempts == ATTEMPTS:
                    raise
                self._directories.close()
                self._prefix = ""
                self._rootfs.regain()
                sleep(attempts / 1000)

    def _file(self, path: str, size: int, ino: int, mtime: int) -> str:
        directory, name = self._locate(path)
        if not self._content:
            return xattr_keywords(get_xattrs(proc_path(directory, os.fsencode(name))))
        fd, found = stat_regular(directory, name)
        try:
            if found.st_size != size or found.st_mtime_ns != mtime or found.st_ino != ino:
                raise TreeChanged("file changed since the walk", where=path)
            digest = self._small(fd, size) if size <= _SMALL else self._large(fd, size)
            found = os.fstat(fd)
            if digest is None or found.st_size != size or found.st_mtime_ns != mtime:
                raise TreeChanged("file changed while it was read", where=path)
            xattrs = get_xattrs(fd)
        finally:
            os.close(fd)
        self._done += size
        if self._done >= _REPORT_BYTES:
            self.report()
        return f" sha256digest={digest}{xattr_keywords(xattrs)}" if xattrs else f" sha256digest={digest}"

    def _small(self, fd: int, size: int) -> str | None:
        data = os.read(fd, size + 1)
        return sha256(data).hexdigest() if len(data) == size else self._large(fd, size, data)

    def _large(self, fd: int, size: int, read: bytes = b"") -> str | None:
        """Return the digest of a file read through the buffer; None if it does not have ``size`` bytes."""
        digest = sha256(read)
        total = len(read)
        buffer = self._buffer
        reported = 0
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
            total += count
            if total > size:
                return None
            if total - reported >= _REPORT_BYTES:
                # Not all at the end: a cancelled job must not wait for a file of many gigabytes.
                self._done += total - reported
                reported = total
                self.report()
        self._done -= reported  # the caller adds the whole size
        return digest.hexdigest() if total == size else None

    def _other(self, path: str, kind: str, size: int, rdev: int) -> str:
        if kind == "dir":
            name = vis.decode(path.encode("ascii"))
            self._prefix = ""  # opening a directory may close that of the last file
            return xattr_keywords(get_xattrs(self._root if path == "." else self._directories.directory(name)))
        directory, entry = self._locate(path)
        xattrs = xattr_keywords(get_xattrs(proc_path(directory, os.fsencode(entry))))
        if kind == "link":
            target = os.readlink(os.fsencode(entry), dir_fd=directory)
            if len(target) != size != 0:  # some filesystems do not know the size of a link
                raise TreeChanged("link changed since the walk", where=path)
            return f" link={vis.encode(target).decode('ascii')}{xattrs}"
        if kind in ("char", "block"):
            return f" device={os.major(rdev)}:{os.minor(rdev)}{xattrs}"
        return xattrs

    def _locate(self, path: str) -> tuple[int, str | bytes]:
        """Return the descriptor of the directory that holds ``path``, and the name in it, decoded.

        Neighbours in a walk file share their directory: the last one is kept.
        """
        head, _, name = path.rpartition("/")
        if head != self._prefix or not head:
            raw = vis.decode(head.encode("ascii"))
            self._parent = self._directories.directory(raw) if raw else self._root
            self._prefix = head
        return self._parent, (vis.decode(name.encode("ascii")) if "\\" in name else name)


def _failure(error: OSError, path: str) -> RootfsError:
    where = vis.decode(path.encode("ascii"))
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
        return TreeChanged("entry was removed since the walk", where=where)
    return unreadable(error, where)
