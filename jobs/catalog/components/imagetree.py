"""The tree of an image as the readers of package databases see it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from jobs.errors import LayerfarmError
from jobs.mtree import ROOT, Entry
from jobs.rootfs import DirectoryCache, Rootfs, read_regular

_MOST_LINKS = 40  # the kernel's own limit, path_resolution(7)
_DATABASE_BYTES = 512 << 20
"""Bytes of a package database; that of a large desktop is 200 MB."""

Links = dict[bytes, tuple[bytes, ...]]


class ImageTree:
    """An unpacked image and the list of its entries. A context manager: the root is held open.

    Raises:
        RootfsNotFound: there is no directory at ``rootfs``.
    """

    def __init__(self, rootfs: Path, entries: Iterable[Entry]) -> None:
        self.entries = {entry.path: entry for entry in entries}
        """By path, in the order given."""
        self.rootfs = rootfs
        self._names: defaultdict[bytes, list[bytes]] | None = None
        self._real: dict[bytes, bytes | None] = {}
        self._root = Rootfs(rootfs)

    def close(self) -> None:
        self._root.close()

    def __enter__(self) -> ImageTree:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def real(self, path: bytes) -> bytes | None:
        """Where what a database calls ``path`` lies, its parents' links resolved; None: nothing is there.

        On a merged /usr dpkg lists ``bin/sh``, which lies in ``usr/bin``.
        """
        if path in self.entries and (b"/" not in path or self.entries.get(os.path.dirname(path)) is not None):
            return path
        head, _, name = path.rpartition(b"/")
        directory = self._directory(head)
        if directory is None:
            return None
        found = directory + b"/" + name if directory else name
        return found if found in self.entries else None

    def names(self, directory: bytes) -> list[bytes]:
        """The names in a directory, sorted; none if there is no such directory."""
        if self._names is None:
            self._names = defaultdict(list)
            for path in sorted(self.entries):
                head, _, name = path.rpartition(b"/")
                self._names[head].append(name)
        real = self._directory(directory)
        return [] if real is None else self._names.get(real, [])

    def read(self, path: bytes, limit: int = _DATABASE_BYTES) -> bytes | None:
        """The content of a small regular file; None: there is none, or a directory, link or device is there.

        Raises:
            LimitExceeded: it is larger than ``limit`` bytes.
        """
        real = self.real(path)
        entry = None if real is None else self.entries[real]
        if real is None or entry is None or entry.type != "file":
            return None
        return read_regular(self._root.fd, real, limit)

    def copy(self, path: bytes, target: Path) -> bool:
        """Copy a regular file of the tree; False: there is none."""
        content = self.read(path)
        if content is None:
            return False
        target.write_bytes(content)
        return True

    def hard_links(self) -> Links:
        """Each path that is one of several names of an inode, to all of these, sorted."""
        groups: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
        with DirectoryCache(self._root.fd) as directories:
            for path, entry in self.entries.items():
                if entry.nlink > 1 and entry.type != "dir":
                    directory, name = directories.parent(path)
                    found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    groups[found.st_dev, found.st_ino].append(path)
        return {path: tuple(sorted(group)) for group in groups.values() if len(group) > 1 for path in group}

    def _directory(self, path: bytes) -> bytes | None:
        """The directory that ``path`` leads to, the root as the empty string; None: it leads to none."""
        if path in self._real:
            return self._real[path]
        found = self._resolve(path)
        self._real[path] = found
        return found

    def _resolve(self, path: bytes) -> bytes | None:
        here: list[bytes] = []
        pending = [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                del here[-1:]
                continue
            entry = self.entries.get(b"/".join((*here, part)))
            if entry is None:
                return None
            if entry.type == "dir":
                here.append(part)
            elif entry.type == "link" and entry.link is not None and links < _MOST_LINKS:
                links += 1
                if entry.link.startswith(b"/"):
                    here.clear()
                pending += [part for part in reversed(entry.link.split(b"/")) if part not in (b"", b".")]
            else:
                return None
        return b"/".join(here)


class BrokenDatabase(LayerfarmError):
    """A package database of an image does not parse: its files are then owned by nobody."""


__all__ = ["ROOT", "BrokenDatabase", "ImageTree", "Links"]
