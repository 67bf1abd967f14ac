"""Components of a tree on disk, for tests."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from layerfarm.jobs.mtree import snapshot
from layerfarm.jobs.relayer.components import ImageTree, Links, Ownership, Rule, find_owners


def image_tree(root: Path) -> ImageTree:
    entries = list(snapshot(root))
    names: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
    for entry in entries:
        found = os.lstat(os.path.join(os.fsencode(root), entry.path))
        if entry.type != "dir":
            names[found.st_dev, found.st_ino].append(entry.path)
    links: Links = {path: tuple(sorted(group)) for group in names.values() if len(group) > 1 for path in group}
    return ImageTree(entries, links, lambda path: Path(os.fsdecode(os.path.join(os.fsencode(root), path))).read_bytes())


def ownership(root: Path, rules: Sequence[Rule] = ()) -> Ownership:
    return find_owners(image_tree(root), rules)


def keys(root: Path, rules: Sequence[Rule] = ()) -> dict[str, str]:
    """The key of the component of each path."""
    return {path.decode(): owner.key for path, owner in ownership(root, rules).owners.items()}


def versions(root: Path) -> dict[str, str]:
    """The version of each component."""
    return {owner.key: owner.version for owner in ownership(root).owners.values()}
