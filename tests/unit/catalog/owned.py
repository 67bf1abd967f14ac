"""What a test asks of the components of a tree on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.catalog.components import ImageTree, Ownership, Rule, find_owners
from jobs.mtree import snapshot


def ownership(root: Path, rules: Sequence[Rule] = ()) -> Ownership:
    with ImageTree(root, snapshot(root)) as tree:
        return find_owners(tree, rules)


def keys(root: Path, rules: Sequence[Rule] = ()) -> dict[str, str]:
    """The key of the component of each path."""
    return {path.decode(): owner.key for path, owner in ownership(root, rules).owners.items()}


def versions(root: Path) -> dict[str, str]:
    """The version of each component."""
    return {owner.key: owner.version for owner in ownership(root).owners.values()}
