"""Files that extraction has left out because an upper layer will replace or delete them.

In the model such a file is like any other: it is replaced, deleted, linked to, counted. Only on disk it is
not. Whatever of them is still in the tree when all layers are applied has to be written then, from its layer.
"""

from __future__ import annotations

from layerfarm.jobs.layer.tree import FILE, Child, Directory, Inode, Name, pack_leaf

Place = tuple[Directory, bytes]


class Unwritten(Inode):
    """A file that stands in the model only."""

    __slots__ = ("layer", "ordinal")

    def __init__(self, layer: int, ordinal: int) -> None:
        # Enough for the rules of applying layers: it is no link.
        super().__init__(pack_leaf(layer, FILE, 0, 0, 0, 0, 0))
        self.layer = layer
        """1 for the lowest."""
        self.ordinal = ordinal
        """The position of its member in the layer, from 0."""


def is_unwritten(child: Child | None) -> bool:
    """Whether this entry of the model is not on disk."""
    return isinstance(child, Name) and isinstance(child.inode, Unwritten)


def find_unwritten(root: Directory) -> dict[int, dict[int, list[Place]]]:
    """What in the tree is not on disk: by layer and ordinal, all names of each."""
    found: dict[int, dict[int, list[Place]]] = {}
    pending = [root]
    while pending:
        node = pending.pop()
        for name, child in (node.children or {}).items():
            if isinstance(child, Directory):
                pending.append(child)
            elif isinstance(child, Name) and isinstance(child.inode, Unwritten):
                inode = child.inode
                found.setdefault(inode.layer, {}).setdefault(inode.ordinal, []).append((node, name))
    return found
