"""Alpine's packages: ``lib/apk/db/installed`` (apk-package(5), the format of its v2 database)."""

from __future__ import annotations

from collections.abc import Iterator

from layerfarm.jobs.relayer.components.imagetree import BrokenDatabase, ImageTree
from layerfarm.jobs.relayer.components.model import Claim, Component, text

_DIRECTORIES = (b"lib/apk/db", b"usr/lib/apk/db")


def claims(tree: ImageTree) -> Iterator[Claim]:
    """What apk says that each installed package owns.

    Raises:
        BrokenDatabase: the database does not parse.
    """
    for directory in _DIRECTORIES:
        where = directory + b"/installed"
        for block in (tree.read(where) or b"").split(b"\n\n"):
            if block.strip():
                yield _package(block, where)
        if tree.names(directory):
            return  # on a merged /usr both names lead to one database


def database(tree: ImageTree) -> Iterator[Claim]:
    """What apk itself keeps: it changes whenever any package does."""
    below = tuple(directory + b"/" for directory in _DIRECTORIES)
    yield Claim(Component("database", "apk"), [path for path in tree.entries if path.startswith(below)])


def _package(block: bytes, where: bytes) -> Claim:
    fields: dict[bytes, bytes] = {}
    paths: list[bytes] = []
    folder = b""
    for line in block.split(b"\n"):
        letter, colon, value = line.partition(b":")
        if not line:
            continue
        if not colon or len(letter) != 1:
            raise BrokenDatabase(f"line is no field: {text(line[:80])}", where=where)
        if letter == b"F":
            folder = value
        elif letter == b"R":
            paths.append(folder + b"/" + value if folder else value)
        else:
            fields.setdefault(letter, value)
    if not fields.get(b"P"):
        raise BrokenDatabase("entry names no package", where=where)
    name = fields[b"P"]
    source = f"apk:{text(fields.get(b'o', name))}"
    return Claim(Component("apk", text(name), text(fields.get(b"V", b"")), source), paths)
