"""One member of a layer onto the tree: files, links, devices; what :mod:`extract` does for each."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from layerfarm.jobs.compress.beside import Beside
from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.fs import proc_path
from layerfarm.jobs.layer.idmap import IdMap
from layerfarm.jobs.layer.metadata import Dresser, Warnings, in_range, in_user_namespace, is_safe_time
from layerfarm.jobs.layer.tree import (
    BLOCK,
    CHAR,
    FIFO,
    FILE,
    LINK,
    Directory,
    Inode,
    Metadata,
    Name,
    device_tail,
    pack_leaf,
)
from layerfarm.jobs.layer.unwritten import Place, Unwritten, is_unwritten
from layerfarm.jobs.layer.worktree import WorkTree
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.limits import limits as process_limits
from layerfarm.jobs.mtree.model import Xattrs
from layerfarm.jobs.tar.reader import Member, MemberReader

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HIGHEST_MAJOR: Final = (1 << 12) - 1
_HIGHEST_MINOR: Final = (1 << 20) - 1
"""What Linux has (``MINORBITS``); beyond, mknod(2) would take other bits and so make another device."""
_ZEROS: Final = bytes(1 << 20)
_EMPTY_SHA256: Final = hashlib.sha256().digest()
_LONGEST_NAME: Final = 255
_HASHED_BESIDE: Final = 256 * 1024
"""Bytes of a file from which on it is hashed in a thread while it is written."""


@dataclass(frozen=True)
class ExtractOptions:
    """How layers are applied."""

    uid_map: IdMap = field(default_factory=IdMap)
    gid_map: IdMap = field(default_factory=IdMap)
    rootless: bool = False
    """As an ordinary user: owners go into ``user.rootlesscontainers``, devices become empty files."""
    keep_dirlinks: bool = False
    """A directory entry where a link to a directory stands leaves the link as it is (B3.11)."""
    hash_content: bool = True
    """Compute the SHA-256 of every file while writing it, for :meth:`Extractor.entries`."""
    content_wanted: Callable[[bytes], bool] | None = None
    """Told a file's path; where it says no the file stays empty. For a caller that needs only a part."""
    doomed: Callable[[bytes, int], bool] | None = None
    """Told a file's path and its layer, 1 for the lowest; where it says yes the file is left out for now, because it
    will not outlive the layers above. Whoever asks for this has to see to :meth:`Extractor.left_out`."""
    limits: Limits = field(default_factory=process_limits)
    advanced: Callable[[int], None] | None = None
    """Told the bytes of content written, now and then."""
    warn: Callable[[str], None] | None = None


class EntryWriter:
    """Writes non-directories, each with its metadata at once."""

    reader: MemberReader
    """Where the content of the current layer's members comes from."""

    def __init__(self, tree: WorkTree, dresser: Dresser, warnings: Warnings, options: ExtractOptions) -> None:
        self._tree = tree
        self._dresser = dresser
        self._warnings = warnings
        self._options = options
        self._native: tuple[int, int] | None = None
        """Who owns a new file before any chown; learnt from the first one."""
        self._umask = _umask()
        self._unreported = 0
        self._unpacked = 0
        """Bytes of the files of all layers."""
        self._beside = Beside()

    def close(self) -> None:
        """End the thread that hashes beside."""
        self._beside.close()

    def make_room(self, node: Directory, base: bytes) -> None:
        """Remove what stands at the place of a new non-directory, so that other names keep the old inode."""
        node.changed = True
        existing = self._tree.child(node, base)
        if existing is not None:
            self._tree.remove(node, base, existing)
        node.touch(self._tree.layer)

    def regular(self, member: Member, node: Directory, base: bytes) -> None:
        self._unpacked += member.size
        if self._unpacked > self._options.limits.unpacked_bytes:
            raise self._options.limits.exceeded("unpacked_bytes", "image unpacks to more than {} bytes")
        self.make_room(node, base)
        doomed = self._options.doomed
        if doomed is not None and doomed(node.path(base), self._tree.layer) and self._says_nothing(member, base):
            layer = self._tree.layer
            node.put(base, Name(layer, Unwritten(layer, self.reader.ordinal)))
            return
        self._write_file(member, node, base, empty=self._stays_empty(node, base))

    def write_left_out(self, member: Member, places: Sequence[Place]) -> None:
        """Write a file that was left out and is in the tree all the same, under all its names."""
        (node, base), *others = places
        self._write_file(member, node, base, empty=self._stays_empty(node, base))
        if others:
            assert node.children is not None
            first = node.children[base]
            assert not isinstance(first, Directory)
            inode = Inode(first) if isinstance(first, bytes) else first.inode
            node.put(base, Name(self._tree.layer, inode))
            for other, name in others:
                self.hardlink(node, base, other, name)
                other.put(name, Name(self._tree.layer, inode))

    def _stays_empty(self, node: Directory, base: bytes) -> bool:
        wanted = self._options.content_wanted
        return wanted is not None and not wanted(node.path(base))

    def _says_nothing(self, member: Member, base: bytes) -> bool:
        """Writing this file would give no error and no warning of its own, but for a full disk."""
        self._dresser.owner(member.uid, member.gid)
        return len(base) <= _LONGEST_NAME and is_safe_time(member.mtime) and not self._dresser.xattrs(member)

    def _write_file(self, member: Member, node: Directory, base: bytes, *, empty: bool = False) -> None:
        _, _, mode, uid, gid, size, mtime, _, _, atime, _, _ = member
        dresser = self._dresser
        owner = dresser.owner(uid, gid)
        wanted = dresser.xattrs(member)
        # A file whose owner and mode come out right by themselves needs no chown and no chmod: 2 of 6
        # system calls less, 15 % of the time for small files.
        simple = owner == self._native and not wanted and mode <= 0o777 and not mode & self._umask and node.plain
        fd = os.open(base, _CREATE, mode if simple else 0o600, dir_fd=self._tree.fd(node))
        try:
            digest = _EMPTY_SHA256 if empty else self._write_content(member, fd)
            if not self._options.hash_content:
                digest = b""
            applied: Xattrs = ()
            if simple:
                os.utime(fd, ns=in_range(mtime if atime is None else atime, mtime))
            else:
                if self._native is None and node.plain:
                    found = os.fstat(fd)
                    self._native = found.st_uid, found.st_gid
                if not node.plain:
                    dresser.clear(fd)
                applied = dresser.dress_fd(fd, owner, mode, mtime, mtime if atime is None else atime, wanted)
            if not is_safe_time(mtime):
                mtime = dresser.check_time(os.fstat(fd), mtime)
        finally:
            os.close(fd)
        leaf = pack_leaf(self._tree.layer, FILE, mode, owner[0], owner[1], 0 if empty else size, mtime, digest)
        node.put(base, Name(self._tree.layer, Inode(leaf, applied)) if applied else leaf)

    def _write_content(self, member: Member, fd: int) -> bytes:
        """Write a member's content; its SHA-256, or nothing if none is wanted."""
        if member.holes is not None:
            return self._write_sparse(member, fd)
        hash_content = self._options.hash_content
        if hash_content and member.size >= _HASHED_BESIDE:
            return self._write_hashing_beside(fd)
        whole = self.reader.whole(member.size)
        if whole is not None:
            _write(fd, whole)
            self.report(len(whole))
            return hashlib.sha256(whole).digest() if hash_content else b""
        digest = hashlib.sha256()
        for piece in self.reader.content():
            _write(fd, piece)
            if hash_content:
                digest.update(piece)
            self.report(len(piece))
        return digest.digest()

    def _write_hashing_beside(self, fd: int) -> bytes:
        digest = hashlib.sha256()
        for piece in self.reader.content():
            self._beside.put(digest.update, piece)
            _write(fd, piece)
            self.report(len(piece))
        self._beside.wait()
        return digest.digest()

    def _write_sparse(self, member: Member, fd: int) -> bytes:
        assert member.holes is not None
        digest = hashlib.sha256()
        update = digest.update if self._options.hash_content else lambda piece: None
        content = self.reader.content()
        held = memoryview(b"")
        end = 0
        for offset, length in member.holes.parts:
            _hash_zeros(update, offset - end)
            os.lseek(fd, offset, os.SEEK_SET)
            end = offset + length
            while length:
                held = held or next(content)
                piece, held = held[:length], held[length:]
                _write(fd, piece)
                update(piece)
                length -= len(piece)
                self.report(len(piece))
        _hash_zeros(update, member.holes.size - end)
        os.ftruncate(fd, member.holes.size)
        return digest.digest()

    def symlink(self, member: Member, node: Directory, base: bytes) -> None:
        check_link(member)
        self.make_room(node, base)
        directory = self._tree.fd(node)
        os.symlink(member.link, base, dir_fd=directory)
        self._dress_name(member, node, base, LINK, None, len(member.link), member.link)

    def special(self, member: Member, node: Directory, base: bytes) -> None:
        major, minor = check_device(member)
        self.make_room(node, base)
        if member.type == 0x36:
            os.mkfifo(base, 0o600, dir_fd=self._tree.fd(node))
            self._dress_name(member, node, base, FIFO, member.mode, 0, b"")
            return
        kind = stat.S_IFCHR if member.type == 0x33 else stat.S_IFBLK
        if not self._options.rootless:
            try:
                os.mknod(base, kind | 0o600, os.makedev(major, minor), dir_fd=self._tree.fd(node))
            except PermissionError:
                if not in_user_namespace():
                    raise
            else:
                type_ = CHAR if kind == stat.S_IFCHR else BLOCK
                self._dress_name(member, node, base, type_, member.mode, 0, device_tail(major, minor))
                return
        self._warnings.once("device", "devices cannot be made without privileges, empty files stand for them")
        self._write_file(member, node, base, empty=True)

    def hardlink(self, source: Directory, name: bytes, node: Directory, base: bytes) -> None:
        if is_unwritten(self._tree.child(source, name)):
            self.make_room(node, base)
            return
        held = os.dup(self._tree.fd(source))
        try:
            self.make_room(node, base)
            # The last component is not followed: a link to a symbolic link is one more name of it (B2.3).
            os.link(name, base, src_dir_fd=held, dst_dir_fd=self._tree.fd(node), follow_symlinks=False)
        finally:
            os.close(held)

    def metadata(self, member: Member) -> Metadata:
        atime = member.mtime if member.atime is None else member.atime
        owner = self._dresser.owner(member.uid, member.gid)
        return Metadata(member.mode, *owner, member.mtime, atime, self._dresser.xattrs(member))

    def _dress_name(
        self, member: Member, node: Directory, base: bytes, type_: int, mode: int | None, size: int, tail: bytes
    ) -> None:
        directory = self._tree.fd(node)
        dresser = self._dresser
        owner = dresser.owner(member.uid, member.gid)
        mtime = member.mtime
        if not node.plain:
            dresser.clear(proc_path(directory, base))
        atime = mtime if member.atime is None else member.atime
        applied = dresser.dress_name(directory, base, owner, mode, mtime, atime, dresser.xattrs(member))
        if not is_safe_time(mtime):
            mtime = dresser.check_time(os.stat(base, dir_fd=directory, follow_symlinks=False), mtime)
        leaf = pack_leaf(self._tree.layer, type_, 0o777 if mode is None else mode, *owner, size, mtime, tail)
        node.put(base, Name(self._tree.layer, Inode(leaf, applied)) if applied else leaf)

    def report(self, size: int) -> None:
        """Tell progress about every 4 MiB, and what is left at the end of a layer (``size`` 0)."""
        self._unreported += size
        if self._options.advanced is not None and (self._unreported >= 4 << 20 or (not size and self._unreported)):
            self._options.advanced(self._unreported)
            self._unreported = 0


def check_link(member: Member) -> None:
    """Raises MalformedLayer for a symbolic link that no filesystem holds."""
    if not member.link or b"\0" in member.link:
        raise MalformedLayer("symbolic link has no target", where=member.name)


def check_device(member: Member) -> tuple[int, int]:
    """Major and minor. Raises MalformedLayer for what Linux has not."""
    major, minor = member.device
    if major > _HIGHEST_MAJOR or minor > _HIGHEST_MINOR:
        raise MalformedLayer("device number is out of range", where=member.name)
    return major, minor


def _write(fd: int, piece: memoryview) -> None:
    written = os.write(fd, piece)
    while written < len(piece):
        written += os.write(fd, piece[written:])


def _hash_zeros(update: Callable[[bytes], None], size: int) -> None:
    while size > 0:
        update(_ZEROS[:size] if size < len(_ZEROS) else _ZEROS)
        size -= len(_ZEROS)


def _umask() -> int:
    """The process' umask, without the moment of change that umask(2) needs; all bits if it is not known."""
    try:
        with open("/proc/self/status", "rb") as stream:
            for line in stream:
                if line.startswith(b"Umask:"):
                    return int(line.split()[1], 8)
    except OSError:
        pass
    return 0o777
