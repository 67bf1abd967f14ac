"""A whole tree's entries in one call and one process, for small trees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from layerfarm.jobs.mtree.fragments import merge_fragments
from layerfarm.jobs.mtree.hashing import hash_shard
from layerfarm.jobs.mtree.model import Entry
from layerfarm.jobs.mtree.shards import plan_shards
from layerfarm.jobs.mtree.walk import walk_tree


def snapshot(root: Path, hash_content: bool = True) -> Iterator[Entry]:
    """The entries of the tree at ``root`` in mtree order, read when the first one is asked for.

    Without ``hash_content`` no regular file is opened and ``sha256`` is None.

    Raises:
        RootfsNotFound: the root does not exist or is not a directory.
        RootfsError: something in it cannot be read.
        TreeChanged: somebody changes the tree meanwhile.
    """
    with TemporaryDirectory(prefix="layerfarm-") as work:
        walk_file, fragment = Path(work, "walk"), Path(work, "fragment")
        with walk_file.open("w+b") as out:
            walk = walk_tree(root, out)
        (shard,) = plan_shards(walk_file, 1)
        with fragment.open("wb") as out:
            hash_shard(root, walk_file, shard, out, _unobserved, content=hash_content)
        yield from merge_fragments([fragment], walk.entries)


def _unobserved(nbytes: int) -> None:
    pass
