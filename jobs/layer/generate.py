"""Write layers from directories: from the deltas of a tree, or without a comparison (``umoci insert``, B1.18).

The mirror of :mod:`layerfarm.jobs.layer.extract`. The rules are those of umoci.md B1.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from layerfarm.jobs.compress.codecs import Blocks
from layerfarm.jobs.errors import LayerError, RequestError, RootfsNotFound, TreeChanged, UnsafePath
from layerfarm.jobs.fs import (
    DirectoryCache,
    Rootfs,
    Widened,
    get_xattrs,
    portable_xattrs,
    proc_path,
    stat_regular,
    unreadable,
)
from layerfarm.jobs.layer.delta_keys import key_of
from layerfarm.jobs.layer.names import OPAQUE, check_real_name, clean, path_of_key, whiteout_name
from layerfarm.jobs.layer.owners import IdMap, owner_in_image
from layerfarm.jobs.layer.segments import segments
from layerfarm.jobs.mtree.model import ROOT, Delta, Xattrs
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

__all__ = ["GenerateOptions", "generate_layer"]

_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SPECIAL: Final = {stat.S_IFCHR: CHAR, stat.S_IFBLK: BLOCK_DEVICE, stat.S_IFIFO: FIFO}


@dataclass(frozen=True)
class GenerateOptions:
    """Options of writing a layer."""

    uid_map: IdMap = field(default_factory=IdMap)
    gid_map: IdMap = field(default_factory=IdMap)
    rootless: bool = False
    """Owners come from ``user.rootlesscontainers``, which the layer does not get; without it they are root."""
    source_date_epoch: int | None = None
    """Seconds; later mtimes become this value (B1.4)."""
    advanced: Callable[[int], None] | None = None
    """Called repeatedly with the bytes of content read."""
    warn: Callable[[str], None] | None = None
    """Called for omitted items: sockets, empty xattr values."""
    processes: int = 1
    """Processes that read small files, if there are many. Changes the speed, never the bytes."""


def generate_layer(root: Path, deltas: Iterable[Delta], options: GenerateOptions | None = None) -> Iterator[bytes]:
    """Yield the raw tar of a layer that turns the old tree into the one at ``root``.

    Only the kind and the path of a delta are used, in any order. Entries come out depth first, each
    directory's names bytewise and its whiteouts first (B1.10). The same tree and deltas give the same bytes.

    Raises (while iterating):
        RootfsNotFound: ``root`` is not a directory.
        TreeChanged: an entry has vanished, appeared or changed since the comparison, or does so now.
        LayerError: an entry cannot be stored in a layer.
        UnsafePath: a path leads out of the root.
        UnmappedId: an owner is in no range of the id maps.
    """
    yield from generate_from_keys(root, set(map(key_of, deltas)), options or GenerateOptions())


def generate_from_keys(root: Path, keys: set[bytes], options: GenerateOptions) -> Iterator[bytes]:
    """:func:`generate_layer` of deltas with these sort keys (:mod:`layerfarm.jobs.layer.delta_keys`)."""
    builder = TarBuilder(options)
    with (
        Rootfs(root, to_be_read=True) as rootfs,
        DirectoryCache(rootfs.fd) as directories,
        closing(segments(sorted(keys), rootfs.fd, options)) as parts,
    ):
        for tar, content, key in parts:
            yield from builder.ready(tar, content)
            if key is not None:
                yield from builder.of_key(key, directories, rootfs.found)
    yield from builder.end()


def insert_layer(
    source: Path, target: bytes, *, opaque: bool = False, options: GenerateOptions | None = None
) -> Iterator[bytes]:
    """Yield the raw tar of a layer that puts ``source``, a directory or a single entry, at ``target``.

    A directory is merged with that of lower layers, or hides it if ``opaque``. ``target`` is relative to the root of
    the image; its parents get no entries. A ``source`` that is a symbolic link is stored as such. Entries come in the
    order of :func:`generate_layer`.

    Raises (while iterating):
        RootfsNotFound: ``source`` does not exist.
        RequestError: ``target`` is the root and ``source`` is not a directory.
        TreeChanged, LayerError, UnmappedId: as :func:`generate_layer`.
    """
    base = b"/".join(clean(target))
    builder = TarBuilder(options or GenerateOptions())
    try:
        found = os.lstat(source)
        if stat.S_ISDIR(found.st_mode):
            with Rootfs(source, to_be_read=True, follow=False) as rootfs:
                yield from _tree(rootfs, base, opaque, builder)
        elif not base:
            raise RequestError("only a directory can be inserted at the root", where=source)
        else:
            above = os.open(source.parent, _OPEN_DIRECTORY & ~os.O_NOFOLLOW)
            try:
                yield from builder.entry(above, os.fsencode(source.name), found, base)
            finally:
                os.close(above)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RootfsNotFound("source does not exist, or something in it has vanished", where=source) from error
    except OSError as error:
        raise unreadable(error, source) from error
    yield from builder.end()


def whiteout_layer(target: bytes) -> Iterator[bytes]:
    """Yield the raw tar of a layer that deletes ``target``.

    Raises (while iterating):
        RequestError: ``target`` is the root.
        LayerError: its name cannot be stored as a whiteout.
    """
    parts = clean(target)
    if not parts:
        raise RequestError("the root of an image cannot be deleted")
    path = b"/".join(parts)
    check_real_name(path)
    builder = TarBuilder(GenerateOptions())
    yield from builder.whiteout(whiteout_name(path))
    yield from builder.end()


def _lstat(directory: int, base: bytes) -> os.stat_result | None:
    try:
        return os.stat(base, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _tree(rootfs: Rootfs, base: bytes, opaque: bool, builder: TarBuilder) -> Iterator[bytes]:
    """Yield a directory and everything below it, put at ``base``."""
    prefix = base + b"/" if base else b""
    yield from builder.entry(rootfs.fd, b".", rootfs.found, base or ROOT)
    if opaque:
        yield from builder.whiteout(prefix + OPAQUE)
    with DirectoryCache(rootfs.fd) as directories:
        pending = _names(rootfs.fd, b"")
        while pending:
            path = pending.pop()
            directory, name = directories.parent(path)
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            yield from builder.entry(directory, name, found, prefix + path)
            if stat.S_ISDIR(found.st_mode):
                try:
                    pending += _names(directories.directory(path), path + b"/")
                except NotADirectoryError as error:
                    raise TreeChanged("directory became something else while it was read", where=path) from error


def _names(directory: int, prefix: bytes) -> list[bytes]:
    return [prefix + name for name in sorted(map(os.fsencode, os.listdir(directory)), reverse=True)]


class TarBuilder:
    """Turns entries on disk into the pieces of a layer's tar, which ``blocks`` collects."""

    def __init__(self, options: GenerateOptions, blocks: Blocks | None = None) -> None:
        self._options = options
        self._links: dict[tuple[int, int], Header] = {}
        """The entry that was written for each inode with several names, by device and number."""
        self._blocks = blocks or Blocks()
        self._unreported = 0

    def ready(self, tar: memoryview, content: int) -> Iterator[bytes]:
        """Yield entries of which a part of :func:`segments` is the tar."""
        yield from self._blocks.put(tar)
        self._advance(content)

    def of_key(self, key: bytes, directories: DirectoryCache, root: os.stat_result | None) -> Iterator[bytes]:
        """Yield the entry or whiteout of a :func:`walk_key`.

        ``root`` is the lstat of the root, whose mode may be widened by now; without it, the root fails.

        Raises:
            TreeChanged, LayerError: as :func:`generate_layer`.
        """
        path, is_whiteout = path_of_key(key)
        try:
            directory, base = directories.parent(path)
            found = root if path == ROOT else _lstat(directory, base)
        except UnsafePath as error:
            if is_whiteout:
                return
            raise TreeChanged("a parent directory became a symbolic link", where=path) from error
        except (FileNotFoundError, NotADirectoryError) as error:
            if is_whiteout:
                # The directory above is itself gone or replaced, as its own entry says. A whiteout here would reach
                # through its replacement (B1.11, B1.12).
                return
            raise TreeChanged("entry has vanished since the trees were compared", where=path) from error
        except OSError as error:
            raise unreadable(error, path) from error
        if is_whiteout:
            if found is not None:
                raise TreeChanged("entry has appeared since the trees were compared", where=path)
            check_real_name(path)
            yield from self.whiteout(whiteout_name(path))
            return
        if found is None:
            raise TreeChanged("entry has vanished since the trees were compared", where=path)
        try:
            yield from self.entry(directory, base, found, path)
        except FileNotFoundError as error:
            raise TreeChanged("entry has vanished while the layer was written", where=path) from error
        except OSError as error:
            raise unreadable(error, path) from error

    def whiteout(self, name: bytes) -> Iterator[bytes]:
        """Yield a whiteout entry: an empty file with no mode, owner and time (B1.9)."""
        yield from self._blocks.put(encode_header(Header(name, REGULAR)))

    def entry(self, directory: int, base: bytes, found: os.stat_result, name: bytes) -> Iterator[bytes]:
        """Yield the entry ``base`` of an open directory, whose lstat is ``found``, under ``name`` in the layer.

        Raises:
            TreeChanged: it differs from ``found``, or changes while it is read.
            LayerError: it cannot be stored in a layer.
        """
        check_real_name(name)
        kind = stat.S_IFMT(found.st_mode)
        if found.st_nlink > 1 and kind not in (stat.S_IFDIR, stat.S_IFSOCK):
            # By device too, and never a directory: inode numbers repeat on other filesystems, and umoci then stores one
            # file as a link to another (B1.7).
            first = self._links.get((found.st_dev, found.st_ino))
            if first is not None:
                yield from self._blocks.put(encode_header(hardlink(first, name)))
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
            yield from self._blocks.put(self._header(found, name if name == ROOT else name + b"/", DIRECTORY, xattrs))
        elif kind == stat.S_IFSOCK:
            # tar cannot hold it and a running program creates its own; Docker and containers/storage leave it out too
            # (B1.13).
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
                raise LayerError("entry of a type that a layer cannot hold", where=name)
            yield from self._blocks.put(header)

    def end(self) -> Iterator[bytes]:
        """Return the end of the archive."""
        yield from self._blocks.put(TRAILER)
        yield self._blocks.rest()
        if self._options.advanced is not None:
            self._options.advanced(self._unreported)

    def _regular(self, directory: int, base: bytes, found: os.stat_result, name: bytes) -> Iterator[bytes]:
        fd, opened, widened = _open_own(directory, base)
        try:
            # Widening the mode of a file changes its ctime.
            _check_same(found, opened if widened is None else widened.found, name)
            yield from self._blocks.put(self._header(found, name, REGULAR, get_xattrs(fd), size=found.st_size))
            left = found.st_size
            while left:
                count, full = self._blocks.read(fd, left)
                yield from full
                if not count:
                    raise TreeChanged("file became shorter while it was read", where=name)
                left -= count
                self._advance(count)
            # Also detects growth: the size is compared.
            _check_same(opened, os.fstat(fd), name)
        finally:
            os.close(fd)
            if widened is not None:
                widened.restore()
        if found.st_size % BLOCK:
            yield from self._blocks.put(padding(found.st_size))

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
        uid, gid, xattrs = owner_in_image(
            found.st_uid, found.st_gid, xattrs, options.uid_map, options.gid_map, rootless=options.rootless
        )
        if xattrs:

            def lost(key: bytes, reason: str) -> None:
                self._warn(f"xattr {os.fsdecode(key)!r} {reason}: {os.fsdecode(name)!r}")

            xattrs = portable_xattrs(xattrs, lost)
        # Floor, so that the manifest's whole seconds agree (B1.3).
        mtime = found.st_mtime_ns // 10**9
        if options.source_date_epoch is not None and mtime > options.source_date_epoch:
            mtime = options.source_date_epoch
        mode = stat.S_IMODE(found.st_mode)
        header = Header(name, type_, mode, uid, gid, size, mtime, link, device, xattrs)
        if found.st_nlink > 1 and type_ != DIRECTORY:
            self._links[found.st_dev, found.st_ino] = header
        return encode_header(header)

    def _advance(self, size: int) -> None:
        self._unreported += size
        if self._options.advanced is not None and self._unreported >= 4 << 20:
            self._options.advanced(self._unreported)
            self._unreported = 0

    def _warn(self, text: str) -> None:
        if self._options.warn is not None:
            self._options.warn(text)


def _open_own(directory: int, name: bytes) -> tuple[int, os.stat_result, Widened | None]:
    """Open a file. If the mode of an ordinary user's own file denies that, widen it; the caller restores it."""
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
    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
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
