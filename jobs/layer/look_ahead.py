"""Names in upper layers, read before the lower layers are applied, so that files they replace need not be written.

Names are taken as written: links that lead elsewhere, hard links and reused names are ignored. So the answer is a
guess: a file that counts as replaced is skipped, and written after all if it is in the tree at the end. A wrong guess
costs time, never a byte.
"""

from __future__ import annotations

from typing import Final

from layerfarm.jobs.layer.names import OPAQUE, PREFIX, clean
from layerfarm.jobs.layer.nodes import FILE, Child, Directory, Inode, Name, files, pack_leaf
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.reader import MemberReader, Readable

_MOST_NAMES: Final = 250_000
"""Most names that are kept, some 40 MB; files that further names replace are written and removed again."""
_REPLACED: Final = b"0236"
_SYMLINK: Final = 0x32


class LookAhead:
    """Names of some layers. One thread may query while another one adds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._single: dict[bytes, int] = {}
        """A path, and the highest layer that replaces or deletes it."""
        self._below: dict[bytes, int] = {}
        """A path, and the highest layer that removes all below it."""
        self._stopped = False

    def stop(self) -> None:
        """Make :meth:`add` in another thread return."""
        self._stopped = True

    def add(self, layer: int, stream: Readable) -> None:
        """Add the names of a layer, given its raw tar. Content is skipped and nothing is checked.

        Raises:
            LayerError, LimitExceeded: the stream is damaged; the names before the damage were added.
        """
        single, below = self._single, self._below
        for member in MemberReader(stream, self._limits):
            if self._stopped or len(single) + len(below) >= _MOST_NAMES:
                return
            path = b"/".join(clean(member.name))
            head, _, base = path.rpartition(b"/")
            if base == OPAQUE:
                below[head] = layer
            elif base.startswith(PREFIX):
                path = head + b"/" + base[len(PREFIX) :] if head else base[len(PREFIX) :]
                single[path] = below[path] = layer
            elif member.type in _REPLACED:
                single[path] = layer
                if member.type == _SYMLINK:
                    # A directory that becomes a link is common (usr-merge), one that becomes a file is not.
                    below[path] = layer

    def replaces(self, path: bytes, layer: int) -> bool:
        """Return True if the layers above probably replace or delete the file of ``layer`` at ``path``."""
        if self._single.get(path, 0) > layer:
            return True
        below = self._below
        if below:
            while path:
                path = path.rpartition(b"/")[0]
                if below.get(path, 0) > layer:
                    return True
        return False


class Skipped(Inode):
    """A file that is in the tree but not on disk."""

    __slots__ = ("layer", "ordinal")

    def __init__(self, layer: int, ordinal: int) -> None:
        # Enough for the rules of applying layers: it is not a link.
        super().__init__(pack_leaf(layer, FILE, 0, 0, 0, 0, 0))
        self.layer = layer
        """1 for the lowest."""
        self.ordinal = ordinal
        """The position of its member in the layer, from 0."""


def is_skipped(child: Child | None) -> bool:
    return isinstance(child, Name) and isinstance(child.inode, Skipped)


def find_skipped(root: Directory) -> dict[int, dict[int, list[tuple[Directory, bytes]]]]:
    """Return all names of the skipped files that are in the tree, by layer and ordinal."""
    found: dict[int, dict[int, list[tuple[Directory, bytes]]]] = {}
    for node, name, child in files(root):
        if isinstance(child, Name) and isinstance(child.inode, Skipped):
            found.setdefault(child.inode.layer, {}).setdefault(child.inode.ordinal, []).append((node, name))
    return found
