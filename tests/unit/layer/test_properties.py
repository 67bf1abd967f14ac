"""Properties of every tree, every PAX header and every damaged stream, by Hypothesis."""

from __future__ import annotations

import io
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerfarm.jobs.errors import LayerfarmError
from layerfarm.jobs.layer import ExtractOptions, Extractor, unpack_layer
from layerfarm.jobs.limits import Limits
from layerfarm.jobs.mtree.model import Delta, DeltaKind
from layerfarm.jobs.tar.pax import HOLDS_NO_NUL, decode_records, encode_records, parse_time
from layerfarm.jobs.tar.reader import MemberReader
from layerfarm.jobs.tar.writer import TRAILER, Header, encode_header
from tests.examples import examples
from tests.trees import Node, char, directory, fifo, file, hardlink, in_seconds, read_tree, symlink, tree
from tests.unit.layer.archives import archive, entry, generate

pytestmark = pytest.mark.usefixtures("as_root")
"""Unpacking sets owners, which needs root."""

CHECKS = settings(deadline=None, suppress_health_check=list(HealthCheck))
SECOND = 10**9

component = st.one_of(
    st.sampled_from([b"a", b"b", b"c", b"d", b".x", b"..y", b"-", b"a!", b"a0", b"\xff", b"n\nl", "é".encode()]),
    st.binary(min_size=1, max_size=4).filter(
        lambda name: (
            b"/" not in name and b"\0" not in name and name not in (b".", b"..") and not name.startswith(b".wh.")
        )
    ),
)
metadata = st.fixed_dictionaries(
    {
        "mode": st.sampled_from([0o644, 0o755, 0o4711, 0o2750, 0o1777, 0o000]),
        "uid": st.sampled_from([0, 0, 1000, 3_000_000]),
        "gid": st.sampled_from([0, 0, 50]),
        "mtime": st.integers(-1000, 2000).map(lambda seconds: seconds * SECOND + 500),
    }
)
xattrs = st.dictionaries(st.sampled_from(["trusted.a", "trusted.b"]), st.binary(min_size=1, max_size=20), max_size=2)
leaf = st.one_of(
    st.builds(lambda content, more, x: file(content, xattrs=x, **more), st.binary(max_size=1100), metadata, xattrs),
    st.builds(lambda to: symlink(to), st.sampled_from([b"a", b"b", b"../a", b"/a/b", b"a/b", b".", b"..", b"\xfe"])),
    st.builds(lambda more: fifo(**more), metadata),
    st.builds(lambda more, minor: char(1, minor, **more), metadata, st.integers(0, 9)),
)
folder = st.builds(lambda more, x: directory(xattrs=x, **more), metadata, xattrs)


@st.composite
def specs(draw: st.DrawFn) -> dict[bytes, Node]:
    """A tree: directories, entries in them, and further names for some of those."""
    spec: dict[bytes, Node] = {b".": draw(folder)}
    folders = [b""]
    for _ in range(draw(st.integers(0, 5))):
        path = os.path.join(draw(st.sampled_from(folders)), draw(component))
        if path not in spec:
            spec[path] = draw(folder)
            folders.append(path)
    for _ in range(draw(st.integers(0, 8))):
        path = os.path.join(draw(st.sampled_from(folders)), draw(component))
        spec.setdefault(path, draw(leaf))
    leaves = [path for path, node in spec.items() if node.type != "dir"]
    for _ in range(draw(st.integers(0, 3)) if leaves else 0):
        path = os.path.join(draw(st.sampled_from(folders)), draw(component))
        spec.setdefault(path, hardlink(draw(st.sampled_from(leaves))))
    return spec


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory in memory: the tests make and remove thousands of trees."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = Path(tempfile.mkdtemp(prefix="layerfarm-test-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def deltas_between(old: dict[bytes, Node], new: dict[bytes, Node]) -> list[Delta]:
    """Every difference, as a comparison without any simplification would list it."""
    found = [Delta(DeltaKind.MISSING, path) for path in old if path not in new]
    found += [Delta(DeltaKind.EXTRA, path) for path in new if path not in old]
    found += [Delta(DeltaKind.MODIFIED, path) for path in new if path in old and old[path] != new[path]]
    return found


@pytest.mark.large
@settings(CHECKS, max_examples=examples(150))
@given(specs(), specs(), st.randoms(use_true_random=False))
def test_a_layer_between_any_two_trees_turns_one_into_the_other(
    old: dict[bytes, Node], new: dict[bytes, Node], rng: random.Random
) -> None:
    with workspace() as place:
        lower, upper = tree(place / "lower", old), tree(place / "upper", new)
        before, wanted = in_seconds(read_tree(lower)), in_seconds(read_tree(upper))
        deltas = deltas_between(before, wanted)
        # Other names of a changed file change with it: their nlink or content does.
        touched = {delta.path for delta in deltas}
        for path, node in wanted.items():
            if path not in touched and touched & {*node.group, *before.get(path, node).group}:
                deltas.append(Delta(DeltaKind.MODIFIED, path))
        rng.shuffle(deltas)
        layer = generate(upper, deltas)
        # Directories that have no delta keep the old mtime with its fraction.
        unpack_layer(lower, io.BytesIO(layer))
        assert in_seconds(read_tree(lower)) == wanted


@pytest.mark.large
@settings(CHECKS, max_examples=examples(100))
@given(st.lists(specs(), min_size=1, max_size=3))
def test_layers_applied_together_or_one_by_one_give_the_same_tree_and_entries(
    versions: list[dict[bytes, Node]],
) -> None:
    with workspace() as place:
        layers = []
        for number, spec in enumerate(versions):
            source = tree(place / str(number), spec)
            layers.append(generate(source, [Delta(DeltaKind.EXTRA, path) for path in read_tree(source)]))
        together, one_by_one = tree(place / "together", {}), tree(place / "alone", {})
        with Extractor(together) as extractor:
            for layer in layers:
                extractor.apply(io.BytesIO(layer))
                unpack_layer(one_by_one, io.BytesIO(layer))
            extractor.finish()
            entries = {entry.path: entry for entry in extractor.entries()}
        found = read_tree(together)
        assert found == read_tree(one_by_one)
        assert set(entries) == set(found)
        for path, entry_ in entries.items():
            there = os.lstat(os.path.join(os.fsencode(together), path))
            node = found[path]
            assert (entry_.type, entry_.mode, entry_.mtime, entry_.link) == (
                node.type,
                node.mode,
                node.mtime,
                node.link,
            )
            assert (entry_.uid, entry_.gid, entry_.size) == (there.st_uid, there.st_gid, there.st_size)
            assert entry_.nlink == there.st_nlink


keys = st.binary(min_size=1, max_size=30).filter(lambda key: b"=" not in key and b"\0" not in key)


@settings(CHECKS, max_examples=examples(300))
@given(st.lists(st.tuples(keys, st.binary(max_size=120)), max_size=20))
def test_pax_records_round_trip(records: list[tuple[bytes, bytes]]) -> None:
    records = [(key, value.replace(b"\0", b"")) if key in HOLDS_NO_NUL else (key, value) for key, value in records]
    assert decode_records(encode_records(records)) == records


@pytest.mark.large
@settings(CHECKS, max_examples=examples(300))
@given(
    st.lists(component, min_size=1, max_size=60).map(b"/".join),
    st.integers(0, 0o7777),
    st.integers(0, 2**40),
    st.integers(-(2**40), 2**40),
    st.binary(min_size=1, max_size=300).filter(lambda link: b"\0" not in link),
    st.dictionaries(keys, st.binary(min_size=1, max_size=200), max_size=4),
)
def test_headers_round_trip(
    name: bytes, mode: int, uid: int, mtime: int, link: bytes, attributes: dict[bytes, bytes]
) -> None:
    pairs = tuple(sorted(attributes.items()))
    raw = encode_header(Header(name, b"2", mode, uid, uid // 2, 0, mtime, link, (0, 0), pairs))
    (member,) = MemberReader(io.BytesIO(raw + TRAILER), Limits())
    assert (member.name, member.link) == (name, link)
    assert (member.mode, member.uid, member.gid, member.mtime) == (mode, uid, uid // 2, mtime * SECOND)
    assert member.xattrs == pairs


@settings(CHECKS, max_examples=examples(300))
@given(st.decimals(-(10**15), 10**15, places=9))
def test_pax_times_are_exact_to_the_nanosecond(value: object) -> None:
    assert parse_time(f"{value:f}".encode()) == int(value * SECOND)  # type: ignore[operator]


def _victim() -> bytes:
    """A layer with something of everything, and links that would lead out."""
    return archive(
        entry("d", "dir", xattrs={"user.x": b"1"}),
        entry("d/f", content=b"content" * 30, pax={"mtime": "5.5"}),
        entry("out", "link", link="../canary"),
        entry("out/f", content=b"1"),
        entry("abs", "link", link="/"),
        entry("abs/../../canary/g", content=b"2"),
        entry("h", "hardlink", link="d/f"),
        entry("n" * 120, content=b"long"),
        entry("c", "char", device=(1, 3)),
        entry("p", "fifo"),
        entry("d/.wh.gone"),
        entry("e/.wh..wh..opq"),
        entry("s", content=b"3", pax={"GNU.sparse.map": "5,1", "GNU.sparse.numblocks": "1", "GNU.sparse.size": "9"}),
    )


VICTIM = _victim()
INTERESTING = [
    b"../",
    b"/",
    b"..",
    b".wh.",
    b"\0",
    b"0",
    b"1",
    b"2",
    b"5",
    b"7777777",
    b"\x80",
    b"\xff",
    b"x",
    b"L",
    b"g",
    b"S",
]
SMALL = Limits(entries=500, stream_bytes=1 << 20, hole_bytes=1 << 20, path_bytes=2000)


def _reseal(raw: bytearray) -> None:
    """Give every block that looks like a header a right checksum, so that damage gets past it."""
    for at in range(0, len(raw) - 511, 512):
        if raw[at + 257 : at + 262] == b"ustar":
            total = sum(raw[at : at + 148]) + sum(raw[at + 156 : at + 512]) + 256
            raw[at + 148 : at + 156] = b"%06o\0 " % total


@pytest.mark.large
@settings(CHECKS, max_examples=examples(500))
@given(
    st.lists(st.tuples(st.integers(0, len(VICTIM) - 1), st.sampled_from(INTERESTING)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=3),
    st.booleans(),
)
def test_a_damaged_layer_never_leaves_the_root_and_fails_with_our_error_only(
    damage: list[tuple[int, bytes]], swaps: list[tuple[int, int]], sealed: bool
) -> None:
    raw = bytearray(VICTIM)
    for at, piece in damage:
        raw[at : at + len(piece)] = piece
    for one, other in swaps:
        if max(one, other) * 512 + 512 <= len(raw):
            first = bytes(raw[one * 512 : one * 512 + 512])
            raw[one * 512 : one * 512 + 512] = raw[other * 512 : other * 512 + 512]
            raw[other * 512 : other * 512 + 512] = first
    if sealed:
        _reseal(raw)
    with workspace() as place:
        canary = tree(place / "canary", {"f": file(b"alive"), "d/x": file(b"alive")})
        root = tree(place / "root", {"d/gone": file(), "e/x": file()})
        before = {path: replace(node, group=()) for path, node in read_tree(canary).items()}
        try:
            with Extractor(root, ExtractOptions(limits=SMALL)) as extractor:
                extractor.apply(io.BytesIO(bytes(raw)))
                extractor.finish()
        except LayerfarmError:
            pass
        assert read_tree(canary) == before
        assert sorted(os.listdir(place)) == ["canary", "root"]


names = st.lists(st.sampled_from(["a", "b", "c", "..", ".", "", ".wh.a", ".wh..wh..opq"]), min_size=1, max_size=4).map(
    "/".join
)
targets = st.sampled_from(["a", "b", "..", "../..", "/", "/a", "a/b", "../canary", "/../canary", "c/../.."])


@pytest.mark.large
@settings(CHECKS, max_examples=examples(300))
@given(st.lists(st.tuples(names, st.sampled_from(["file", "dir", "link", "hardlink", "fifo"]), targets), max_size=12))
def test_hostile_names_and_links_never_leave_the_root(entries: list[tuple[str, str, str]]) -> None:
    with workspace() as place:
        canary = tree(place / "canary", {"a": file(b"alive"), "b/a": file(b"alive")})
        root = tree(place / "root", {})
        before = read_tree(canary)
        for half in (slice(0, 6), slice(6, None)):
            layer = archive(*(entry(n, t, b"x" if t == "file" else b"", link=to) for n, t, to in entries[half]))
            try:
                unpack_layer(root, io.BytesIO(layer))
            except LayerfarmError:
                break
        assert read_tree(canary) == before
        assert sorted(os.listdir(place)) == ["canary", "root"]
