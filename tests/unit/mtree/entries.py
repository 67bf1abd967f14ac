"""Random trees of entries, and short ways to write one down."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import strategies as st

from layerfarm.jobs.mtree import ROOT, Entry, Output, mtree_key, read_full, write_extra, write_tree

SECOND = 10**9


def entry(path: bytes, kind: str = "file", **fields: Any) -> Entry:
    values: dict[str, Any] = {"mode": 0o644, "uid": 0, "gid": 0, "size": 0, "nlink": 1, "mtime": 5 * SECOND}
    if kind == "file":
        values["sha256"] = "e3" * 32
    if kind == "link":
        values["link"] = b"target"
    return Entry(path, kind, **values | fields)  # type: ignore[arg-type]


def tree(*entries: Entry) -> list[Entry]:
    """The entries with a root, in mtree order."""
    return sorted([entry(ROOT, "dir"), *entries], key=lambda e: mtree_key(e.path, e.type == "dir"))


def manifest(entries: list[Entry]) -> bytes:
    out = io.BytesIO()
    assert write_tree(entries, Output(out)) == len(entries)
    return out.getvalue()


def through_files(entries: list[Entry]) -> list[Entry]:
    """The entries written to manifest and extra file, and read again."""
    extra = io.BytesIO()
    write_extra(entries, extra)
    extra.seek(0)
    return list(read_full(io.BytesIO(manifest(entries)), extra))


NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"a.b", b"a-b", b"\xff", b" ", b"\n", b"#", b"\\", b"...", b"/set"[1:]]),
    st.binary(min_size=1, max_size=8).filter(lambda n: b"\0" not in n and b"/" not in n and n not in (b".", b"..")),
)
_IDS = st.integers(0, 2**32 - 2)
_TIMES = st.integers(-(2**40), 2**40).map(lambda seconds: seconds * SECOND)
_XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=6).filter(lambda n: b"\0" not in n).map(lambda n: b"user." + n),
    st.one_of(st.binary(max_size=12), st.just(b"x" * 1025)),
    max_size=3,
).map(lambda found: tuple(sorted(found.items())))


@st.composite
def _entries(draw: st.DrawFn, path: bytes, kind: str) -> Entry:
    return Entry(
        path,
        kind,  # type: ignore[arg-type]
        draw(st.integers(0, 0o7777)),
        draw(_IDS),
        draw(_IDS),
        draw(st.integers(0, 2**50)),
        draw(st.integers(1, 3)),
        draw(_TIMES),
        link=draw(st.binary(min_size=1, max_size=9).filter(lambda t: b"\0" not in t)) if kind == "link" else None,
        sha256=draw(st.sampled_from(["e3" * 32, "0a" * 32])) if kind == "file" else None,
        xattrs=draw(_XATTRS),
        device=draw(st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1))) if kind in ("char", "block") else None,
    )


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """A random tree in mtree order."""
    directories = [b""]
    entries = {ROOT: draw(_entries(ROOT, "dir"))}
    for name in draw(st.lists(NAMES, max_size=12)):
        path = draw(st.sampled_from(directories)) + name
        if path in entries:
            continue
        kind = draw(st.sampled_from(["file", "file", "dir", "dir", "link", "char", "block", "fifo", "socket"]))
        entries[path] = draw(_entries(path, kind))
        if kind == "dir":
            directories.append(path + b"/")
    return sorted(entries.values(), key=lambda e: mtree_key(e.path, e.type == "dir"))
