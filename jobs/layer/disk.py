"""The tree under extraction: a model of it, and the directory on disk that it is written to.

Every directory is opened with O_NOFOLLOW from the descriptor of its parent, so neither a wrong model nor a process
that changes the tree meanwhile can lead out.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from layerfarm.jobs.compress.digest_thread import DigestThread
from layerfarm.jobs.fs import HOST_XATTRS, clear_xattrs, proc_path, umask
from layerfarm.jobs.fs.remove import open_directory, remove
from layerfarm.jobs.fs.unprivileged import may
from layerfarm.jobs.layer.look_ahead import Skipped, is_skipped
from layerfarm.jobs.layer.metadata import MetadataWriter, Warnings, in_range, in_user_namespace, is_safe_time
from layerfarm.jobs.layer.nodes import (
    BLOCK,
    CHAR,
    FIFO,
    FILE,
    LINK,
    Child,
    Directory,
    Inode,
    Metadata,
    Name,
    device_tail,
    inode_of,
    leaf_of,
    link_target,
    pack_leaf,
)
from layerfarm.jobs.layer.owners import IdMap
from layerfarm.jobs.layer.small_files import CREATE, SmallFile, SmallFiles, threads_for, write
from layerfarm.jobs.layer.tree import Tree
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.limits import limits as process_limits
from layerfarm.jobs.mtree.model import Xattrs
from layerfarm.jobs.tar.reader import Member, MemberReader

_OPEN_DIRECTORIES: Final = 128
_EMPTY_SHA256: Final = hashlib.sha256().digest()
_LONGEST_NAME: Final = 255
_NOTHING: Final = memoryview(b"")
_HASHED_IN_THREAD: Final = 256 * 1024
"""Bytes from which a file is hashed in a thread while it is written."""


@dataclass(frozen=True)
class ExtractOptions:
    """Options of applying layers."""

    uid_map: IdMap = field(default_factory=IdMap)
    gid_map: IdMap = field(default_factory=IdMap)
    rootless: bool = False
    """As an ordinary user: owners go into ``user.rootlesscontainers``, devices become empty files."""
    keep_dirlinks: bool = False
    """A directory entry in place of a link to a directory leaves the link as it is (B3.11)."""
    hash_content: bool = True
    """Compute the SHA-256 of every file while writing it, for :meth:`Extractor.entries`."""
    content_wanted: Callable[[bytes], bool] | None = None
    """Called with a file's path; if it returns False, the file stays empty. For callers that need only some files."""
    skip: Callable[[bytes, int], bool] | None = None
    """Called with a file's path and its layer, 1 for the lowest; if it returns True, the file is skipped, because upper
    layers replace it. The caller must write :meth:`Extractor.skipped` at the end."""
    writers: int | None = None
    """Number of threads that write small files; 0: none; None: as suits the file system."""
    limits: Limits = field(default_factory=process_limits)
    warn: Callable[[str], None] | None = None


class DiskTree(Tree):
    """The tree below an open directory. Non-directories get their metadata at once, directories later."""

    reader: MemberReader
    """Source of the content of the current layer's members."""

    def __init__(self, root: int, options: ExtractOptions, warnings: Warnings) -> None:
        self.metadata = MetadataWriter(options.uid_map, options.gid_map, options.rootless, warnings)
        implied = Metadata(0o755, *self.metadata.owner(0, 0), mtime=0, atime=0)
        super().__init__(Directory(b"", None, found=os.fstat(root)), implied, options.limits)
        self.root.fd = root
        self._open: deque[Directory] = deque()
        self._warnings = warnings
        self._options = options
        self._native: tuple[int, int] | None = None
        """Owner of a new file before any chown; read from the first one."""
        known = umask()
        self._umask = 0o777 if known is None else known  # unknown: no file is assumed to be created with its final mode
        self._digest_thread = DigestThread()
        self._writers = threads_for(root) if options.writers is None else options.writers
        self._small = SmallFiles(self.metadata, self._writers)
        self._inspect_found(self.root)

    def close(self) -> None:
        """Close every descriptor but the root's, and end the threads."""
        self._small.close()
        self._close_directories()
        self._digest_thread.close()

    def settle(self) -> None:
        """Return when all files are written. Anything but a new name needs that: it could meet one of them.

        Raises:
            RootfsError: a file cannot be written.
        """
        self._small.wait()

    # --- looking -------------------------------------------------------------------------------------

    def fd(self, node: Directory) -> int:
        """Return a descriptor of the directory, valid until the next call."""
        if node.fd >= 0:
            return node.fd
        closed: list[Directory] = []
        here = node
        while here.fd < 0:
            closed.append(here)
            assert here.parent is not None
            here = here.parent
        for below in reversed(closed):
            below.fd = open_directory(here.fd, below.name)
            self._open.append(below)
            here = below
            if len(self._open) > 2 * _OPEN_DIRECTORIES:
                # Many at once, because the files in them must be written first.
                self.settle()
                self._close_directories(left=_OPEN_DIRECTORIES)
        return node.fd

    def child(self, node: Directory, name: bytes) -> Child | None:
        if node.children is not None:
            known = node.children.get(name)
            if known is not None:
                return known
        if node.complete:
            return None
        self.settle()
        try:
            found = os.stat(name, dir_fd=self.fd(node), follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISDIR(found.st_mode):
            return Name(0, Inode(None))
        below = Directory(name, node, found=found)
        node.put(name, below)
        self._inspect_found(below)
        return below

    def names(self, node: Directory) -> list[bytes]:
        names = super().names(node)
        if not node.complete:
            self.settle()
            names += set(map(os.fsencode, os.listdir(self.fd(node)))).difference(names)
        return names

    def target(self, node: Directory, name: bytes, child: Child) -> bytes | None:
        if isinstance(child, Directory) or leaf_of(child) is not None:
            return link_target(child)
        try:
            return os.readlink(name, dir_fd=self.fd(node))
        except OSError:
            return None

    # --- directories ---------------------------------------------------------------------------------

    def make_directory(self, node: Directory, name: bytes) -> Directory:
        below = super().make_directory(node, name)
        os.mkdir(name, 0o700, dir_fd=self.fd(node))
        if not node.plain:
            # It has inherited a default ACL or setgid from above, which must not spread further down.
            fd = self.fd(below)
            clear_xattrs(fd, HOST_XATTRS)
            os.fchmod(fd, 0o700)
        return below

    def remove(self, node: Directory, name: bytes, child: Child) -> None:
        self.settle()
        if isinstance(child, Directory):
            self._close_directories()
            remove(self.fd(node), name)
        else:
            if leaf_of(child) is None:
                self._parents.clear()
            if not is_skipped(child):
                os.unlink(name, dir_fd=self.fd(node))
        super().remove(node, name, child)

    def directory_metadata(self, member: Member) -> Metadata:
        return self.metadata.of(member)

    def _close_directories(self, left: int = 0) -> None:
        """Close all directories but the ``left`` opened last."""
        while len(self._open) > left:
            node = self._open.popleft()
            os.close(node.fd)
            node.fd = -1

    def _inspect_found(self, node: Directory) -> None:
        """Make an existing directory accessible, and check if its new entries inherit anything."""
        assert node.found is not None
        fd = self.fd(node) if node.found.st_mode & 0o700 != 0o700 else -1
        if fd >= 0 and not may(fd, os.R_OK | os.W_OK | os.X_OK):
            # Restored, or set as its own entry requires, at the end.
            os.fchmod(fd, stat.S_IMODE(node.found.st_mode) | 0o700)
            node.changed = True
        try:
            has_default_acl = b"system.posix_acl_default" in map(os.fsencode, os.listxattr(self.fd(node)))
        except OSError:
            has_default_acl = False
        node.plain = not has_default_acl and not node.found.st_mode & stat.S_ISGID

    # --- files ---------------------------------------------------------------------------------------

    def write_file(self, member: Member, node: Directory, base: bytes) -> None:
        skip = self._options.skip
        if skip is not None and skip(node.path(base), self.layer) and self._is_silent(member, base):
            node.put(base, Name(self.layer, Skipped(self.layer, self.reader.ordinal)))
        else:
            self._write_file(member, node, base, empty=self._stays_empty(node, base))

    def write_skipped(self, member: Member, places: Sequence[tuple[Directory, bytes]]) -> None:
        """Write a skipped file that is in the tree after all, under all its names."""
        (node, base), *others = places
        self._write_file(member, node, base, empty=self._stays_empty(node, base))
        if others:
            assert node.children is not None
            first = node.children[base]
            assert not isinstance(first, Directory)
            inode = inode_of(first)
            node.put(base, Name(self.layer, inode))
            for other, name in others:
                self.write_hardlink(node, base, other, name)
                other.put(name, Name(self.layer, inode))

    def _stays_empty(self, node: Directory, base: bytes) -> bool:
        wanted = self._options.content_wanted
        return wanted is not None and not wanted(node.path(base))

    def _is_silent(self, member: Member, base: bytes) -> bool:
        """Return True if writing this file would give no error and no warning of its own, except for a full disk."""
        self.metadata.owner(member.uid, member.gid)
        return len(base) <= _LONGEST_NAME and is_safe_time(member.mtime) and not self.metadata.xattrs(member)

    def _write_file(self, member: Member, node: Directory, base: bytes, *, empty: bool = False) -> None:
        _, _, mode, uid, gid, size, mtime, _, _, atime, _, _ = member
        metadata = self.metadata
        owner = metadata.owner(uid, gid)
        wanted = metadata.xattrs(member)
        # A file created with the right owner and mode needs no chown and no chmod: 2 of 6 system calls less, 15 % of
        # the time for small files.
        simple = owner == self._native and not wanted and mode <= 0o777 and not mode & self._umask and node.plain
        if self._writers and self._native is not None and node.plain and not wanted and is_safe_time(mtime):
            whole = _NOTHING if empty else None if member.holes is not None else self.reader.whole(size)
            if whole is not None:
                self._hand_over(member, node, base, None if simple else metadata.of(member), whole)
                return
        fd = os.open(base, CREATE, mode if simple else 0o600, dir_fd=self.fd(node))
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
                    clear_xattrs(fd, HOST_XATTRS)
                applied = metadata.apply_fd(fd, metadata.of(member))
            if not is_safe_time(mtime):
                mtime = metadata.stored_time(os.fstat(fd), mtime)
        finally:
            os.close(fd)
        leaf = pack_leaf(self.layer, FILE, mode, owner[0], owner[1], 0 if empty else size, mtime, digest)
        node.put(base, Name(self.layer, Inode(leaf, applied)) if applied else leaf)

    def _hand_over(
        self, member: Member, node: Directory, base: bytes, metadata: Metadata | None, content: memoryview
    ) -> None:
        """Have a thread write a file whose metadata any file system holds; nothing of the outcome is needed."""
        _, _, mode, uid, gid, _, mtime, _, _, atime, _, _ = member
        times = in_range(mtime if atime is None else atime, mtime)
        created = mode if metadata is None else 0o600
        self._small.put(SmallFile(node, self.fd(node), base, created, metadata, times, content))
        digest = hashlib.sha256(content).digest() if self._options.hash_content else b""
        owner = self.metadata.owner(uid, gid)
        node.put(base, pack_leaf(self.layer, FILE, mode, *owner, len(content), mtime, digest))

    def _write_content(self, member: Member, fd: int) -> bytes:
        """Write a member's content. Return its SHA-256; an arbitrary value if hashing is off."""
        hash_content = self._options.hash_content
        in_thread = hash_content and member.size >= _HASHED_IN_THREAD
        whole = None if in_thread or member.holes is not None else self.reader.whole(member.size)
        if whole is not None:
            write(fd, whole)
            return hashlib.sha256(whole).digest() if hash_content else b""
        digest = hashlib.sha256()
        for piece in self.reader.expanded(member):
            if in_thread:
                self._digest_thread.put(digest.update, piece)
            elif hash_content:
                digest.update(piece)
            if isinstance(piece, bytes):
                os.lseek(fd, len(piece), os.SEEK_CUR)  # a hole
            else:
                write(fd, piece)
        if in_thread:
            self._digest_thread.wait()
        if member.holes is not None:
            os.ftruncate(fd, member.size)
        return digest.digest()

    # --- links, devices, fifos -----------------------------------------------------------------------

    def write_symlink(self, member: Member, node: Directory, base: bytes) -> None:
        os.symlink(member.link, base, dir_fd=self.fd(node))
        self._finish_name(member, node, base, LINK, member.link)

    def write_special(self, member: Member, node: Directory, base: bytes) -> None:
        if member.type == 0x36:
            os.mkfifo(base, 0o600, dir_fd=self.fd(node))
            self._finish_name(member, node, base, FIFO)
            return
        kind, type_ = (stat.S_IFCHR, CHAR) if member.type == 0x33 else (stat.S_IFBLK, BLOCK)
        if not self._options.rootless:
            try:
                os.mknod(base, kind | 0o600, os.makedev(*member.device), dir_fd=self.fd(node))
            except PermissionError:
                if not in_user_namespace():
                    raise
            else:
                self._finish_name(member, node, base, type_, device_tail(*member.device))
                return
        self._warnings.once("device", "devices cannot be created without privileges, empty files replace them")
        self._write_file(member, node, base, empty=True)

    def write_hardlink(self, source: Directory, name: bytes, node: Directory, base: bytes) -> None:
        if is_skipped(self.child(source, name)):
            return
        self.settle()
        held = os.dup(self.fd(source))
        try:
            # The last component is not followed: a link to a symbolic link is another name of it (B2.3).
            os.link(name, base, src_dir_fd=held, dst_dir_fd=self.fd(node), follow_symlinks=False)
        finally:
            os.close(held)

    def _finish_name(self, member: Member, node: Directory, base: bytes, type_: int, tail: bytes = b"") -> None:
        """Apply the metadata of a link, device or fifo, and put it into the model."""
        directory = self.fd(node)
        is_link = type_ == LINK
        if not node.plain:
            clear_xattrs(proc_path(directory, base), HOST_XATTRS)
        wanted = self.metadata.of(member)
        applied = self.metadata.apply_name(directory, base, wanted, is_link=is_link)
        mtime = wanted.mtime
        if not is_safe_time(mtime):
            mtime = self.metadata.stored_time(os.stat(base, dir_fd=directory, follow_symlinks=False), mtime)
        mode, size = (0o777, len(tail)) if is_link else (wanted.mode, 0)
        leaf = pack_leaf(self.layer, type_, mode, wanted.uid, wanted.gid, size, mtime, tail)
        node.put(base, Name(self.layer, Inode(leaf, applied)) if applied else leaf)
