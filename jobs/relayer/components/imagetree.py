"""The tree of an image as the readers of package databases see it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.mtree import Entry

_MOST_LINKS = 40  # the kernel's own limit, path_resolution(7)
_DATABASE_BYTES = 512 << 20
"""Bytes of a package database; that of a large desktop is 200 MB."""
_MOST_READ = 2 << 30
"""Bytes of all databases of one image: a hostile one may name the same large file a million times."""

Links = dict[bytes, tuple[bytes, ...]]
"""Each path that is one of several names of an inode, to all of these, sorted."""


class ImageTree:
    """The entries of an image, and the content of the few files among them that say who owns the others."""

    def __init__(self, entries: Iterable[Entry], links: Links, content: Callable[[bytes], bytes]) -> None:
        """``content`` is asked for whole regular files, by path."""
        self.entries = {entry.path: entry for entry in entries}
        """By path, in the order given."""
        self.links = links
        self._content = content
        self._left = _MOST_READ
        self._names: defaultdict[bytes, list[bytes]] | None = None
        self._real: dict[bytes, bytes | None] = {}

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
            BrokenDatabase: it is larger than ``limit`` bytes, or all that was read by now is too much.
        """
        real = self.real(path)
        if real is None or self.entries[real].type != "file":
            return None
        size = self.entries[real].size
        if size > limit:
            raise BrokenDatabase(f"file is larger than {limit} bytes", where=real)
        self._left -= size
        if self._left < 0:
            raise BrokenDatabase(f"databases of the image are larger than {_MOST_READ} bytes", where=real)
        return self._content(real)

    def copy(self, path: bytes, target: Path) -> bool:
        """Copy a regular file of the tree; False: there is none."""
        content = self.read(path)
        if content is None:
            return False
        target.write_bytes(content)
        return True

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
