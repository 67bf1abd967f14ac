"""Trees for tests: build one from a dict, read one back as a dict, compare the two.

tree(root, {"bin": directory(), "bin/su": file(b"x", mode=0o4755), "su": hardlink("bin/su")})
assert read_tree(root) == read_tree(other)
"""

from __future__ import annotations

import os
import socket as sockets
import stat
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

MTIME = 1_500_000_000 * 10**9
"""The mtime, in nanoseconds, of an entry whose builder was given none."""


@dataclass(frozen=True)
class Node:
    """One entry of a tree: what is to be made, or what was found."""

    type: str
    """``file dir link char block fifo socket``, and ``hardlink`` for building only."""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = MTIME
    """Nanoseconds."""
    content: bytes | None = None
    link: bytes | None = None
    device: tuple[int, int] | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    group: tuple[bytes, ...] = field(default=())
    """Every path of the inode, sorted, where there is more than one; only what was found has it."""


def file(content: bytes = b"", *, mode: int = 0o644, **more: object) -> Node:
    return _node("file", mode, more, content=content)


def directory(*, mode: int = 0o755, **more: object) -> Node:
    return _node("dir", mode, more)


def symlink(target: bytes | str, **more: object) -> Node:
    return _node("link", 0o777, more, link=os.fsencode(target))


def hardlink(target: bytes | str) -> Node:
    """A further name of ``target``, a path from the root of the tree."""
    return _node("hardlink", 0, {}, link=os.fsencode(target))


def char(major: int, minor: int, *, mode: int = 0o600, **more: object) -> Node:
    return _node("char", mode, more, device=(major, minor))


def block(major: int, minor: int, *, mode: int = 0o600, **more: object) -> Node:
    return _node("block", mode, more, device=(major, minor))


def fifo(*, mode: int = 0o600, **more: object) -> Node:
    return _node("fifo", mode, more)


def socket(*, mode: int = 0o600, **more: object) -> Node:
    return _node("socket", mode, more)


def _node(type_: str, mode: int, more: Mapping[str, object], **fields: object) -> Node:
    given = dict(more)
    xattrs = given.pop("xattrs", {})
    assert isinstance(xattrs, Mapping)
    return replace(Node(type_, mode, **fields), xattrs=tuple(sorted(xattrs.items())), **given)  # type: ignore[arg-type]


def tree(root: Path, spec: Mapping[str, Node] | Mapping[bytes, Node]) -> Path:
    """Make the entries of ``spec`` below ``root``, and ``root`` and missing parents where needed.

    Paths are relative; ``.`` is the root. Parents that ``spec`` does not name get mode 0755 and MTIME,
    and so does a root that it does not name.
    """
    nodes = {os.fsencode(path): node for path, node in spec.items()}
    for path in list(nodes):
        while path := os.path.dirname(path):
            nodes.setdefault(path, directory())
    nodes.setdefault(b".", directory())
    top = os.fsencode(root)
    late = sorted(nodes, key=lambda path: (nodes[path].type == "hardlink", path.split(b"/")))
    late.remove(b".")
    for path in [b".", *late]:
        _make(top, path, nodes[path])
    # Metadata last and deepest first: making a child changes its directory's mtime.
    for path in sorted(nodes, key=lambda path: -1 if path == b"." else path.count(b"/"), reverse=True):
        if nodes[path].type != "hardlink":
            _dress(os.path.join(top, path), nodes[path])
    return root


def _make(top: bytes, path: bytes, node: Node) -> None:
    where = os.path.join(top, path)
    if node.type == "dir":
        os.makedirs(where, mode=0o700, exist_ok=True)
    elif node.type == "file":
        with open(where, "xb") as out:
            out.write(node.content or b"")
    elif node.type == "link":
        os.symlink(node.link or b"", where)
    elif node.type == "hardlink":
        os.link(os.path.join(top, node.link or b""), where, follow_symlinks=False)
    elif node.type == "fifo":
        os.mkfifo(where)
    elif node.type == "socket":
        with sockets.socket(sockets.AF_UNIX) as listener:
            listener.bind(os.fsdecode(where))
    else:
        assert node.device is not None
        os.mknod(where, 0o600 | (stat.S_IFCHR if node.type == "char" else stat.S_IFBLK), os.makedev(*node.device))


def _dress(where: bytes, node: Node) -> None:
    os.lchown(where, node.uid, node.gid)
    for name, value in node.xattrs:
        os.setxattr(where, name, value, follow_symlinks=False)
    if node.type != "link":
        os.chmod(where, node.mode)
    os.utime(where, ns=(node.mtime, node.mtime), follow_symlinks=False)


def read_tree(root: Path) -> dict[bytes, Node]:
    """Every entry below ``root``, and the root as ``.``; two trees are the same when these are equal."""
    top = os.fsencode(root)
    found: dict[bytes, Node] = {}
    groups: defaultdict[tuple[int, int], list[bytes]] = defaultdict(list)
    pending = [b"."]
    while pending:
        path = pending.pop()
        where = os.path.join(top, path)
        entry = os.lstat(where)
        found[path] = _found(where, entry)
        if stat.S_ISDIR(entry.st_mode):
            pending += [name if path == b"." else path + b"/" + name for name in os.listdir(where)]
        elif entry.st_nlink > 1:
            groups[entry.st_dev, entry.st_ino].append(path)
    for paths in groups.values():
        if len(paths) > 1:
            for path in paths:
                found[path] = replace(found[path], group=tuple(sorted(paths)))
    return found


_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "link",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def _found(where: bytes, entry: os.stat_result) -> Node:
    kind = _TYPES[stat.S_IFMT(entry.st_mode)]
    device = (os.major(entry.st_rdev), os.minor(entry.st_rdev)) if kind in ("char", "block") else None
    try:
        names = os.listxattr(where, follow_symlinks=False)
    except OSError:
        names = []
    xattrs = tuple((name, os.getxattr(where, name, follow_symlinks=False)) for name in sorted(names))
    content = None
    if kind == "file":
        with open(where, "rb") as stream:
            content = stream.read()
    link = os.readlink(where) if kind == "link" else None
    return Node(
        kind, stat.S_IMODE(entry.st_mode), entry.st_uid, entry.st_gid, entry.st_mtime_ns, content, link, device, xattrs
    )


def in_seconds(found: Mapping[bytes, Node]) -> dict[bytes, Node]:
    """The same tree with every mtime rounded down to seconds: what a layer we write can carry."""
    return {path: replace(node, mtime=node.mtime // 10**9 * 10**9) for path, node in found.items()}
