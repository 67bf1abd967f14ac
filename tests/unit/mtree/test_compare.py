from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given

from layerfarm.jobs.errors import MtreeError, MtreeSyntaxError
from layerfarm.jobs.mtree import (
    UNRECORDED,
    UNRECORDED_TIME,
    Delta,
    DeltaKind,
    DeltaSummary,
    Entry,
    compare,
    mask,
    mtree_key,
    read_deltas,
    simplify,
    snapshot,
    write_deltas,
)
from tests.unit.mtree.entries import SECOND, entry, tree, trees

EXTRA, MODIFIED, MISSING = DeltaKind.EXTRA, DeltaKind.MODIFIED, DeltaKind.MISSING


def found(old: list[Entry], new: list[Entry]) -> list[tuple[DeltaKind, bytes, tuple[str, ...]]]:
    return [(delta.kind, delta.path, delta.keys) for delta in compare(old, new)]


@given(trees())
def test_a_tree_does_not_differ_from_itself(one: list[Entry]) -> None:
    assert list(compare(one, one)) == []


@pytest.mark.large
@given(trees(), trees())
def test_deltas_are_the_differences_of_the_two_sets_of_paths_in_mtree_order(old: list[Entry], new: list[Entry]) -> None:
    before, after = {e.path: e for e in old}, {e.path: e for e in new}
    deltas = list(compare(old, new))
    seen = {delta.path: delta for delta in deltas}
    assert len(seen) == len(deltas)
    retyped = [path for path in before.keys() & after.keys() if before[path].type == "dir" != after[path].type]
    hidden = {path for path in before if any(path.startswith(parent + b"/") for parent in retyped)}
    assert {p for p, d in seen.items() if d.kind is EXTRA} == after.keys() - before.keys()
    assert {p for p, d in seen.items() if d.kind is MISSING} == before.keys() - after.keys() - hidden
    for path, delta in seen.items():
        assert (delta.old, delta.new) == (before.get(path), after.get(path))
        assert bool(delta.keys) == (delta.kind is MODIFIED)
    keys = [mtree_key(d.path, (d.new or d.old).type == "dir") for d in deltas]  # type: ignore[union-attr]
    assert keys == sorted(keys)


@pytest.mark.large
@given(trees(), trees())
def test_the_reverse_comparison_swaps_extra_and_missing(old: list[Entry], new: list[Entry]) -> None:
    modified = {d.path: d.keys for d in compare(old, new) if d.kind is MODIFIED}
    assert {d.path: d.keys for d in compare(new, old) if d.kind is MODIFIED} == modified


@pytest.mark.large
@given(trees(), trees())
def test_deltas_held_back_on_disk_are_the_same(old: list[Entry], new: list[Entry]) -> None:
    expected = list(compare(old, new))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[compare.__module__], "_HELD_IN_MEMORY", 2)
        assert list(compare(old, new)) == expected


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"mode": 0o600}, "mode"),
        ({"uid": 1}, "uid"),
        ({"gid": 1}, "gid"),
        ({"size": 1}, "size"),
        ({"nlink": 2}, "nlink"),
        ({"mtime": 6 * SECOND}, "tar_time"),
        ({"sha256": "0a" * 32}, "sha256digest"),
        ({"xattrs": ((b"user.a b", b""),)}, "xattr.user.a\\040b"),
    ],
)
def test_D_compare_every_keyword_of_a_file(change: dict[str, object], key: str) -> None:
    assert found(tree(entry(b"f")), tree(entry(b"f", **change))) == [(MODIFIED, b"f", (key,))]


def test_D_compare_links_by_target() -> None:
    old, new = tree(entry(b"l", "link", link=b"a")), tree(entry(b"l", "link", link=b"b"))
    assert found(old, new) == [(MODIFIED, b"l", ("link",))]


def test_D_compare_changed_added_and_removed_xattrs_each_by_name() -> None:
    old = tree(entry(b"f", xattrs=((b"user.a", b"1"), (b"user.b", b"1"), (b"user.same", b""))))
    new = tree(entry(b"f", xattrs=((b"user.b", b"2"), (b"user.c", b""), (b"user.same", b""))))
    assert found(old, new) == [(MODIFIED, b"f", ("xattr.user.a", "xattr.user.b", "xattr.user.c"))]


@pytest.mark.parametrize("name", [b"security.selinux", b"system.nfs4_acl"])
def test_xattrs_of_the_machine_are_not_compared(name: bytes) -> None:
    assert found(tree(entry(b"f", xattrs=((name, b"1"),))), tree(entry(b"f", xattrs=((name, b"2"),)))) == []
    assert found(tree(entry(b"f", xattrs=None)), tree(entry(b"f", xattrs=((name, b"2"),)))) == []


def test_D_limit_4_parts_of_a_second_are_not_compared_and_times_round_down() -> None:
    old, new = tree(entry(b"f", mtime=-1_500_000_000)), tree(entry(b"f", mtime=-1_100_000_000))
    assert found(old, new) == []
    assert found(old, tree(entry(b"f", mtime=-900_000_000))) == [(MODIFIED, b"f", ("tar_time",))]


def test_D_limit_5_size_and_links_of_directories_are_not_compared() -> None:
    assert found(tree(entry(b"d", "dir")), tree(entry(b"d", "dir", size=9, nlink=9))) == []


def test_D_limit_6_and_12_content_is_compared_when_everything_else_agrees() -> None:
    assert found(tree(entry(b"f")), tree(entry(b"f", sha256="0a" * 32))) == [(MODIFIED, b"f", ("sha256digest",))]


def test_keywords_that_one_side_lacks_are_not_compared() -> None:
    unknown = Entry(b"f", "file", *[UNRECORDED] * 5, UNRECORDED_TIME, xattrs=None)
    for old, new in ((unknown, entry(b"f")), (entry(b"f"), unknown)):
        assert found(tree(old), tree(new)) == []
    device = entry(b"c", "char", xattrs=None)
    assert found(tree(device), tree(entry(b"c", "char", device=(1, 3)))) == []
    link = entry(b"l", "link", link=None, xattrs=None)
    assert found(tree(link), tree(entry(b"l", "link"))) == []


def test_unrecorded_xattrs_differ_only_from_some() -> None:
    unknown = entry(b"l", "link", xattrs=None)
    assert found(tree(unknown), tree(entry(b"l", "link"))) == []
    known = tree(entry(b"l", "link", xattrs=((b"trusted.a", b""),)))
    assert found(tree(unknown), known) == [(MODIFIED, b"l", ("xattr.trusted.a",))]


def test_D_compare_directory_that_became_a_link_is_one_modified_without_its_children() -> None:
    old = tree(
        entry(b"bin", "dir"), entry(b"bin/sh"), entry(b"bin/x", "dir"), entry(b"bin/x/y"), entry(b"bin.d", "dir")
    )
    new = tree(entry(b"bin", "link"), entry(b"zzz"))
    deltas = list(compare(old, new))
    assert [(d.kind, d.path) for d in deltas] == [(MODIFIED, b"bin"), (EXTRA, b"zzz"), (MISSING, b"bin.d")]
    assert "type" in deltas[0].keys
    assert (deltas[0].old, deltas[0].new) == (old[1], new[1])


def test_D_compare_file_that_became_a_directory_is_one_modified_and_its_children_are_extra() -> None:
    old = tree(entry(b"a"), entry(b"m", "dir"), entry(b"z"))
    new = tree(entry(b"m", "dir"), entry(b"z", "dir"), entry(b"z/in"))
    assert [(d.kind, d.path, "type" in d.keys) for d in compare(old, new)] == [
        (MISSING, b"a", False),
        (MODIFIED, b"z", True),
        (EXTRA, b"z/in", False),
    ]


def test_D_compare_change_between_other_types_is_one_modified() -> None:
    assert found(tree(entry(b"x", "fifo")), tree(entry(b"x", "socket"))) == [(MODIFIED, b"x", ("type",))]


def test_new_file_waits_for_a_directory_of_its_name_past_whole_subtrees() -> None:
    inside = [entry(b"d%d/f%d" % (n, m)) for n in range(5) for m in range(5)]
    directories = [entry(b"d%d" % n, "dir") for n in range(5)]
    old = tree(*directories, *inside, entry(b"z", "dir"), entry(b"z/gone"))
    new = tree(*directories, *[e._replace(uid=1) for e in inside], entry(b"z"), entry(b"y"))
    kinds = [(d.kind, d.path) for d in compare(old, new)]
    assert kinds == [(EXTRA, b"y"), (MODIFIED, b"z"), *[(MODIFIED, e.path) for e in inside]]


@pytest.mark.parametrize(
    "side", [[entry(b"b"), entry(b"a")], [entry(b"a"), entry(b"a")], [entry(b"d", "dir"), entry(b"a")]]
)
def test_a_side_out_of_mtree_order_is_refused(side: list[Entry]) -> None:
    with pytest.raises(MtreeError, match="old tree is not in mtree order"):
        list(compare(side, []))
    with pytest.raises(MtreeError, match="new tree is not in mtree order"):
        list(compare([], side))


def test_entries_are_taken_as_they_come() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        for number in range(10**9):
            taken += 1
            yield entry(b"%09d" % number)

    deltas = compare([], endless())  # type: ignore[arg-type]
    assert [next(deltas).path for _ in range(3)] == [b"000000000", b"000000001", b"000000002"]
    assert taken < 10


def test_changes_on_disk_are_found(odd_tree: Path) -> None:
    old = list(snapshot(odd_tree))
    (odd_tree / "dir" / "new").write_bytes(b"")
    os.utime(odd_tree / "dir", (1000, 1000))
    (odd_tree / "fifo").chmod(0o600)
    (odd_tree / "link").unlink()
    os.setxattr(odd_tree / "char", b"trusted.on-device", b"other")
    os.utime(odd_tree, (1000, 1000))
    assert found(old, list(snapshot(odd_tree))) == [
        (MODIFIED, b"char", ("xattr.trusted.on-device",)),
        (MODIFIED, b"fifo", ("mode",)),
        (MISSING, b"link", ()),
        (EXTRA, b"dir/new", ()),
    ]


def deltas(*paths: tuple[DeltaKind, bytes]) -> list[Delta]:
    return [Delta(kind, path) for kind, path in paths]


def test_simplify_drops_what_a_missing_directory_takes_with_it() -> None:
    given_ = deltas(
        (MISSING, b"d"), (MISSING, b"d/a"), (MISSING, b"d/s"), (MISSING, b"d/s/b"), (MISSING, b"d.x"), (EXTRA, b"e")
    )
    assert list(simplify(given_)) == deltas((MISSING, b"d"), (MISSING, b"d.x"), (EXTRA, b"e"))


def test_simplify_keeps_what_is_missing_below_a_directory_that_stays() -> None:
    given_ = deltas((MODIFIED, b"d"), (MISSING, b"d/a"), (EXTRA, b"d/b"), (MISSING, b"d/c"))
    assert list(simplify(given_)) == given_


def test_mask_drops_the_path_and_all_below_but_not_its_namesakes() -> None:
    given_ = deltas(*((EXTRA, p) for p in (b".", b"v", b"v/a", b"v/a/b", b"vv", b"v.x", b"w/v", b"w/x", b"w/xy")))
    assert [d.path for d in mask(given_, [b"/v/", b"./w//x/."])] == [b".", b"vv", b"v.x", b"w/v", b"w/xy"]
    assert [d.path for d in mask(given_, [b"/w/../v/a"])] == [b".", b"v", b"vv", b"v.x", b"w/v", b"w/x", b"w/xy"]


@pytest.mark.parametrize("root", [b"/", b".", b"", b"/.."])
def test_mask_of_the_root_drops_everything(root: bytes) -> None:
    assert list(mask(deltas((EXTRA, b"."), (EXTRA, b"a")), [root])) == []


def test_mask_of_nothing_keeps_everything() -> None:
    assert list(mask(deltas((EXTRA, b"."), (EXTRA, b"a")), [])) == deltas((EXTRA, b"."), (EXTRA, b"a"))


def test_deltas_file_keeps_kinds_and_paths_of_any_bytes() -> None:
    given_ = deltas(*((kind, b"odd \n\xff\\/%d" % n) for n, kind in enumerate([*DeltaKind] * 700)))
    out = io.BytesIO()
    summary = write_deltas(given_, out)
    out.seek(0)
    assert list(read_deltas(out)) == given_
    assert (summary.paths, summary.bytes, summary.newest_mtime) == (2100, 0, None)


def test_summary_of_deltas_counts_content_to_pack_and_the_newest_time() -> None:
    old = tree(entry(b"gone", size=1000, mtime=99 * SECOND), entry(b"same", size=500))
    new = tree(
        entry(b"a", size=3, mtime=-7),
        entry(b"l", "link", size=9, mtime=8 * SECOND - 1),
        entry(b"same", size=20, mtime=0),
    )
    summary = write_deltas(compare(old, new), io.BytesIO())
    assert (summary.paths, summary.bytes, summary.newest_mtime) == (4, 23, 7)


def test_summaries_of_two_parts_are_joined() -> None:
    nothing, some, more = DeltaSummary(), DeltaSummary(2, 10, -5), DeltaSummary(1, 5, 7)
    assert some.joined(more) == more.joined(some) == (3, 15, 7)
    assert some.joined(nothing) == nothing.joined(some) == some


@pytest.mark.parametrize("text", [b"gone f\n", b"extra\n", b"extra \n", b"extra f", b"extra \\q\n"])
def test_damaged_deltas_file_is_refused(text: bytes) -> None:
    with pytest.raises(MtreeSyntaxError):
        list(read_deltas(io.BytesIO(text)))


def test_a_tree_that_holds_a_path_as_a_file_and_as_a_directory_is_refused() -> None:
    """Found by the fuzzer: the file was held back for the directory, and taken for the other tree's."""
    twice = tree(entry(b"x"), entry(b"x", "dir"))
    other = tree(entry(b"w", "dir"))  # what it is held back for: a directory may still follow
    for old, new in ((twice, other), (other, twice)):
        with pytest.raises(MtreeError, match="both as a directory and as something else: x"):
            list(compare(old, new))
