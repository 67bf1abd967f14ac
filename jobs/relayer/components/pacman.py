"""Arch's packages: ``var/lib/pacman/local/NAME-VERSION/{desc,files,mtree}`` (alpm's local database)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from layerfarm.jobs.relayer.components.imagetree import BrokenDatabase, ImageTree
from layerfarm.jobs.relayer.components.model import Claim, Component, text

_LOCAL = b"var/lib/pacman/local"


def claims(tree: ImageTree) -> Iterator[Claim]:
    """What pacman says that each installed package owns. Only ``desc`` tells the day of its installation.

    Raises:
        BrokenDatabase: an entry does not parse.
    """
    for entry in tree.names(_LOCAL):
        where = _LOCAL + b"/" + entry
        desc = tree.read(where + b"/desc")
        if desc is None:
            continue
        fields = _sections(desc, where + b"/desc")
        if not fields.get(b"NAME"):
            raise BrokenDatabase("entry names no package", where=where)
        (name, *_), (version, *_) = fields[b"NAME"], fields.get(b"VERSION", [b""])
        (source, *_) = fields.get(b"BASE", [name])
        files = _sections(tree.read(where + b"/files") or b"", where + b"/files").get(b"FILES", [])
        paths = [path for path in files if not path.endswith(b"/")]
        own = [where + b"/" + suffix for suffix in tree.names(where) if suffix != b"desc"]
        yield Claim(Component("pacman", text(name), text(version), f"pacman:{text(source)}"), [*paths, *own])


def database(tree: ImageTree) -> Iterator[Claim]:
    """What pacman itself keeps: it changes whenever any package does."""
    below = b"var/lib/pacman/"
    yield Claim(Component("database", "pacman"), [path for path in tree.entries if path.startswith(below)])


def _sections(content: bytes, where: bytes) -> dict[bytes, list[bytes]]:
    """``%NAME%``, then a value a line, then an empty line."""
    found: defaultdict[bytes, list[bytes]] = defaultdict(list)
    section = None
    for line in content.split(b"\n"):
        if line.startswith(b"%") and line.endswith(b"%") and len(line) > 2:
            section = line[1:-1]
        elif line and section is None:
            raise BrokenDatabase(f"line belongs to no section: {text(line[:80])}", where=where)
        elif line and section is not None:
            found[section].append(line)
    return found
