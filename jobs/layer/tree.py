"""A tree that layers are applied to: the ways to look at it and to change it.

Paths are resolved component by component; symbolic links lead as if the root were ``/`` (umoci.md B2.1, B3.12).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

from layerfarm.jobs.errors import MalformedLayer, UnsafePath
from layerfarm.jobs.fs.resolve import MOST_LINKS
from layerfarm.jobs.layer.names import AUFS_LINKS, PREFIX, clean
from layerfarm.jobs.layer.nodes import Child, Directory, Leaf, Metadata, Name, layer_of, link_target
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.tar.reader import Member

_MAX_STEPS: Final = 8192
"""Most components that the links of one path may add up to; real trees need a dozen."""
_NAMES_CACHED: Final = 4096


class Tree(ABC):
    """The tree that layers are applied to. The subclass decides where entries are written."""

    def __init__(self, root: Directory, implied: Metadata, limits: Limits) -> None:
        self.root = root
        self.layer = 0
        """The current layer, 1 for the lowest."""
        self.implied = implied
        """The metadata of a directory without an entry."""
        self._limits = limits
        self._made = 0
        self._parents: dict[bytes, Directory] = {}
        """Directory part of a name, as written, to its directory; cleared when a directory or link is removed."""
        self._kept: set[tuple[Directory, bytes]] = set()
        """Lower layers' entries that the current layer names and leaves unchanged."""

    def begin_layer(self) -> None:
        """Start the next layer: everything in the tree belongs to the lower ones."""
        self.layer += 1
        self._kept.clear()

    # --- writing one entry, at a place that is free ----------------------------------------------------

    @abstractmethod
    def write_file(self, member: Member, node: Directory, base: bytes) -> None: ...

    @abstractmethod
    def write_symlink(self, member: Member, node: Directory, base: bytes) -> None: ...

    @abstractmethod
    def write_special(self, member: Member, node: Directory, base: bytes) -> None:
        """Create a device or fifo."""

    @abstractmethod
    def write_hardlink(self, source: Directory, name: bytes, node: Directory, base: bytes) -> None:
        """Give ``name`` in ``source`` another name. The caller records it in ``node``."""

    @abstractmethod
    def directory_metadata(self, member: Member) -> Metadata:
        """Return the metadata of a directory with this entry."""

    # --- looking ---------------------------------------------------------------------------------------

    def child(self, node: Directory, name: bytes) -> Child | None:
        """Return the entry of this name in the directory."""
        return None if node.children is None else node.children.get(name)

    def names(self, node: Directory) -> list[bytes]:
        """Return the names of all entries in the directory."""
        return list(node.children or ())

    def target(self, node: Directory, name: bytes, child: Child) -> bytes | None:
        """Return the target of a symbolic link; None for anything else."""
        return link_target(child)

    def place(self, name: bytes) -> tuple[Directory, bytes] | None:
        """Return the place of an entry of this name; None for the root. Missing parents are created."""
        head, _, base = name.rstrip(b"/").rpartition(b"/")
        parent = self._parents.get(head)
        if parent is not None and base not in (b"", b".", b".."):
            return parent, base
        parts = clean(name)
        if not parts:
            return None
        last = parts.pop()
        parent = self._follow(self.root, parts, make=True)
        assert parent is not None
        if last == base:
            if len(self._parents) >= _NAMES_CACHED:
                self._parents.clear()
            self._parents[head] = parent
        return parent, last

    def find(self, name: bytes, *, through_own_links: bool) -> tuple[Directory, bytes] | None:
        """Locate ``name``, its parents resolved; None if they do not exist or ``name`` is the root.

        ``through_own_links``: also through links that the current layer created. A link that it names and
        keeps (``--keep-dirlinks``) is always followed: lower layers created it.
        """
        parts = clean(name)
        if not parts:
            return None
        base = parts.pop()
        parent = self._follow(self.root, parts, own=through_own_links)
        return None if parent is None else (parent, base)

    def leads_to_directory(self, node: Directory, target: bytes) -> bool:
        """Return True if a link in ``node`` with this target leads to a directory."""
        return self._follow(*self._start(node, target)) is not None

    # --- changing --------------------------------------------------------------------------------------

    def make_directory(self, node: Directory, name: bytes) -> Directory:
        """Create a directory, with the metadata of an implied one until its own entry comes.

        Raises:
            MalformedLayer: a link leads an entry into a directory that a layer cannot hold (B4.6).
        """
        if name.startswith(PREFIX) and not (name == AUFS_LINKS and node is self.root):
            raise MalformedLayer("a directory cannot have a name that starts with .wh.", where=node.path(name))
        self._made += 1
        if self._made > self._limits.entries:
            raise self._limits.exceeded("entries", "layer makes more than {} directories")
        below = Directory(name, node)
        below.metadata = self.implied
        node.put(name, below)
        node.changed = True
        below.touch(self.layer)
        return below

    def make_room(self, node: Directory, name: bytes) -> None:
        """Remove the entry at the place of a new non-directory, so that other names keep the old inode."""
        node.changed = True
        existing = self.child(node, name)
        if existing is not None:
            self.remove(node, name, existing)
        node.touch(self.layer)

    def remove(self, node: Directory, name: bytes, child: Child) -> None:
        """Remove an entry of any layer, with all below it."""
        if isinstance(child, Directory) or link_target(child) is not None:
            self._parents.clear()
        if node.children is not None:
            node.children.pop(name, None)
        node.changed = True
        if self._kept:
            self._kept.discard((node, name))

    def hide(self, node: Directory, name: bytes) -> None:
        """Apply a whiteout: remove the entry as lower layers left it, keep what this layer has written.

        The result is as if whiteouts came first, whatever their order (B4.1, B4.2): a directory that survives only
        because something below it is new is implied again.
        """
        child = self.child(node, name)
        if child is not None and self._hide_child(node, name, child):
            assert isinstance(child, Directory)
            self.hide_all(child)

    def hide_all(self, node: Directory) -> None:
        """Apply an opaque whiteout: hide every child (B4.3)."""
        pending = [node]
        while pending:
            here = pending.pop()
            for name in self.names(here):
                child = self.child(here, name)
                if child is not None and self._hide_child(here, name, child):
                    assert isinstance(child, Directory)
                    pending.append(child)

    def keep(self, node: Directory, name: bytes, child: Leaf | Name) -> None:
        """Record that the current layer has an entry for an existing one."""
        node.touch(self.layer)
        if layer_of(child) != self.layer:
            self._kept.add((node, name))
            if isinstance(child, bytes):
                node.put(name, self.layer.to_bytes(2, "little") + child[2:])
            else:
                node.put(name, Name(self.layer, child.inode))

    # --- inside ----------------------------------------------------------------------------------------

    def _hide_child(self, node: Directory, name: bytes, child: Child) -> bool:
        """Remove the entry unless this layer wrote it; return True if it is a directory that this layer wrote into."""
        if isinstance(child, Directory):
            if child.touched == self.layer:
                if child.named != self.layer:
                    child.metadata = self.implied
                return True
        elif layer_of(child) == self.layer:
            return False
        self.remove(node, name, child)
        return False

    def _follow(
        self, node: Directory, parts: Sequence[bytes], *, own: bool = True, make: bool = False
    ) -> Directory | None:
        """Walk ``parts`` from a directory, links resolved in the root; return None where the path ends.

        ``own``: also through links of the current layer. With ``make`` missing directories are created, and a component
        that neither is nor leads to a directory (a file, a loop, a link to a file) is replaced by a directory (B3.3):
        the link itself, not its target, which this entry does not name.
        """
        pending = list(reversed(parts))
        links = 0
        steps = [0]
        while pending:
            part = pending.pop()
            if links:
                _count_step(steps, node, part)
            if part == b"..":
                node = node.parent or node
                continue
            child = self.child(node, part)
            if isinstance(child, Directory):
                node = child
                continue
            if child is not None:
                target = self.target(node, part, child)
                if target is not None and (own or layer_of(child) != self.layer or (node, part) in self._kept):
                    links += 1
                    start, further = self._start(node, target)
                    if links <= MOST_LINKS and (not make or self._is_passable(start, further, steps)):
                        node = start
                        pending += reversed(further)
                        continue
            if not make:
                return None
            if child is not None:
                self.remove(node, part, child)
            node = self.make_directory(node, part)
        return node

    def _is_passable(self, node: Directory, parts: Sequence[bytes], steps: list[int]) -> bool:
        """Return True if a link with this target leads to a directory, or to where one can be created."""
        pending = list(reversed(parts))
        links = 0
        while pending:
            part = pending.pop()
            _count_step(steps, node, part)
            if part == b"..":
                node = node.parent or node
                continue
            child = self.child(node, part)
            if child is None:
                return True
            if isinstance(child, Directory):
                node = child
                continue
            target = self.target(node, part, child)
            links += 1
            if target is None or links > MOST_LINKS:
                return False
            node, further = self._start(node, target)
            pending += reversed(further)
        return True

    def _start(self, node: Directory, target: bytes) -> tuple[Directory, list[bytes]]:
        parts = [part for part in target.split(b"/") if part not in (b"", b".")]
        return (self.root if target.startswith(b"/") else node), parts


def _count_step(steps: list[int], node: Directory, part: bytes) -> None:
    steps[0] += 1
    if steps[0] > _MAX_STEPS:
        raise UnsafePath("symbolic links lead through too many directories", where=node.path(part))
