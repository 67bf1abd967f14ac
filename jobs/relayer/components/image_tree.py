"""The tree of an image as the readers of package databases see it, and the components that they claim."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from layerfarm.jobs.errors import LayerfarmError, display
from layerfarm.jobs.fs.resolve import MOST_LINKS
from layerfarm.jobs.mtree import Entry

_DATABASE_BYTES = 512 << 20
"""Bytes of a package database; that of a large desktop is 200 MB."""
_MOST_READ = 2 << 30
"""Bytes of all databases of one image: a malicious one may name the same large file a million times."""

Links = dict[bytes, tuple[bytes, ...]]
"""For each path that is one of several names of an inode: all of these, sorted."""


class Component(NamedTuple):
    """A part of an image that is built, and changes, as a unit."""

    kind: str
    """``dpkg apk rpm pacman python npm gem jar file rule tree``, or ``database``."""
    name: str
    """Unique among the components of its kind in an image; the same for all versions."""
    version: str = ""
    source: str = ""
    """Components built from one source change together. Empty: no other one is built from it."""
    generated: bool = False
    """Its files that were generated or changed on the image itself: byte code, edited configuration."""

    @property
    def key(self) -> str:
        """Return the key of the component, of any version, in a plan."""
        return f"{self.kind}:{self.name}{'#generated' if self.generated else ''}"


class Claim(NamedTuple):
    """Paths that a database assigns to a component: relative, as written, links not resolved."""

    component: Component
    paths: Iterable[bytes]


class BrokenDatabase(LayerfarmError):
    """A package database of an image does not parse; it then owns no files."""


def text(name: bytes | str) -> str:
    """Return a name from the image for display and for a plan: always one printable line."""
    return display(name)


class ImageTree:
    """The entries of an image, and the content of the few files that name owners of others."""

    def __init__(self, entries: Iterable[Entry], links: Links, content: Callable[[bytes], bytes]) -> None:
        """``content`` reads a whole regular file by path."""
        self.entries = {entry.path: entry for entry in entries}
        """By path, in the order given."""
        self.links = links
        self._content = content
        self._left = _MOST_READ
        self._names: defaultdict[bytes, list[bytes]] | None = None
        self._real: dict[bytes, bytes | None] = {}

    def real(self, path: bytes) -> bytes | None:
        """Return the path with its parents' links resolved; None: it does not exist.

        On a merged /usr dpkg lists ``bin/sh``, which is at ``usr/bin/sh``.
        """
        if path in self.entries and (b"/" not in path or self.entries.get(os.path.dirname(path)) is not None):
            return path
        head, _, name = path.rpartition(b"/")
        directory = self._directory(head)
        if directory is None:
            return None
        found = directory + b"/" + name if directory else name
        return found if found in self.entries else None

    def below(self, *directories: bytes) -> list[bytes]:
        """Return the paths below these directories, links not resolved."""
        prefixes = tuple(directory + b"/" for directory in directories)
        return [path for path in self.entries if path.startswith(prefixes)]

    def names(self, directory: bytes) -> list[bytes]:
        """Return the names in a directory, sorted; none if it does not exist."""
        if self._names is None:
            self._names = defaultdict(list)
            for path in sorted(self.entries):
                head, _, name = path.rpartition(b"/")
                self._names[head].append(name)
        real = self._directory(directory)
        return [] if real is None else self._names.get(real, [])

    def read(self, path: bytes, limit: int = _DATABASE_BYTES) -> bytes | None:
        """Return the content of a small regular file; None: it does not exist, or is a directory, link or device.

        Raises:
            BrokenDatabase: it is larger than ``limit`` bytes, or too much has been read in all.
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

    def _directory(self, path: bytes) -> bytes | None:
        """Return the directory that ``path`` leads to, the root as the empty string; None: not a directory."""
        if path not in self._real:
            self._real[path] = self._resolve(path)
        return self._real[path]

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
            elif entry.type == "link" and entry.link is not None and links < MOST_LINKS:
                links += 1
                if entry.link.startswith(b"/"):
                    here.clear()
                pending += [part for part in reversed(entry.link.split(b"/")) if part not in (b"", b".")]
            else:
                return None
        return b"/".join(here)
