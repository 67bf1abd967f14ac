"""Trees for the tests of the mtree room: on disk from a description, and at random from Hypothesis."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Build = Callable[[dict[str | bytes, Any]], Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Make a tree: a value is a file's content, None a directory, a callable what makes the entry itself.

    Every mtime is 1000 s afterwards, deepest first, so that a test sees only the changes it makes.
    """

    def make(spec: dict[str | bytes, Any]) -> Path:
        root = tmp_path / "root"
        root.mkdir()
        for name, what in spec.items():
            path = os.path.join(os.fsencode(root), os.fsencode(name))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if what is None:
                os.makedirs(path, exist_ok=True)
            elif callable(what):
                what(path)
            else:
                with open(path, "wb") as out:
                    out.write(what)
        settle(root)
        return root

    return make


def settle(root: Path) -> None:
    """Give every entry the mtime 1000 s."""
    for directory, _, files in os.walk(os.fsencode(root), topdown=False):
        for name in [*files, b"."]:
            os.utime(os.path.join(directory, name), (1000, 1000), follow_symlinks=False)


@pytest.fixture
def odd_tree(build: Build) -> Path:
    """One of everything: each type, odd names, modes, owners, times, links, xattrs."""
    root = os.fsencode(
        build(
            {
                b"line\nbreak": b"1",
                b"sp ace\ttab": b"2",
                b"non-utf8-\xff\xfe": b"3",
                b"glob[*?]": b"4",
                b"#hash": b"5",
                b"back\\slash\\": b"6",
                b"\xc3\xa9t\xc3\xa9": b"7",
                b"a=b": b"8",
                b"dir\nbreak/sub \xff/f": b"9",
                b"dir/z": b"",
                b"dir/a": b"a",
                b"dir.d/x": b"x",
                b"dir-d": b"x",
                b"empty": None,
                b"link": lambda path: os.symlink(b"tar get\n\xe9", path),
                b"fifo": os.mkfifo,
                b"char": lambda path: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
                b"block": lambda path: os.mknod(path, stat.S_IFBLK | 0o660, os.makedev(259, 70000)),
                b"large": b"large" * 60_000,
            }
        )
    )
    for number, name in enumerate((b"#hash", b"a=b", b"dir/a", b"dir")):
        os.chmod(os.path.join(root, name), (0, 0o4755, 0o664, 0o1777)[number])
    os.chown(os.path.join(root, b"dir"), 5, 6)
    os.chown(os.path.join(root, b"dir/a"), 5, 3_000_000)
    os.link(os.path.join(root, b"a=b"), os.path.join(root, b"dir/hard"))
    os.setxattr(os.path.join(root, b"dir"), b"user.on dir", b"v\0")
    os.setxattr(os.path.join(root, b"large"), b"user.a", b"")
    os.setxattr(os.path.join(root, b"link"), b"trusted.on-link", b"l", follow_symlinks=False)
    os.setxattr(os.path.join(root, b"char"), b"trusted.on-device", b"c")
    os.setxattr(os.path.join(root, b"dir/z"), b"user.large", b"x" * 1025)
    os.utime(os.path.join(root, b"dir/z"), ns=(0, -1_500_000_000))
    os.utime(os.path.join(root, b"dir/a"), ns=(0, 1_500_000_000_123_456_789))
    os.utime(os.path.join(root, b"dir"), (1000, 1000))
    return Path(os.fsdecode(root))
