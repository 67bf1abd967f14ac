from __future__ import annotations

import io
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from layerfarm.jobs.errors import MtreeError, MtreeSyntaxError
from layerfarm.jobs.mtree import (
    ROOT,
    UNRECORDED,
    UNRECORDED_TIME,
    Entry,
    Output,
    compare,
    lines,
    read_full,
    read_manifest,
    snapshot,
    write_extra,
    write_tree,
)
from tests.unit.mtree.entries import SECOND, entry, manifest, through_files, tree, trees


def read(text: bytes) -> list[Entry]:
    return list(read_manifest(io.BytesIO(text)))


def body(entries: list[Entry]) -> bytes:
    return manifest(entries).partition(b"\n\n")[2]


@pytest.mark.large
@given(trees())
def test_manifest_and_extra_file_keep_every_tree(entries: list[Entry]) -> None:
    assert through_files(entries) == entries


def test_tree_on_disk_survives_the_files_except_fractions_of_a_second(odd_tree: Path) -> None:
    entries = list(snapshot(odd_tree))
    assert through_files(entries) == [e._replace(mtime=e.mtime // SECOND * SECOND) for e in entries]


def test_D_format_set_dotdot_comments_and_indentation() -> None:
    entries = tree(
        entry(b"f", mode=0o664),
        entry(b"d", "dir", uid=5, gid=6, mode=0o1777, nlink=3),
        entry(b"d/g", uid=5, gid=6, nlink=2, mode=0),
        entry(b"d/h"),
        entry(b"d/s", "dir", mode=0o664),
        entry(b"z", "dir"),
    )
    digest = b" sha256digest=" + b"e3" * 32
    assert body(entries) == (
        b"# .\n"
        b"/set type=file nlink=1 mode=0664 uid=0 gid=0\n"
        b". size=0 type=dir mode=0644 tar_time=5.000000000\n"
        b"    f size=0 tar_time=5.000000000" + digest + b"\n"
        b"\n"
        b"# d\n"
        b"/set type=file nlink=1 mode=0664 uid=5 gid=6\n"
        b"d size=0 type=dir mode=01777 nlink=3 tar_time=5.000000000\n"
        b"    g size=0 mode=0 nlink=2 tar_time=5.000000000" + digest + b"\n"
        b"    h size=0 uid=0 gid=0 mode=0644 tar_time=5.000000000" + digest + b"\n"
        b"\n"
        b"# d/s\n"
        b"/set type=file nlink=1 mode=0664 uid=0 gid=0\n"
        b"s size=0 type=dir tar_time=5.000000000\n"
        b"..\n"
        b"..\n"
        b"\n"
        b"# z\n"
        b"z size=0 type=dir mode=0644 tar_time=5.000000000\n"
        b"..\n"
        b"..\n"
    )


def test_D_keywords_order_and_values_of_every_type() -> None:
    entries = tree(
        entry(b"c", "char", device=(1, 3), xattrs=((b"trusted.x", b"1"),)),
        entry(b"l", "link", link=b"a b\n", mode=0o777, size=4),
        entry(b"s", "socket", mtime=-1_500_000_000),
        entry(b"x", xattrs=((b"user.a b", b"\0\xff"), (b"user.e", b""))),
    )
    lines = [line.strip() for line in body(entries).splitlines()]
    assert b"c size=0 type=char mode=0644 tar_time=5.000000000" in lines
    assert rb"l size=4 type=link mode=0777 link=a\040b\012 tar_time=5.000000000" in lines
    assert b"s size=0 type=socket mode=0644 tar_time=-2.000000000" in lines
    digest = b"e3" * 32
    assert (
        rb"x size=0 mode=0644 tar_time=5.000000000 sha256digest=%b xattr.user.a\040b=AP8= xattr.user.e=" % digest
        in lines
    )


def test_D_format_header_is_comments_without_date_user_or_host() -> None:
    header = manifest(tree()).partition(b"\n\n")[0]
    assert all(line.startswith(b"#") for line in header.splitlines())
    assert header.endswith(b"keywords: size,type,uid,gid,mode,link,nlink,tar_time,sha256digest,xattr")
    assert manifest(tree()) == manifest(tree())


def test_directory_with_a_line_break_in_its_name_makes_no_phantom_entry() -> None:
    text = manifest(tree(entry(b"a\n..", "dir"), entry(b"a\n../f")))
    assert rb"# a\012.." in text
    assert [e.path for e in read(text)] == [b".", b"a\n..", b"a\n../f"]


@pytest.mark.parametrize("name", [b"xattr.", b"xattr.user.x=QQ=="])
def test_file_may_be_called_as_a_keyword(name: bytes) -> None:
    old = tree(entry(name, xattrs=((b"user.a", b""),)))
    assert read(manifest(old)) == old


def test_phantom_lines_below_umocis_raw_comments_are_not_entries() -> None:
    text = (
        b"#      keywords: size,type,uid,gid,mode,link,nlink,tar_time,sha256digest,xattr\n\n# .\n"
        b"/set type=file nlink=1 mode=0664 uid=0 gid=0\n"
        b". size=1 type=dir tar_time=1.000000000\n"
        b"\n# nl\ndir\n"
        b"nl\\012dir size=1 type=dir tar_time=1.000000000\n"
        b"\n# nl\ndir/sub\n..\n/set type=file nlink=1 mode=0664 uid=7 gid=0\n"
        b"sub\\012.. size=1 type=dir tar_time=1.000000000\n"
        b"..\n..\n..\n"
    )
    assert [(e.path, e.uid) for e in read(text)] == [(b".", 0), (b"nl\ndir", 0), (b"nl\ndir/sub\n..", 7)]


def test_raw_comments_are_recognized_wherever_the_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        b"#mtree\n\n# .\n. type=dir\n\n# ./nl\nd\n"
        b"/set type=file uid=5\nnl\\012d type=dir\n    f\n# ./nl\nd\n..\n..\n# no path at all\n"
    )
    expected = read(text)
    assert [(e.path, e.uid) for e in expected] == [(b".", UNRECORDED), (b"nl\nd", 5), (b"nl\nd/f", 5)]
    for size in (1, 7, 30):
        monkeypatch.setattr(lines, "_CHUNK", size)
        assert read(text) == expected


def test_a_raw_comment_is_followed_for_64_lines() -> None:
    """Beyond, its lines are read as entries: a manifest made to be slow costs no more than this."""
    for breaks in (63, 64):
        name = b"\n".join(b"x%d" % number for number in range(breaks + 1))
        encoded = name.replace(b"\n", b"\\012")
        text = b"#mtree\n/set type=dir\n.\n# ./" + name + b"\n" + encoded + b"\n..\n..\n"
        assert [entry.path for entry in read(text)][:2] == [b".", name if breaks < 64 else b"x1"]


def test_D_limit_1_xattrs_over_1024_bytes_go_to_the_extra_file() -> None:
    fits = entry(b"a", xattrs=((b"user.a", b"x" * 1024),))
    too_large = entry(b"b", xattrs=((b"user.a", b"x" * 1025), (b"user.b", b"small")))
    long_list = entry(b"c", xattrs=tuple((b"user.%03d" % n, b"") for n in range(114)))
    just_fits = entry(b"d", xattrs=(*tuple((b"user.%02d" % n, b"") for n in range(100)), (b"user." + b"x" * 218, b"")))
    entries = tree(fits, too_large, long_list, just_fits)
    text = manifest(entries).splitlines()
    assert [
        b"xattr." in next(line for line in text if line.startswith(b"    " + name)) for name in (b"a", b"b", b"c", b"d")
    ] == [
        True,
        False,
        False,
        True,
    ]
    assert through_files(entries) == entries
    changed = tree(fits, too_large._replace(xattrs=((b"user.a", b"y" * 1025),)), long_list, just_fits)
    (delta,) = compare(through_files(entries), changed)
    assert (delta.path, delta.keys) == (b"b", ("xattr.user.a", "xattr.user.b"))


def test_D_limit_2_device_numbers_go_to_the_extra_file_and_are_compared() -> None:
    entries = tree(entry(b"c", "char", device=(1, 3)), entry(b"b", "block", device=(259, 1_000_000)))
    assert through_files(entries) == entries
    (delta,) = compare(through_files(entries), tree(entry(b"c", "char", device=(1, 5)), entries[1]))
    assert (delta.path, delta.keys) == (b"c", ("device",))


@pytest.mark.parametrize("kind", ["link", "char", "block", "fifo", "socket"])
def test_D_limit_3_xattrs_of_other_types_go_to_the_extra_file_and_are_compared(kind: str) -> None:
    entries = tree(entry(b"x", kind, xattrs=((b"trusted.x", b"1"),)))
    assert b"xattr.trusted" not in manifest(entries)
    assert through_files(entries) == entries
    (delta,) = compare(through_files(entries), tree(entry(b"x", kind)))
    assert delta.keys == ("xattr.trusted.x",)


def test_D_limit_7_no_line_of_a_manifest_is_longer_than_go_mtree_reads() -> None:
    many = tuple((b"user.%02d" % n, b"x" * 1000) for n in range(60))
    entries = tree(entry(b"f", xattrs=many), entry(b"d", "dir", xattrs=many), entry(b"e" * 255, xattrs=many[:40]))
    assert max(map(len, manifest(entries).splitlines())) < 65_536
    assert through_files(entries) == entries


def test_D_limit_7_lines_of_any_length_are_read() -> None:
    value = b"QUFB" * 1_000_000
    (found,) = read(b"./f type=file xattr.user.x=" + value + b"\n")
    assert found.xattrs == ((b"user.x", b"AAA" * 1_000_000),)


def test_D_limit_8_type_from_set_decides_what_is_a_directory() -> None:
    text = b". type=dir\n/set type=dir\na\nb\n..\n..\n/set type=file\nc\n..\n"
    assert [(e.path, e.type) for e in read(text)] == [(b".", "dir"), (b"a", "dir"), (b"a/b", "dir"), (b"c", "file")]


def test_D_limit_9_owner_names_are_not_looked_up_on_this_machine() -> None:
    (found,) = read(b". type=dir uname=root gname=daemon\n")
    assert (found.uid, found.gid) == (UNRECORDED, UNRECORDED)


def test_D_limit_11_full_paths_do_not_change_the_current_directory() -> None:
    text = b". type=dir\nd type=dir\n./x/y type=dir\nf type=file\n..\ng type=file\n..\n"
    assert [e.path for e in read(text)] == [b".", b"d", b"x/y", b"d/f", b"g"]


def test_attributes_that_are_not_recorded_are_marked_as_unknown() -> None:
    assert read(b"./f type=file\n") == [
        Entry(b"f", "file", *[UNRECORDED] * 5, UNRECORDED_TIME, link=None, sha256=None, xattrs=None, device=None)
    ]


def test_no_xattrs_means_none_only_where_the_manifest_records_them() -> None:
    header = b"#      keywords: size,xattr\n"
    lines = b"./f type=file\n./d type=dir\n./l type=link\n"
    assert [e.xattrs for e in read(header + lines)] == [(), (), None]
    assert [e.xattrs for e in read(lines)] == [None, None, None]


def test_unset_continuations_synonyms_and_unknown_keywords() -> None:
    text = (
        b"#mtree\n\n  \n/set type=file uid=1 \\\n\tgid=2 mode=0600\n"
        b"./a sha256=" + b"ab" * 32 + b" \\\n    size=3 \\\n nochange flags=none cksum=17 time=5.9\n"
        b"/unset uid mode\n./b\n/unset all\n./c type=dir uid=9\n"
    )
    a, b, c = read(text)
    assert (a.uid, a.gid, a.mode, a.size, a.sha256, a.mtime) == (1, 2, 0o600, 3, "ab" * 32, 5 * SECOND + 9)
    assert (b.uid, b.gid, b.mode) == (UNRECORDED, 2, UNRECORDED)
    assert (c.uid, c.gid) == (9, UNRECORDED)


def test_escaped_backslash_at_the_end_of_a_line_is_no_continuation() -> None:
    assert [e.link for e in read(b"./a type=link link=x\\\\\n./b type=link link=y\n")] == [b"x\\", b"y"]


@pytest.mark.parametrize(
    ("text", "device"),
    [("1:3", (1, 3)), ("native,8,3", (8, 3)), ("linux,0x1,3", (1, 3)), ("259", (1, 3)), ("0x103", (1, 3))],
)
def test_device_numbers_of_every_tool(text: str, device: tuple[int, int]) -> None:
    assert [e.device for e in read(f"./c type=char device={text}\n".encode())] == [device]


@pytest.mark.parametrize(
    "line",
    [
        b"f",
        b"f type=what",
        b"f type=file uid=-1",
        b"f type=file uid=x",
        b"f type=file mode=0999",
        b"f type=file mode=u=rw",
        b"f type=file size=1.5",
        b"f type=file tar_time=x",
        b"f type=file time=1.-5",
        b"f type=file time=1.1234567890",
        b"f type=file sha256digest=ab",
        b"f type=file xattr.user.a=!!",
        b"f type=file xattr.user.a",
        b"f type=file =3",
        b"f type=file 3=3",
        b"c type=char device=1:2:3",
        b"c type=char device=vms,1,2",
        b"c type=char device=many",
        b"f\\q type=file",
        b"a\\057b type=file",
        b"a\\000b type=file",
        b"\\056\\056 type=file",
        b"./a/../b type=file",
        b"./\\056\\056/b type=file",
        b"./a\\057b type=file",
        b"/sat type=file",
        b"d type=dir\n. type=dir",
        b"..\nf type=file",
        b"..\n..",
        b"f type=file \\",
        b"link\x00 type=file",
    ],
)
def test_garbage_is_refused_with_the_number_of_its_line(line: bytes) -> None:
    with pytest.raises(MtreeSyntaxError, match=r"line \d+ of the manifest"):
        read(b". type=dir\n" + line + b"\n")


@pytest.mark.parametrize("name", [b"..", b"a/b"])
def test_bad_name_in_the_common_form_of_a_line_is_refused(name: bytes) -> None:
    text = manifest(tree(entry(b"fff"))).replace(b"    fff ", b"    " + name + b" ")
    with pytest.raises(MtreeSyntaxError):
        read(text)


def test_number_of_the_line_is_the_one_in_the_file() -> None:
    with pytest.raises(MtreeSyntaxError, match=r"line 5 of the manifest: entry has no type: f"):
        read(b"#mtree\n\n. type=dir \\\n  uid=0\nf\n")


def test_extra_file_of_another_manifest_is_refused() -> None:
    extra = io.BytesIO()
    write_extra(tree(entry(b"other", "char", device=(1, 3))), extra)
    for path in (b"f", b"other"):
        extra.seek(0)
        with pytest.raises(MtreeError, match="the extra file belongs to another manifest: other"):
            list(read_full(io.BytesIO(manifest(tree(entry(path)))), extra))


def test_without_extra_file_attributes_that_umoci_cannot_record_are_unknown() -> None:
    text = manifest(
        tree(entry(b"c", "char", device=(1, 3)), entry(b"f"), entry(b"l", "link", xattrs=((b"trusted.x", b""),)))
    )
    assert [(e.xattrs, e.device) for e in read_full(io.BytesIO(text), None)] == [
        ((), None),
        (None, None),
        ((), None),
        (None, None),
    ]


@pytest.mark.parametrize(
    "entries",
    [[entry(b"f")], [entry(ROOT, "dir"), entry(b"d/f")], [entry(ROOT, "dir"), entry(ROOT, "dir")]],
    ids=["no root", "no directory", "two roots"],
)
def test_entries_out_of_order_are_not_written(entries: list[Entry]) -> None:
    with pytest.raises(MtreeError):
        write_tree(entries, Output(io.BytesIO()))


def _names(entries: list[Entry]) -> set[tuple[bytes, str]]:
    return {(e.path, e.type) for e in entries}


def test_netbsd_mtree_manifests_are_read(odd_tree: Path, program: Callable[[str], str]) -> None:
    for full_paths in (False, True):
        if full_paths:  # mtree -C trips over the line break that mtree -c leaves in its own comments
            shutil.rmtree(os.path.join(os.fsencode(odd_tree), b"dir\nbreak"))
        expected = {e.path: e for e in snapshot(odd_tree)}
        keywords = "type,uid,gid,mode,size,nlink,time,link,sha256,device"
        command = [program("mtree"), "-c", "-p", str(odd_tree), "-k", keywords]
        text = subprocess.run(command, check=True, capture_output=True).stdout
        if full_paths:
            text = subprocess.run(
                [program("mtree"), "-C", "-k", keywords], input=text, check=True, capture_output=True
            ).stdout
        found = read(text)
        assert _names(found) == _names(list(expected.values()))
        for one in found:
            want = expected[one.path]
            assert (one.mode, one.mtime, one.link, one.sha256) == (want.mode, want.mtime, want.link, want.sha256)
            assert (one.uid, one.gid) == (want.uid, want.gid)
            assert one.device == want.device


def test_bsdtar_manifests_are_read(odd_tree: Path, program: Callable[[str], str]) -> None:
    command = [program("bsdtar"), "-cf", "-", "--format=mtree", "--options=all", "-C", str(odd_tree), "."]
    found = read(subprocess.run(command, check=True, capture_output=True).stdout)
    expected = {e.path: e for e in snapshot(odd_tree)}
    assert _names(found) == _names(list(expected.values()))
    for one in found:
        want = expected[one.path]
        assert (one.mode, one.uid, one.gid, one.mtime, one.link, one.sha256, one.device) == (
            want.mode,
            want.uid,
            want.gid,
            want.mtime,
            want.link,
            want.sha256,
            want.device,
        )


def test_two_manifests_written_at_once_are_those_written_one_by_one() -> None:
    whole = [
        entry(ROOT, "dir", size=80, nlink=4),
        entry(b"a", size=3),
        entry(b"s", "socket"),
        entry(b"d", "dir", uid=7, size=60),
        entry(b"d/l", "link", link=b"x y", mtime=5 * SECOND + 1),
        entry(b"d/x", xattrs=((b"user.a", b"1"),)),
    ]
    other = [
        whole[0]._replace(size=0, nlink=1),
        whole[1],
        None,
        whole[3]._replace(size=0),
        whole[4]._replace(size=3),
        whole[5]._replace(xattrs=()),
    ]
    twin = dict(zip(whole, other, strict=True))
    one, two, extra, other_extra = (io.BytesIO() for _ in range(4))
    assert write_tree(whole, Output(one, extra), Output(two, other_extra, twin.get)) == len(whole)
    for form, written, beside in ((whole, one, extra), (other, two, other_extra)):
        alone = [found for found in form if found is not None]
        assert written.getvalue() == manifest(alone)
        write_extra(alone, expected := io.BytesIO())
        assert beside.getvalue() == expected.getvalue()


@pytest.mark.parametrize("device", [b"1" * 40, b"-1", b"native,1", b"1:2:3", b"pdp11,1,2"])
def test_device_numbers_that_are_none_are_refused(device: bytes) -> None:
    with pytest.raises(MtreeSyntaxError, match="line 1 "):
        list(read_manifest(io.BytesIO(b"./d type=char device=" + device)))
