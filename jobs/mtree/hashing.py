"""Read what a walk left unread, for one shard: contents, links' targets, xattrs."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import BinaryIO

from layerfarm.jobs.errors import MtreeSyntaxError, RootfsError, TreeChanged, UnsafePath
from layerfarm.jobs.fs import DirectoryCache, Rootfs, Widened, get_xattrs, proc_path, stat_regular, unreadable
from layerfarm.jobs.fs.unprivileged import ATTEMPTS
from layerfarm.jobs.mtree import vis
from layerfarm.jobs.mtree.keywords import BILLION, exact_xattr_keywords
from layerfarm.jobs.mtree.records import TYPE_OF
from layerfarm.jobs.mtree.shards import Shard

_SMALL = 256 << 10  # a file up to this size is read by one call into a string of its own
_BUFFER = 1 << 20
_REPORT_BYTES = 4 << 20
_REPORT_ENTRIES = 512


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

    A regular file is opened once, and must be what the walk saw, before and after it is read. With
    ``content=False`` no file is opened and the fragment has no digests. ``advanced`` is told about every
    4 MiB, or few hundred entries, how many bytes of content were done since; it may raise to stop the work.

    Raises:
        RootfsNotFound: the root does not exist or is not a directory.
        RootfsError: an entry cannot be read.
        TreeChanged: an entry is not any more what the walk saw.
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
        """Tell what was done since the last call."""
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
        """What an ordinary user's own mode keeps him from reading; again if another process put it back."""
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
            return exact_xattr_keywords(get_xattrs(proc_path(directory, os.fsencode(name))))
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
        return f" sha256digest={digest}{exact_xattr_keywords(xattrs)}" if xattrs else f" sha256digest={digest}"

    def _small(self, fd: int, size: int) -> str | None:
        data = os.read(fd, size + 1)
        return sha256(data).hexdigest() if len(data) == size else self._large(fd, size, data)

    def _large(self, fd: int, size: int, read: bytes = b"") -> str | None:
        """The digest of a file read through the buffer; None if it is not ``size`` bytes long."""
        digest = sha256(read)
        total = len(read)
        buffer = self._buffer
        told = 0
        while count := os.readv(fd, [buffer]):
            digest.update(buffer[:count])
            total += count
            if total > size:
                return None
            if total - told >= _REPORT_BYTES:
                # Not all at the end: a cancelled job must not wait for a file of many gigabytes.
                self._done += total - told
                told = total
                self.report()
        self._done -= told  # the caller adds the whole size
        return digest.hexdigest() if total == size else None

    def _other(self, path: str, kind: str, size: int, rdev: int) -> str:
        if kind == "dir":
            name = vis.decode(path.encode("ascii"))
            self._prefix = ""  # opening a directory may close the one of the last file
            return exact_xattr_keywords(get_xattrs(self._root if path == "." else self._directories.directory(name)))
        directory, entry = self._locate(path)
        xattrs = exact_xattr_keywords(get_xattrs(proc_path(directory, os.fsencode(entry))))
        if kind == "link":
            target = os.readlink(os.fsencode(entry), dir_fd=directory)
            if len(target) != size != 0:  # some filesystems do not know the size of a link
                raise TreeChanged("link changed since the walk", where=path)
            return f" link={vis.encode(target).decode('ascii')}{xattrs}"
        if kind in ("char", "block"):
            return f" device={os.major(rdev)}:{os.minor(rdev)}{xattrs}"
        return xattrs

    def _locate(self, path: str) -> tuple[int, str | bytes]:
        """The descriptor of the directory that holds ``path``, and the name in it, decoded.

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
        return TreeChanged("entry went away since the walk", where=where)
    return unreadable(error, where)
