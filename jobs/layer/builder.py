"""One entry of a tree as tar bytes: what :mod:`generate` and :mod:`insert` share."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from layerfarm.jobs.errors import LayerError, TreeChanged
from layerfarm.jobs.fs import Widened, get_xattrs, portable_xattrs, proc_path, stat_regular
from layerfarm.jobs.layer import rootless
from layerfarm.jobs.layer.idmap import IdMap
from layerfarm.jobs.layer.whiteouts import check_real_name
from layerfarm.jobs.mtree.model import ROOT, Xattrs
from layerfarm.jobs.tar.writer import (
    BLOCK,
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    REGULAR,
    SYMLINK,
    TRAILER,
    Header,
    encode_header,
    hardlink,
    padding,
)

CHUNK: Final = 1 << 20
"""Bytes of the pieces that a layer comes in."""

_SPECIAL: Final = {stat.S_IFCHR: CHAR, stat.S_IFBLK: BLOCK_DEVICE, stat.S_IFIFO: FIFO}


@dataclass(frozen=True)
class GenerateOptions:
    """How a layer is written."""

    uid_map: IdMap = field(default_factory=IdMap)
    gid_map: IdMap = field(default_factory=IdMap)
    rootless: bool = False
    """Owners come from ``user.rootlesscontainers``, which is left out of the layer; where there is none it is root."""
    source_date_epoch: int | None = None
    """Seconds; mtimes newer than it become it (B1.4)."""
    advanced: Callable[[int], None] | None = None
    """Told the bytes of content read, now and then."""
    warn: Callable[[str], None] | None = None
    """Told what is left out: sockets, empty xattr values."""


class Packer:
    """Turns entries into tar bytes, in pieces of :data:`CHUNK` bytes, the last one shorter.

    Content is read into the piece itself, and a piece is a block of the compressor: joining what was read
    into pieces and those into blocks took 0.6 s of CPU for 2.3 GB.
    """

    def __init__(self, options: GenerateOptions) -> None:
        self._options = options
        self._links: dict[tuple[int, int], Header] = {}
        """The entry that was written for each inode with several names, by device and number."""
        self._piece = memoryview(bytearray(CHUNK))
        self._used = 0
        self._unreported = 0

    def whiteout(self, name: bytes) -> Iterator[bytes]:
        """A whiteout entry: an empty file of nobody and no time (B1.9)."""
        yield from self._put(encode_header(Header(name, REGULAR)))

    def entry(self, directory: int, base: bytes, found: os.stat_result, name: bytes) -> Iterator[bytes]:
        """The entry ``base`` of an open directory, which lstat found so, under ``name`` in the layer.

        Raises:
            TreeChanged: it is not as ``found`` says (any more), or changes while it is read.
            LayerError: it cannot be stored in a layer.
        """
        check_real_name(name)
        kind = stat.S_IFMT(found.st_mode)
        if found.st_nlink > 1 and kind not in (stat.S_IFDIR, stat.S_IFSOCK):
            # By device too, and never a directory: an inode's number repeats on other filesystems, and
            # umoci then stores one file as a link to another (B1.7).
            first = self._links.get((found.st_dev, found.st_ino))
            if first is not None:
                yield from self._put(encode_header(hardlink(first, name)))
                return
        if kind == stat.S_IFREG:
            yield from self._regular(directory, base, found, name)
        elif kind == stat.S_IFDIR:
            try:
                xattrs = _directory_xattrs(directory, base)
            except PermissionError:
                with Widened(directory, base) as widened:
                    xattrs = widened.open(lambda: _directory_xattrs(directory, base))
            # The root's name has no slash (B1.2).
            yield from self._put(self._header(found, name if name == ROOT else name + b"/", DIRECTORY, xattrs))
        elif kind == stat.S_IFSOCK:
            # tar cannot hold it and a running program makes its own; Docker and containers/storage
            # leave it out too (B1.13).
            self._warn(f"socket left out: {os.fsdecode(name)!r}")
        else:
            xattrs = get_xattrs(proc_path(directory, base))
            if kind == stat.S_IFLNK:
                target = os.readlink(base, dir_fd=directory)
                header = self._header(found, name, SYMLINK, xattrs, link=target)
            elif kind in _SPECIAL:
                device = (0, 0) if kind == stat.S_IFIFO else (os.major(found.st_rdev), os.minor(found.st_rdev))
                header = self._header(found, name, _SPECIAL[kind], xattrs, device=device)
            else:
                raise LayerError("entry of a type that no layer can hold", where=name)
            yield from self._put(header)

    def end(self) -> Iterator[bytes]:
        """The trailer and whatever is held."""
        yield from self._put(TRAILER)
        if self._used:
            yield self._take()
        if self._options.advanced is not None:
            self._options.advanced(self._unreported)

    def _regular(self, directory: int, base: bytes, found: os.stat_result, name: bytes) -> Iterator[bytes]:
        fd, opened, widened = _open_own(directory, base)
        try:
            # Widening the mode of a file changes its ctime.
            _check_same(found, opened if widened is None else widened.found, name)
            yield from self._put(self._header(found, name, REGULAR, get_xattrs(fd), size=found.st_size))
            left = found.st_size
            while left:
                if self._used == CHUNK:
                    yield self._take()
                count = os.readv(fd, [self._piece[self._used : self._used + left]])
                if not count:
                    raise TreeChanged("file became shorter while it was read", where=name)
                self._used += count
                left -= count
                self._advance(count)
            # Also sees that it grew: the size is compared.
            _check_same(opened, os.fstat(fd), name)
        finally:
            os.close(fd)
            if widened is not None:
                widened.restore()
        if found.st_size % BLOCK:
            yield from self._put(padding(found.st_size))

    def _header(
        self,
        found: os.stat_result,
        name: bytes,
        type_: bytes,
        xattrs: Xattrs,
        *,
        size: int = 0,
        link: bytes = b"",
        device: tuple[int, int] = (0, 0),
    ) -> bytes:
        options = self._options
        uid, gid, xattrs = rootless.owner_in_image(
            found.st_uid, found.st_gid, xattrs, options.uid_map, options.gid_map, rootless=options.rootless
        )
        if xattrs:
            xattrs = portable_xattrs(xattrs, lambda key, reason: self._lost(key, reason, name))
        # Floor, so that the manifest's whole seconds agree (B1.3).
        mtime = found.st_mtime_ns // 10**9
        if options.source_date_epoch is not None and mtime > options.source_date_epoch:
            mtime = options.source_date_epoch
        mode = stat.S_IMODE(found.st_mode)
        header = Header(name, type_, mode, uid, gid, size, mtime, link, device, xattrs)
        if found.st_nlink > 1 and type_ != DIRECTORY:
            self._links[found.st_dev, found.st_ino] = header
        return encode_header(header)

    def _put(self, data: bytes) -> Sequence[bytes]:
        """Append ``data``; the pieces that this fills."""
        end = self._used + len(data)
        if end <= CHUNK:
            self._piece[self._used : end] = data
            self._used = end
            return ()
        # An xattr may be larger than a piece.
        filled = []
        rest = memoryview(data)
        while rest:
            part, rest = rest[: CHUNK - self._used], rest[CHUNK - self._used :]
            self._piece[self._used : self._used + len(part)] = part
            self._used += len(part)
            if rest:
                filled.append(self._take())
        return filled

    def _take(self) -> bytes:
        piece = bytes(self._piece[: self._used])
        self._used = 0
        return piece

    def _advance(self, size: int) -> None:
        self._unreported += size
        if self._options.advanced is not None and self._unreported >= 4 << 20:
            self._options.advanced(self._unreported)
            self._unreported = 0

    def _lost(self, key: bytes, reason: str, name: bytes) -> None:
        self._warn(f"xattr {os.fsdecode(key)!r} {reason}: {os.fsdecode(name)!r}")

    def _warn(self, text: str) -> None:
        if self._options.warn is not None:
            self._options.warn(text)


def _open_own(directory: int, name: bytes) -> tuple[int, os.stat_result, Widened | None]:
    """Open a file, against its mode where an ordinary user's own has one that forbids it."""
    try:
        return *stat_regular(directory, name), None
    except PermissionError:
        widened = Widened(directory, name)
    try:
        return *widened.open(lambda: stat_regular(directory, name)), widened
    except BaseException:
        widened.restore()
        raise


def _directory_xattrs(parent: int, name: bytes) -> Xattrs:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        return get_xattrs(fd)
    finally:
        os.close(fd)


def _check_same(then: os.stat_result, now: os.stat_result, name: bytes) -> None:
    if (then.st_ino, then.st_dev, then.st_size, then.st_mtime_ns, then.st_ctime_ns) != (
        now.st_ino,
        now.st_dev,
        now.st_size,
        now.st_mtime_ns,
        now.st_ctime_ns,
    ):
        raise TreeChanged("file changed while it was read", where=name)
