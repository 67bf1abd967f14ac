"""Generating layers: umoci.md B1, item by item."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LayerError, RootfsNotFound, TreeChanged, UnmappedId, UnsafePath
from layerfarm.jobs.fs.xattrs import version_2
from layerfarm.jobs.layer import GenerateOptions, IdMap, generate_layer
from layerfarm.jobs.layer.owners import encode_owner
from layerfarm.jobs.mtree.model import Delta
from tests.leaks import Held
from tests.trees import MTIME, block, char, directory, fifo, file, hardlink, read_tree, socket, symlink, tree
from tests.unit.layer.archives import (
    apply,
    entry,
    extra,
    generate,
    links_beside_their_inodes,
    members,
    missing,
    modified,
    names,
)
from tests.unit.layer.archives import archive as archive_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def test_B1_1_modified_and_extra_become_entries_and_missing_becomes_a_whiteout(root: Path) -> None:
    tree(root, {"a": file(b"1"), "b": file(b"2")})
    assert names(generate(root, [*missing("gone"), *extra("b"), *modified("a")])) == [".wh.gone", "a", "b"]


def test_B1_1_unknown_kind_of_delta_is_an_error(root: Path) -> None:
    tree(root, {"a": file()})
    with pytest.raises(LayerError, match="unknown kind"):
        generate(root, [Delta("moved", b"a")])  # type: ignore[arg-type]


def test_B1_2_names_are_relative_and_directories_end_in_a_slash_but_not_the_root(root: Path) -> None:
    tree(root, {"d/e": directory(), "d/f": file()})
    raw = generate(root, extra(".", "d", "d/e", "d/f"))
    stored = [raw[at : at + 100].rstrip(b"\0") for at in range(0, len(raw) - 1024, 512)]
    assert stored == [b".", b"d/", b"d/e/", b"d/f"]


@pytest.mark.parametrize("path", ["../x", "/etc", "a/../b", "a//b", "./a", "a/.", "", "a\0b"])
def test_B1_2_a_delta_that_is_no_path_below_the_root_is_an_error(root: Path, path: str) -> None:
    tree(root, {"a": directory()})
    for deltas in (extra(path), missing(path)):
        with pytest.raises(UnsafePath):
            generate(root, deltas)


def test_B1_3_no_names_of_owners_no_atime_and_mtime_rounded_down(root: Path) -> None:
    tree(root, {"up": file(mtime=1000_500_000_000), "before": file(mtime=-1_500_000_000)})
    before, up = members(generate(root, extra("up", "before")))
    assert (up.mtime, before.mtime) == (1000, -2)
    assert (up.uname, up.gname) == ("", "")
    assert not up.pax_headers
    assert set(before.pax_headers) == {"mtime"}


def test_B1_4_source_date_epoch_clamps_only_newer_mtimes(root: Path) -> None:
    tree(root, {"new": file(mtime=2000 * 10**9), "old": file(mtime=500 * 10**9)})
    new, old = members(generate(root, extra("new", "old"), source_date_epoch=1000))
    assert (new.mtime, old.mtime) == (1000, 500)


def test_B1_5_plain_entries_have_no_pax_header(root: Path) -> None:
    tree(root, {"a": file(b"x", uid=2097151), "p" * 99: file(), "q" * 100: file()})
    raw = generate(root, extra("a", "p" * 99, "q" * 100))
    assert b"PaxHeaders" not in raw
    assert raw[257:265] == b"ustar\x0000"


def test_B1_5_long_paths_use_the_ustar_prefix_and_only_then_pax(root: Path) -> None:
    fits, long = "d" * 150 + "/" + "f" * 100, "g" * 101
    tree(root, {fits: file(), long: file()})
    raw = generate(root, extra(fits))
    assert b"PaxHeaders" not in raw
    assert names(raw) == [fits]
    raw = generate(root, extra(long))
    assert members(raw)[0].pax_headers == {"path": long}


@pytest.mark.parametrize("length", [*range(96, 106), *range(250, 262), 400])
def test_B1_5_paths_of_every_length_round_trip(root: Path, length: int) -> None:
    path = "d/" * (length // 2)
    path = path[: length - 1] + "f" if length % 2 == 0 else path[: length - 2] + "/ff"[-2:]
    tree(root, {path: file(b"content"), os.path.dirname(path) + "/sub": directory()})
    wanted = [path, os.path.dirname(path) + "/sub"]
    assert sorted(names(generate(root, extra(*wanted)))) == sorted([wanted[0], wanted[1] + "/"])


def test_B1_5_names_that_are_not_ascii_or_not_utf8_are_stored_raw(root: Path) -> None:
    odd = [b"\xff\xfe", "é".encode(), b"new\nline", b"a\\b", b" "]
    tree(root, {path: file(path) for path in odd} | {b"l": symlink(b"\xff")})
    raw = generate(root, extra(*odd, b"l"))
    assert {os.fsencode(info.name) for info in members(raw)} == {*odd, b"l"}
    assert b"path=\xff\xfe\n" in raw
    assert b"linkpath=\xff\n" in raw


def test_B1_5_large_ids_and_far_times_are_pax_records(root: Path) -> None:
    tree(root, {"a": file(uid=2097152, gid=4294967294, mtime=2**33 * 10**9)})
    (info,) = members(generate(root, extra("a")))
    assert info.pax_headers == {"gid": "4294967294", "mtime": str(2**33), "uid": "2097152"}
    assert (info.uid, info.gid, info.mtime) == (2097152, 4294967294, 2**33)


def test_B1_5_size_beyond_8_gib_is_a_pax_record() -> None:
    from layerfarm.jobs.tar.writer import Header, encode_header

    raw = encode_header(Header(b"big", b"0", size=8 << 30))
    with tarfile.open(fileobj=io.BytesIO(raw), ignore_zeros=True) as tar:
        info = tar.next()
    assert info is not None and info.size == 8 << 30
    assert b"size=8589934592\n" in raw
    assert b"PaxHeaders" not in encode_header(Header(b"big", b"0", size=(8 << 30) - 1))


def test_B1_6_xattrs_are_stored_whatever_their_bytes(root: Path) -> None:
    value = bytes(range(256)) * 10
    tree(root, {"f": file(xattrs={"user.a": value, "user.b": b"=\n"}), "d": directory(xattrs={"user.c": b"x"})})
    os.symlink("f", root / "l")
    os.setxattr(root / "l", "trusted.t", b"y", follow_symlinks=False)
    raw = generate(root, extra("f", "d", "l"))
    assert b"SCHILY.xattr.user.a=" + value + b"\n" in raw
    assert b"SCHILY.xattr.user.b==\n\n" in raw
    assert b"SCHILY.xattr.user.c=x\n" in raw
    assert b"SCHILY.xattr.trusted.t=y\n" in raw


def test_B1_6_an_empty_xattr_value_is_left_out_with_a_warning(root: Path) -> None:
    tree(root, {"f": file(xattrs={"user.empty": b"", "user.full": b"1"})})
    said: list[str] = []
    raw = generate(root, extra("f"), warn=said.append)
    assert b"user.empty" not in raw
    assert b"user.full" in raw
    assert len(said) == 1 and "user.empty" in said[0]


def test_B1_6_an_xattr_name_with_an_equals_sign_is_left_out_with_a_warning(root: Path) -> None:
    tree(root, {"f": file(xattrs={"user.a=b": b"c"})})
    said: list[str] = []
    assert b"user.a" not in generate(root, extra("f"), warn=said.append)
    assert "user.a=b" in said[0]


def test_B1_7_later_names_of_a_file_are_hard_links_to_the_first(root: Path) -> None:
    tree(root, {"z": file(b"x"), "a/b": hardlink("z"), "l": symlink("q"), "l2": hardlink("l")})
    first, link1, link2, last = members(generate(root, extra("z", "a/b", "l", "l2")))
    assert (first.name, first.type, first.size) == ("a/b", tarfile.REGTYPE, 1)
    assert (last.name, last.type, last.linkname, last.size) == ("z", tarfile.LNKTYPE, "a/b", 0)
    assert (link1.type, link2.type, link2.linkname) == (tarfile.SYMTYPE, tarfile.LNKTYPE, "l")


def test_B1_7_equal_inode_numbers_on_two_filesystems_are_two_files(root: Path) -> None:
    root.mkdir()
    for name in ("m1", "m2"):
        (root / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "none", root / name], check=True)
    try:
        for name, content in (("m1", b"one"), ("m2", b"two")):
            (root / name / "f").write_bytes(content)
            os.link(root / name / "f", root / name / "g")
        assert (root / "m1/f").stat().st_ino == (root / "m2/f").stat().st_ino
        paths = ["m1", "m1/f", "m1/g", "m2", "m2/f", "m2/g"]
        raw = generate(root, extra(*paths))
        found = read_tree(root)
    finally:
        for name in ("m1", "m2"):
            subprocess.run(["umount", root / name], check=True)
    assert [info.type for info in members(raw)] == [b"5", b"0", b"1", b"5", b"0", b"1"]
    copy = tree(root.parent / "copy", {})
    apply(copy, raw)
    for path in ("m1/f", "m2/f"):
        assert read_tree(copy)[path.encode()].content == found[path.encode()].content


def test_B1_7_a_hard_link_carries_the_owner_mode_time_and_xattrs_of_its_inode(root: Path) -> None:
    """containerd and Docker apply what the entry of a link says to the inode."""
    capability = bytes.fromhex("0100000202000000000000000000000000000000")
    tree(
        root,
        {
            "bin/ping": file(b"x", mode=0o4755, uid=7, gid=8, mtime=9 * 10**9, xattrs={"user.k": b"v"}),
            "bin/ping2": hardlink("bin/ping"),
            "cap": file(b"x", uid=7, xattrs={"security.capability": capability}),
            "cap2": hardlink("cap"),
            "l": symlink("q", uid=3, mtime=4 * 10**9, xattrs={"trusted.t": b"1"}),
            "l2": hardlink("l"),
            "null": char(1, 3, mode=0o666, gid=5, xattrs={"trusted.t": b"2"}),
            "null2": hardlink("null"),
        },
    )
    layer = generate(root, extra("bin/ping", "bin/ping2", "cap", "cap2", "l", "l2", "null", "null2"))
    links = links_beside_their_inodes(layer)
    assert [link for link, _ in links] == [inode for _, inode in links]
    assert [link[4].keys() for link, _ in links] == [
        {"SCHILY.xattr.user.k"},
        {"SCHILY.xattr.security.capability"},
        {"SCHILY.xattr.trusted.t"},
        {"SCHILY.xattr.trusted.t"},
    ]
    assert links[0][0][:4] == (0o4755, 7, 8, 9)
    assert {info.size for info in members(layer) if info.islnk()} == {0}


def test_B1_7_a_hard_link_carries_the_mapped_owner(root: Path) -> None:
    tree(root, {"a": file(uid=100_005, gid=100_006), "b": hardlink("a")})
    id_map = IdMap.of((0, 100_000, 1000))
    ((link, inode),) = links_beside_their_inodes(generate(root, extra("a", "b"), uid_map=id_map, gid_map=id_map))
    assert link == inode
    assert link[1:3] == (5, 6)


def test_B1_7_a_hard_link_of_a_rootless_tree_carries_the_owner_that_its_inode_records(root: Path) -> None:
    owner = encode_owner(5, 6)
    tree(root, {"a": file(mode=0o4755, xattrs={"user.rootlesscontainers": owner, "user.k": b"v"}), "b": hardlink("a")})
    ((link, inode),) = links_beside_their_inodes(generate(root, extra("a", "b"), rootless=True))
    assert link == inode
    assert link == (0o4755, 5, 6, MTIME // 10**9, {"SCHILY.xattr.user.k": "v"})


def test_B1_8_removing_one_of_three_links_re_emits_the_others(root: Path) -> None:
    tree(root, {"h1": file(b"x"), "h2": hardlink("h1")})
    h1, h2 = members(generate(root, [*modified("h1", "h2"), *missing("h3")]))[1:]
    assert (h1.type, h1.size, h2.type, h2.linkname) == (b"0", 1, b"1", "h1")


def test_B1_8_a_link_outside_the_deltas_makes_no_difference(root: Path) -> None:
    tree(root, {"h1": file(b"x"), "h2": hardlink("h1")})
    (h2,) = members(generate(root, modified("h2")))
    assert (h2.type, h2.size) == (b"0", 1)


def test_B1_9_a_whiteout_is_an_empty_file_without_owner_and_time(root: Path) -> None:
    tree(root, {"d": directory()})
    (info,) = members(generate(root, missing("d/gone")))
    assert (info.name, info.type) == ("d/.wh.gone", tarfile.REGTYPE)
    assert (info.size, info.mode, info.uid, info.gid, info.mtime) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq", ".wh.", "d/.wh.y"])
def test_B1_9_a_real_name_that_looks_like_a_whiteout_is_an_error_that_names_it(root: Path, name: str) -> None:
    tree(root, {name: file()})
    with pytest.raises(LayerError, match=r"\.wh\.") as caught:
        generate(root, extra(name))
    assert caught.value.where == name
    with pytest.raises(LayerError):
        generate(root, missing(name.replace("x", "z").replace(".wh.y", ".wh.z").replace("opq", "o") + "q"))


def test_B1_10_whiteouts_come_before_everything_else_in_their_directory(root: Path) -> None:
    tree(root, {"a!": file(), "a/b": file(), "a/c/x": file(), "a0": file(), "h1": file()})
    deltas = [*extra("a!", "a", "a/b", "a/c", "a/c/x", "a0", "h1"), *missing("a/zz", "h3", "a/c/g", "0")]
    assert names(generate(root, deltas)) == [
        ".wh.0",
        ".wh.h3",
        "a/",
        "a/.wh.zz",
        "a/b",
        "a/c/",
        "a/c/.wh.g",
        "a/c/x",
        "a!",
        "a0",
        "h1",
    ]


def test_B1_11_a_deleted_directory_is_one_whiteout(root: Path) -> None:
    tree(root, {"keep": file()})
    assert names(generate(root, missing("d", "d/a", "d/b/c", "d/b"))) == [".wh.d"]


@pytest.mark.parametrize("replacement", [file(b"x"), symlink("etc"), fifo(), char(1, 3)])
def test_B1_12_directory_replaced_by_a_non_directory_has_no_child_whiteouts(root: Path, replacement: object) -> None:
    tree(root, {"d": replacement, "etc/passwd": file(b"root")})  # type: ignore[dict-item]
    assert names(generate(root, [*modified("d"), *missing("d/passwd", "d/s", "d/s/x")])) == ["d"]


def test_B1_12_directory_replaced_by_symlink_loses_nothing_behind_the_link(tmp_path: Path) -> None:
    """The usr-merge case: /bin becomes a link to usr/bin, whose files stay."""
    old = {"bin/sh": file(b"sh"), "bin/ls": file(b"ls"), "usr/bin/env": file(b"env")}
    lower, new = (
        tree(tmp_path / "lower", old),
        tree(
            tmp_path / "new",
            {
                "bin": symlink("usr/bin"),
                "usr/bin/sh": file(b"sh"),
                "usr/bin/ls": file(b"ls"),
                "usr/bin/env": file(b"env"),
            },
        ),
    )
    deltas = [*modified("bin", "usr/bin"), *missing("bin/ls", "bin/sh"), *extra("usr/bin/sh", "usr/bin/ls")]
    apply(lower, generate(new, deltas))
    assert read_tree(lower) == read_tree(new)


def test_B1_12_a_layer_of_umoci_with_child_whiteouts_loses_nothing_when_unpacked(tmp_path: Path) -> None:
    lower = tree(tmp_path / "lower", {"d/passwd": file(b"old"), "etc/passwd": file(b"root")})
    apply(lower, archive_of(entry("d", "link", link="etc"), entry("d/.wh.passwd")))
    assert (lower / "etc/passwd").read_bytes() == b"root"
    assert os.readlink(lower / "d") == "etc"


def test_B1_13_a_socket_is_left_out_with_a_warning_and_the_rest_is_packed(root: Path) -> None:
    tree(root, {"a": file(), "run/sock": socket(), "z": file()})
    said: list[str] = []
    assert names(generate(root, extra("a", "run", "run/sock", "z"), warn=said.append)) == ["a", "run/", "z"]
    assert len(said) == 1 and "run/sock" in said[0]


def test_B1_14_devices_keep_their_numbers_and_fifos_their_type(root: Path) -> None:
    tree(root, {"c": char(5, 1), "b": block(259, 1048575), "f": fifo(mode=0o1777)})
    b, c, f = members(generate(root, extra("c", "b", "f")))
    assert (b.type, b.devmajor, b.devminor) == (b"4", 259, 1048575)
    assert (c.type, c.devmajor, c.devminor) == (b"3", 5, 1)
    assert (f.type, f.mode, f.size) == (b"6", 0o1777, 0)


def test_B1_14_a_hole_is_read_as_zeros(root: Path) -> None:
    tree(root, {"s": file()})
    os.truncate(root / "s", 3_000_001)
    (info,) = members(generate(root, extra("s")))
    assert (info.size, info.type) == (3_000_001, tarfile.REGTYPE)


@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize("change", ["shrink", "grow", "rewrite"])
def test_B1_15_a_file_that_changes_while_it_is_read_is_an_error(root: Path, size: int, change: str) -> None:
    # The file is changed between two pieces: after the first directory's piece has been taken.
    tree(root, {"a": file(b"x" * (2 << 20)), "f": file(b"y" * size)})
    chunks = generate_layer(root, extra("a", "f"))
    if size == 100:
        # A small file is read in one go, so its change must come before: after "a" began.
        next(chunks)
        stale = os.stat(root / "f")
        real = os.stat

        def lying(path: object, **more: object) -> os.stat_result:
            return stale if path == b"f" else real(path, **more)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "stat", lying)
            _change(root / "f", change)
            with pytest.raises(TreeChanged, match=r"f$"):
                list(chunks)
    else:
        with pytest.raises(TreeChanged, match=r"f$"):
            for at, _ in enumerate(chunks):
                if at == 2:
                    _change(root / "f", change)


def _change(path: Path, change: str) -> None:
    if change == "shrink":
        os.truncate(path, 10)
    elif change == "grow":
        with path.open("ab") as out:
            out.write(b"more")
    else:
        with path.open("r+b") as out:
            out.write(b"other")
        os.utime(path, ns=(1, 1))


def test_B1_15_a_file_that_is_gone_is_an_error_that_names_it(root: Path) -> None:
    tree(root, {"d": directory()})
    for path in ("gone", "d/gone", "no/gone"):
        with pytest.raises(TreeChanged, match=rf"{path}$"):
            generate(root, extra(path))


def test_B1_15_a_deleted_path_that_is_back_is_an_error(root: Path) -> None:
    tree(root, {"back": file()})
    with pytest.raises(TreeChanged, match="back"):
        generate(root, missing("back"))


def test_B1_15_a_parent_that_became_a_link_is_an_error_and_is_not_followed(root: Path, tmp_path: Path) -> None:
    tree(tmp_path / "outside", {"secret": file(b"secret")})
    tree(root, {"d": symlink("../outside")})
    with pytest.raises(TreeChanged):
        generate(root, extra("d/secret"))


def test_B1_15_an_entry_that_became_a_fifo_under_our_hands_does_not_hang(root: Path) -> None:
    tree(root, {"f": file(b"x")})
    stale, real = os.lstat(root / "f"), os.stat
    os.unlink(root / "f")
    os.mkfifo(root / "f")

    def lying(path: object, **more: object) -> os.stat_result:
        return stale if path == b"f" else real(path, **more)  # type: ignore[arg-type]

    failed: list[BaseException] = []

    def run() -> None:
        try:
            generate(root, extra("f"))
        except BaseException as error:
            failed.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", lying)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(10)
    assert not thread.is_alive()
    assert isinstance(failed[0], TreeChanged)


def test_B1_16_the_trailer_is_always_written(root: Path) -> None:
    tree(root, {"a": file(b"x")})
    for deltas in ([], extra("a"), missing("b")):
        raw = generate(root, deltas)
        assert raw.endswith(bytes(1024))
        assert len(raw) % 512 == 0
    assert generate(root, []) == bytes(1024)


def test_B1_17_parents_are_not_synthesised_and_the_root_appears_when_named(root: Path) -> None:
    tree(root, {"a/b/c": file()})
    assert names(generate(root, extra("a/b/c"))) == ["a/b/c"]
    assert names(generate(root, [*extra("a/b/c"), *modified(".")])) == [".", "a/b/c"]


def test_B1_17_the_root_cannot_be_deleted(root: Path) -> None:
    tree(root, {})
    with pytest.raises(LayerError, match="root"):
        generate(root, missing("."))


def test_B1_20_the_same_tree_gives_the_same_bytes_in_any_order_of_deltas(root: Path) -> None:
    tree(root, {"a/b": file(b"1" * 3_000_000), "a/c": file(b"2"), "z": symlink("a"), "h": hardlink("a/c")})
    deltas = [*extra("a", "a/b", "a/c", "z", "h"), *missing("m", "n")]
    assert generate(root, deltas) == generate(root, list(reversed(deltas))) == generate(root, deltas * 2)


@pytest.mark.large
def test_pieces_are_about_a_mebibyte(root: Path) -> None:
    paths = [f"f{number:04}" for number in range(3000)]
    tree(root, {path: file(b"x") for path in paths})
    pieces = [len(piece) for piece in generate_layer(root, extra(*paths))]
    assert len(pieces) == 3
    assert max(pieces) <= (1 << 20) + 1024


def test_progress_adds_up_to_the_bytes_of_the_files(root: Path) -> None:
    tree(root, {"a": file(b"x" * 5_000_000), "b": file(b"y" * 7)})
    told: list[int] = []
    generate(root, extra("a", "b"), advanced=told.append)
    assert sum(told) == 5_000_007
    assert len(told) == 2


def test_owners_are_mapped_into_the_container(root: Path) -> None:
    tree(root, {"a": file(uid=100000, gid=200005), "b": file(uid=5)})
    options = {"uid_map": IdMap.of((0, 100000, 10)), "gid_map": IdMap.of((0, 200000, 10))}
    (info,) = members(generate(root, extra("a"), **options))
    assert (info.uid, info.gid) == (0, 5)
    with pytest.raises(UnmappedId, match="host id 5"):
        generate(root, extra("b"), **options)


def test_a_root_that_is_none_is_an_error(tmp_path: Path) -> None:
    tree(tmp_path, {"f": file()})
    for name in ("nothing", "f"):
        with pytest.raises(RootfsNotFound):
            list(generate_layer(tmp_path / name, [], GenerateOptions()))


def test_B5_the_hosts_own_xattrs_are_not_packed_but_overlay_ones_are(root: Path) -> None:
    tree(root, {"f": file(xattrs={"trusted.overlay.x": b"1", "security.selinux": b"label", "user.k": b"2"})})
    raw = generate(root, extra("f"))
    assert b"security.selinux" not in raw
    assert b"trusted.overlay.x=1" in raw and b"user.k=2" in raw


def test_B5_rootless_owner_xattr_becomes_the_owner_and_is_left_out(root: Path) -> None:
    values = {
        "a": "08e007107b",
        "b": "08ffffffff0f10c803",
        "c": "086210ffffffff0f",
        "d": "08fb18108e12",
        "e": "0805",
        "f": "1006",
    }
    tree(root, {name: file(xattrs={"user.rootlesscontainers": bytes.fromhex(v)}) for name, v in values.items()})
    raw = generate(root, extra(*values), rootless=True, uid_map=IdMap.of((7, 0, 1)), gid_map=IdMap.of((8, 0, 1)))
    assert [(info.uid, info.gid) for info in members(raw)] == [
        (992, 123),
        (0, 456),
        (98, 0),
        (3195, 2318),
        (5, 0),
        (0, 6),
    ]
    assert b"rootlesscontainers" not in raw
    assert b"rootlesscontainers" in generate(root, extra("a"))


def test_B5_a_rootless_file_without_a_recorded_owner_is_owned_by_root(root: Path) -> None:
    tree(root, {"f": file(uid=1000, gid=100)})
    for ids in (IdMap(), IdMap.of((0, 54321, 1))):
        (info,) = members(generate(root, extra("f"), rootless=True, uid_map=ids, gid_map=ids))
        assert (info.uid, info.gid) == (0, 0)
    with pytest.raises(UnmappedId):
        generate(root, extra("f"), uid_map=IdMap.of((0, 54321, 1)))


def test_B5_a_version_3_capability_is_written_as_version_2(root: Path) -> None:
    data = bytes.fromhex("00040000000000000000000000000000")
    v3 = (0x03000001).to_bytes(4, "little") + data + (100000).to_bytes(4, "little")
    v2 = (0x02000001).to_bytes(4, "little") + data
    assert version_2(v3) == v2
    assert version_2(v2) == v2
    assert version_2(b"odd") == b"odd"
    tree(root, {"ping": file()})
    os.setxattr(root / "ping", "security.capability", v3)
    assert b"SCHILY.xattr.security.capability=" + v2 + b"\n" in generate(root, extra("ping"))


def test_a_tree_deeper_than_path_max_is_packed(root: Path) -> None:
    root.mkdir()
    names_ = [b"d" * 200] * 30
    here = os.open(root, os.O_RDONLY)
    for name in names_:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open(b"leaf", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    deep = b"/".join([*names_, b"leaf"])
    raw = generate(root, extra(deep))
    assert [os.fsencode(info.name) for info in members(raw)] == [deep]


def test_abandoning_the_stream_closes_every_descriptor(root: Path) -> None:
    tree(root, {"a/b": file(b"x" * 3_000_000)})
    held = Held()
    chunks = generate_layer(root, extra("a/b"))
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert not held.new()
