"""The tree that exists in memory only is the one that extraction makes; a merged layer makes it again."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from layerfarm.jobs.errors import LayerfarmError, MalformedLayer
from layerfarm.jobs.layer import Extractor, merge
from layerfarm.jobs.layer.merge import MergeOptions, merge_layers
from layerfarm.jobs.layer.names import clean
from layerfarm.jobs.layer.stack import Stack, read_members
from layerfarm.jobs.mtree import Entry
from tests.examples import examples
from tests.trees import Node, directory, read_tree, tree
from tests.unit.layer.archives import archive, entry, links_beside_their_inodes
from tests.unit.layer.test_properties import CHECKS, workspace
from tests.unit.relayer.layers import Layer, stacks, tars


def unpacked(layers: list[bytes]) -> tuple[dict[bytes, Node], list[Entry]]:
    """Result of extraction, on disk and by its own report."""
    with workspace() as place:
        root = tree(place / "root", {".": directory(mtime=0)})
        with Extractor(root) as extractor:
            for raw in layers:
                extractor.apply(io.BytesIO(raw))
            extractor.finish()
            entries = list(extractor.entries())
        return read_tree(root), entries


def stacked(layers: list[bytes]) -> Stack:
    return Stack.of(read_members(io.BytesIO(raw)) for raw in layers)


def opener(layers: list[bytes]) -> Callable[[int], AbstractContextManager[BinaryIO]]:
    return lambda number: nullcontext(io.BytesIO(layers[number - 1]))


def attempt(action: Callable[[], object]) -> object:
    """The outcome, an error as what it says."""
    try:
        return action()
    except LayerfarmError as error:
        return type(error).__name__, error.what


def portable(entry: Entry) -> Entry:
    """Sizes and link counts of directories are the filesystem's affair."""
    return entry._replace(size=0, nlink=1) if entry.type == "dir" else entry


@pytest.mark.large
@settings(CHECKS, max_examples=examples(300))
@given(stacks)
@example([[entry("a/b", "file", b"x"), entry("c", "hardlink", link="a/b")], [entry("a", "link", link="c")]])
@example([[entry("a/b/c", "link", link="x"), entry("a", "hardlink", link="a/b/c")]])
def test_stack_is_the_tree_that_extraction_makes(layers: list[Layer]) -> None:
    raw = tars(layers)
    there = attempt(lambda: unpacked(raw))
    here = attempt(lambda: stacked(raw))
    if not isinstance(here, Stack):
        assert here == there
        return
    assert isinstance(there, tuple) and isinstance(there[0], dict), there
    disk, entries = there
    assert list(here.entries()) == [portable(each) for each in entries]
    groups = {path: names for names in here.names().values() for path in names}
    assert groups == {path: node.group for path, node in disk.items() if node.group}


@pytest.mark.large
@settings(CHECKS, max_examples=examples(300))
@given(stacks, st.integers(0, 3))
def test_a_merged_layer_is_worth_the_layers_that_it_is_made_of(layers: list[Layer], keep: int) -> None:
    raw = tars(layers)
    keep = min(keep, len(raw) - 1)
    try:
        wanted, _ = unpacked(raw)
    except LayerfarmError:
        assume(False)
    merged = b"".join(merge_layers(stacked(raw[:keep]), stacked(raw), opener(raw)))
    assert unpacked([*raw[:keep], merged])[0] == wanted
    assert b"".join(merge_layers(stacked(raw[:keep]), stacked(raw), opener(raw))) == merged
    # Its links and parents are its own: it can be unpacked where no other layer is.
    alone, _ = unpacked([merged])
    for path, node in alone.items():
        if path in wanted and path != b".":
            assert node == wanted[path]


@pytest.mark.large
@settings(CHECKS, max_examples=examples(100))
@given(stacks, st.integers(0, 3))
def test_a_merged_layer_has_the_order_of_a_walk(layers: list[Layer], keep: int) -> None:
    raw = tars(layers)
    try:
        merged = b"".join(merge_layers(stacked(raw[: min(keep, len(raw) - 1)]), stacked(raw), opener(raw)))
    except LayerfarmError:
        assume(False)
    members = [read.member for read in read_members(io.BytesIO(merged))]
    keys = [[_place(name) for name in clean(member.name)] for member in members]
    assert keys == sorted(keys)
    prefixed = [member.name.startswith(b"./") for member in members]
    assert not any(prefixed) or (all(prefixed) and members[0].name == b"./")


def _place(name: bytes) -> tuple[bool, bytes]:
    """Whiteouts are before their siblings."""
    return not name.startswith(b".wh."), name


_ORDERS: dict[str, Callable[[str], Any]] = {
    "names": str,
    "mixed": lambda name: name[::-1],
    "backwards": lambda name: -int(name[1:]),
}


@pytest.mark.parametrize("order", _ORDERS)
def test_content_is_found_in_whatever_order_many_layers_have_it(order: str) -> None:
    """More layers than are read side by side, each larger than the one above it."""
    raw = []
    wanted = {}
    for layer in range(9):
        contents = {f"f{number}": f"{number} {layer}".encode() * (9 - layer) for number in range(layer, 99, 4)}
        wanted |= contents
        raw.append(archive(*(entry(name, "file", contents[name]) for name in sorted(contents, key=_ORDERS[order]))))
    opened: list[int] = []

    def counting(number: int) -> AbstractContextManager[BinaryIO]:
        opened.append(number)
        return opener(raw)(number)

    merged = b"".join(merge_layers(None, stacked(raw), counting))
    with tarfile.open(fileobj=io.BytesIO(merged)) as archived:
        names = archived.getnames()
        assert names == ["."] * (names[0] == ".") + sorted(wanted)
        for name, content in wanted.items():
            stream = archived.extractfile(name)
            assert stream is not None and stream.read() == content
    assert len(opened) == len(set(opened))


@pytest.mark.large
def test_a_sparse_file_that_has_to_wait_is_no_larger_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 200 << 20
    named = {"major": "0", "minor": "1", "size": str(size), "numblocks": "1", "map": "5,1"}
    holes = {f"GNU.sparse.{key}": value for key, value in named.items()}
    low = archive(entry("z", "file", b"x", pax=holes), entry("a", "file", b"y"))
    written = []
    real = merge.os.pwrite
    monkeypatch.setattr(merge.os, "pwrite", lambda fd, data, at: written.append(len(data)) or real(fd, data, at))
    read = merge_layers(None, stacked([low]), opener([low]), MergeOptions(scratch=tmp_path))
    assert sum(map(len, read)) > size
    assert written == [1]
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_changed_since_it_was_read_is_an_error() -> None:
    low = archive(entry("a", "file", b"x"), entry("b", "file", b"y"))
    with pytest.raises(MalformedLayer, match="has changed since it was read"):
        b"".join(merge_layers(None, stacked([low]), opener([archive(entry("a", "file", b"x"))])))


def test_an_owner_that_no_user_can_have_is_an_error() -> None:
    for owner in ({"uid": 2**32 - 1}, {"gid": 2**32}):
        with pytest.raises(MalformedLayer, match="is out of range"):
            stacked([archive(entry("f", **owner))])


def test_a_file_is_looked_up_through_links_and_none_at_their_end_is_none() -> None:
    links = {"a": "b", "b": "/c/../f", "loop": "pool", "pool": "loop", "none": "gone", "up": "d"}
    stack = stacked([archive(entry("f"), entry("d", "dir"), *(entry(n, "link", link=t) for n, t in links.items()))])
    source = stack.look_up(b"a")
    assert source is not None and source.member.name == b"f"
    for path in (b"loop", b"none", b"up", b"d/x"):
        assert stack.look_up(path) is None


def test_whiteouts_come_first_and_parents_are_named() -> None:
    low = archive(entry("a", "dir", mode=0o750), entry("a/gone"), entry("a/stays"), entry("b/x"))
    high = archive(entry("a/new", "file", b"1"), entry("a/.wh.gone"), entry(".wh.b"))
    merged = b"".join(merge_layers(stacked([low]), stacked([low, high]), opener([low, high])))
    members = [read.member for read in read_members(io.BytesIO(merged))]
    assert [member.name for member in members] == [b".wh.b", b"a/", b"a/.wh.gone", b"a/new"]
    assert members[1].mode == 0o750


def test_nanoseconds_and_xattrs_of_any_bytes_survive_a_merge() -> None:
    low = archive(entry("f", "file", b"x", mtime=1.5, xattrs={"user.a": b"\xff\x01="}, pax={"mtime": "12.000000007"}))
    merged = b"".join(merge_layers(None, stacked([low]), opener([low])))
    (read,) = read_members(io.BytesIO(merged))
    assert (read.member.mtime, read.member.xattrs) == (12_000_000_007, ((b"user.a", b"\xff\x01="),))


def test_a_file_of_several_names_is_written_once_with_all_of_them() -> None:
    low = archive(entry("a", "file", b"content" * 99), entry("b", "hardlink", link="a"))
    high = archive(entry("c", "hardlink", link="b"), entry(".wh.a"))
    merged = b"".join(merge_layers(stacked([low]), stacked([low, high]), opener([low, high])))
    members = [(read.member.name, chr(read.member.type), read.member.link) for read in read_members(io.BytesIO(merged))]
    assert members == [(b".wh.a", "0", b""), (b"b", "0", b""), (b"c", "1", b"b")]


def test_every_name_of_a_merged_file_carries_its_metadata() -> None:
    pax = {"mtime": "12.000000007"}
    low = archive(
        entry(
            "a", "file", b"x", mode=0o4755, uid=5, gid=6, xattrs={"user.k": b"v", "security.capability": b"c"}, pax=pax
        ),
        entry("b", "hardlink", link="a"),
        entry("l", "link", link="a", uid=7, xattrs={"trusted.t": b"1"}),
        entry("l2", "hardlink", link="l"),
    )
    merged = b"".join(merge_layers(None, stacked([low]), opener([low])))
    links = links_beside_their_inodes(merged)
    assert [link for link, _ in links] == [inode for _, inode in links]
    assert [sorted(link[4]) for link, _ in links] == [
        ["SCHILY.xattr.security.capability", "SCHILY.xattr.user.k"],
        ["SCHILY.xattr.trusted.t"],
    ]


def test_an_epoch_clamps_newer_times() -> None:
    low = archive(entry("new", mtime=2000.5), entry("old", mtime=10), entry("d/", "dir", mtime=3000))
    merged = b"".join(merge_layers(None, stacked([low]), opener([low]), MergeOptions(source_date_epoch=1000)))
    times = {read.member.name: read.member.mtime for read in read_members(io.BytesIO(merged))}
    assert times == {b"d/": 1000 * 10**9, b"new": 1000 * 10**9, b"old": 10 * 10**9}
