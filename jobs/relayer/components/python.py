"""Python distributions: ``NAME-VERSION.dist-info/RECORD`` (packaging.python.org "Recording installed projects")."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from layerfarm.jobs.relayer.components.imagetree import BrokenDatabase, ImageTree
from layerfarm.jobs.relayer.components.model import Claim, Component, text

_SUFFIX = b".dist-info/RECORD"
_RUNS = re.compile(r"[-_.]+")


def claims(tree: ImageTree) -> Iterator[Claim]:
    """What each installed distribution owns by its own record, byte code that pip compiled included.

    Raises:
        BrokenDatabase: a record is no CSV.
    """
    for record in [path for path in tree.entries if path.endswith(_SUFFIX)]:
        information = record.removesuffix(b"/RECORD")
        site = information.rpartition(b"/")[0]
        name, _, version = text(information.removesuffix(b".dist-info")[len(site) :].lstrip(b"/")).partition("-")
        prefix = site + b"/" if site else b""
        about = [information + b"/" + other for other in tree.names(information)]
        # Where it is installed is part of the name: an image may have several environments.
        component = Component("python", f"{_RUNS.sub('-', name).lower()} in {text(site)}", version)
        yield Claim(component, [*(_clean(prefix, path) for path in _recorded(tree, record)), *about])


def _recorded(tree: ImageTree, record: bytes) -> list[bytes]:
    content = tree.read(record) or b""
    try:
        rows = csv.reader(content.decode("utf-8", "surrogateescape").splitlines(), strict=True)
        return [row[0].encode("utf-8", "surrogateescape") for row in rows if row and row[0]]
    except csv.Error as error:
        raise BrokenDatabase(f"record is no CSV, {text(str(error))}", where=record) from error


def _clean(prefix: bytes, path: bytes) -> bytes:
    """A path of a record, relative to where the distribution lies or absolute, as one from the root."""
    parts: list[bytes] = []
    for part in (path if path.startswith(b"/") else prefix + path).split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)
