"""A tree as layers make it, in memory: the few ways to look at it and to change it.

A path of a layer is resolved component by component, in which symbolic links lead as if the root were
``/`` (umoci.md B2.1, B3.12).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from layerfarm.jobs.errors import MalformedLayer, UnsafePath
from layerfarm.jobs.layer.tree import Child, Directory, Leaf, Metadata, Name, in_layer, layer_of, link_target
from layerfarm.jobs.layer.whiteouts import AUFS_LINKS, PREFIX
from layerfarm.jobs.limits import Limits

_MAX_LINKS: Final = 40  # the kernel's own limit, path_resolution(7)
_MAX_STEPS: Final = 8192
"""Components that the links of one path may add up to; real trees need a dozen."""
_NAMES_CACHED: Final = 4096
_Maker = Callable[[Directory, bytes], Directory]


class ModelTree:
    """Directories and entries below a root of which everything is known."""

    def __init__(self, root: Directory, implied: Metadata, limits: Limits) -> None:
        self.root = root
        self.layer = 0
        self.implied = implied
        """The metadata of a directory that no entry names."""
        self._limits = limits
        self._made = 0
        self._parents: dict[bytes, Directory] = {}
        """Directory part of a name, as written, to its directory; forgotten whenever one is removed."""
        self._kept: set[tuple[Directory, bytes]] = set()
        """Lower layers' entries that the current layer names and leaves as they are."""

    def begin_layer(self) -> None:
        """Start the next layer: what the tree holds belongs to the lower ones."""
        self.layer += 1
        self._kept.clear()

    # --- looking -------------------------------------------------------------------------------------

    def child(self, node: Directory, name: bytes) -> Child | None:
        """What stands in the directory under this name."""
        return None if node.children is None else node.children.get(name)

    def names(self, node: Directory) -> list[bytes]:
        """The names of all that stands in the directory."""
        return list(node.children or ())

    def target(self, node: Directory, name: bytes, child: Child) -> bytes | None:
        """Where a symbolic link points; None: it is no link."""
        return link_target(child)

    def place(self, name: bytes) -> tuple[Directory, bytes] | None:
        """Where an entry of this name is to be written; None for the root. Missing parents are made."""
        head, _, base = name.rstrip(b"/").rpartition(b"/")
        parent = self._parents.get(head)
        if parent is not None and base not in (b"", b".", b".."):
            return parent, base
        parts = clean(name)
        if not parts:
            return None
        base = parts.pop()
        parent = self._make_way(parts)
        if base == name.rstrip(b"/").rpartition(b"/")[2]:
            if len(self._parents) >= _NAMES_CACHED:
                self._parents.clear()
            self._parents[head] = parent
        return parent, base

    def find(self, name: bytes, *, through_own_links: bool) -> tuple[Directory, bytes] | None:
        """Where ``name`` is, its parents resolved; None if they do not exist or ``name`` is the root.

        ``through_own_links``: also through links that the current layer has made. A link that it names and
        keeps (``--keep-dirlinks``) is always followed: lower layers made it.
        """
        parts = clean(name)
        if not parts:
            return None
        base = parts.pop()
        parent = self._follow(self.root, parts, [0], own=through_own_links, missing=None)
        return None if parent is None else (parent, base)

    def leads_to_directory(self, node: Directory, target: bytes) -> bool:
        start, parts = self._start(node, target)
        return self._follow(start, parts, [0], own=True, missing=None) is not None

    # --- changing ------------------------------------------------------------------------------------

    def make_directory(self, node: Directory, name: bytes) -> Directory:
        """A new directory, with the metadata of an implied one until its own entry comes.

        Raises:
            MalformedLayer: a link leads an entry into a directory that no layer could hold (B4.6).
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

    def remove(self, node: Directory, name: bytes, child: Child) -> None:
        """Remove what stands there, whatever layer it is of."""
        if isinstance(child, Directory) or link_target(child) is not None:
            self._parents.clear()
        if node.children is not None:
            node.children.pop(name, None)
        node.changed = True
        if self._kept:
            self._kept.discard((node, name))

    def hide(self, node: Directory, name: bytes) -> None:
        """Apply a whiteout: remove the entry as lower layers left it, keep what this layer has written.

        The result is that of whiteouts that come first, in whatever order they come (B4.1, B4.2): a
        directory that survives only because something below it is new is an implied one again.
        """
        child = self.child(node, name)
        if isinstance(child, Directory) and child.touched == self.layer:
            self.hide_all(child)
            self._reset(child)
        elif child is not None and (isinstance(child, Directory) or layer_of(child) != self.layer):
            self.remove(node, name, child)

    def hide_all(self, node: Directory) -> None:
        """Apply an opaque whiteout: hide every child (B4.3)."""
        pending = [node]
        while pending:
            here = pending.pop()
            for name in self.names(here):
                child = self.child(here, name)
                if isinstance(child, Directory) and child.touched == self.layer:
                    self._reset(child)
                    pending.append(child)
                elif child is not None and (isinstance(child, Directory) or layer_of(child) != self.layer):
                    self.remove(here, name, child)

    def keep(self, node: Directory, name: bytes, child: Leaf | Name) -> None:
        """Note that the current layer has an entry for what stands there already."""
        node.touch(self.layer)
        if layer_of(child) != self.layer:
            self._kept.add((node, name))
            node.put(name, in_layer(child, self.layer))

    # --- inside --------------------------------------------------------------------------------------

    def _reset(self, node: Directory) -> None:
        if node.named != self.layer:
            node.metadata = self.implied

    def _make_way(self, parts: Sequence[bytes]) -> Directory:
        made = self._follow(self.root, parts, [0], own=True, missing=self.make_directory)
        assert made is not None
        return made

    def _follow(
        self,
        node: Directory,
        parts: Sequence[bytes],
        steps: list[int],
        *,
        own: bool,
        missing: _Maker | None,
    ) -> Directory | None:
        """Walk ``parts`` from a directory, links resolved in the root. ``missing`` makes what is not there.

        Without ``missing``: None where the way ends. With it, a component that is no directory and
        leads to none (a file, a loop, a link to a file) is replaced by a directory (B3.3): the link
        itself, not what it points to, which this entry does not name.
        """
        pending = list(reversed(parts))
        links = 0
        while pending:
            part = pending.pop()
            steps[0] += links > 0
            if steps[0] > _MAX_STEPS:
                raise UnsafePath("symbolic links lead through too many directories", where=node.path(part))
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
                    if links <= _MAX_LINKS and (missing is None or self._passable(start, further, steps)):
                        node = start
                        pending += reversed(further)
                        continue
            if missing is None:
                return None
            if child is not None:
                self.remove(node, part, child)
            node = missing(node, part)
        return node

    def _start(self, node: Directory, target: bytes) -> tuple[Directory, list[bytes]]:
        parts = [part for part in target.split(b"/") if part not in (b"", b".")]
        return (self.root if target.startswith(b"/") else node), parts

    def _passable(self, node: Directory, parts: Sequence[bytes], steps: list[int]) -> bool:
        """A link with this target leads to a directory, or to where one can be made."""
        pending = list(reversed(parts))
        links = 0
        while pending:
            part = pending.pop()
            steps[0] += 1
            if steps[0] > _MAX_STEPS:
                raise UnsafePath("symbolic links lead through too many directories", where=node.path(part))
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
            if target is None or links > _MAX_LINKS:
                return False
            node, further = self._start(node, target)
            pending += reversed(further)
        return True


def clean(name: bytes) -> list[bytes]:
    """The components of a name, ``.`` and ``..`` resolved lexically: ``/../../x`` is ``x`` (B2.1).

    Raises:
        MalformedLayer: it holds a NUL.
    """
    if b"\0" in name:
        raise MalformedLayer("tar entry has a NUL in its name", where=name)
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if parts:
                parts.pop()
        elif part and part != b".":
            parts.append(part)
    return parts
