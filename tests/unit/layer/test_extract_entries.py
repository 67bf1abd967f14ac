"""Unpacking layers, entry by entry: umoci.md B3, item by item."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from layerfarm.jobs.errors import (
    LayerError,
    LayerfarmError,
    MalformedLayer,
    RootfsError,
    UnmappedId,
    UnsupportedEntry,
)
from layerfarm.jobs.layer import ExtractOptions, IdMap
from layerfarm.jobs.layer.stack import Stack, read_members
from layerfarm.jobs.mtree.model import mtree_key
from tests.steps import steps
from tests.trees import char, directory, file, hardlink, read_tree, symlink, tree
from tests.unit.layer.archives import MTIME as LAYER_MTIME
from tests.unit.layer.archives import applied_entries, apply, archive, entry

SECOND = 10**9
KINDS = {
    "file": entry("x", content=b"new"),
    "dir": entry("x", "dir"),
    "link": entry("x", "link", link="t"),
    "char": entry("x", "char", device=(1, 3)),
    "fifo": entry("x", "fifo"),
    "hardlink": entry("x", "hardlink", link="other"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "root", {})


def test_B3_1_a_directory_over_a_directory_keeps_its_children_and_takes_the_metadata(root: Path) -> None:
    old = entry("d", "dir", mode=0o700, uid=1, xattrs={"user.old": b"1"})
    new = entry("d", "dir", mode=0o751, gid=2, mtime=9, xattrs={"user.new": b"2"})
    apply(root, archive(old, entry("d/x")), archive(new))
    found = read_tree(root)
    assert set(found) == {b".", b"d", b"d/x"}
    assert found[b"d"] == directory(mode=0o751, gid=2, mtime=9 * SECOND, xattrs={"user.new": b"2"})


@pytest.mark.parametrize("existing", ["file", "link", "char", "fifo", "dir"])
@pytest.mark.parametrize("new", list(KINDS))
@pytest.mark.parametrize("where", ["same layer", "lower layer", "found on disk"])
def test_B3_1_every_other_combination_is_replaced(root: Path, existing: str, new: str, where: str) -> None:
    old = [KINDS[existing]] + ([entry("x/child", content=b"c")] if existing == "dir" else [])
    other = entry("other", content=b"o")
    if where == "same layer":
        apply(root, archive(other, *old, KINDS[new]))
    elif where == "lower layer":
        apply(root, archive(other, *old), archive(KINDS[new]))
    else:
        apply(root, archive(other, *old))
        apply(root, archive(KINDS[new]))
    found = read_tree(root)
    assert found[b"x"].type == ("file" if new == "hardlink" else new)
    assert (b"x/child" in found) == (existing == new == "dir")
    if new == "hardlink":
        assert found[b"x"].group == (b"other", b"x")


def test_B3_1_a_replaced_file_leaves_the_other_names_of_the_old_one_alone(root: Path) -> None:
    lower = archive(entry("a", content=b"old"), entry("b", "hardlink", link="a"))
    apply(root, lower, archive(entry("a", content=b"new")))
    found = read_tree(root)
    assert (found[b"a"].content, found[b"b"].content) == (b"new", b"old")
    assert found[b"b"].group == ()


def test_B3_2_implied_parents_have_a_fixed_mode_owner_and_time(root: Path) -> None:
    os.utime(root, ns=(5, 5))
    before = os.umask(0o077)
    try:
        apply(root, archive(entry("a/b/c", content=b"x", uid=7)))
    finally:
        os.umask(before)
    found = read_tree(root)
    assert found[b"a"] == found[b"a/b"] == directory(mode=0o755, mtime=0)
    assert found[b"."].mtime == 5


def test_B3_2_implied_parents_belong_to_the_containers_root(root: Path) -> None:
    maps = ExtractOptions(uid_map=IdMap.of((0, 1000, 10)), gid_map=IdMap.of((0, 2000, 10)))
    apply(root, archive(entry("a/f", uid=3)), options=maps)
    found = read_tree(root)
    assert (found[b"a"].uid, found[b"a"].gid) == (1000, 2000)
    assert (found[b"a/f"].uid, found[b"a/f"].gid) == (1003, 2000)


def test_B3_2_an_implied_parent_takes_the_metadata_of_its_own_later_entry(root: Path) -> None:
    apply(root, archive(entry("a/f"), entry("a", "dir", mode=0o711, mtime=3)))
    assert read_tree(root)[b"a"] == directory(mode=0o711, mtime=3 * SECOND)


@pytest.mark.parametrize("kind", ["file", "fifo", "char", "hardlink"])
@pytest.mark.parametrize("layers", ["one", "two"])
def test_B3_3_a_parent_that_is_no_directory_is_replaced_by_one(root: Path, kind: str, layers: str) -> None:
    lower = [entry("other"), KINDS[kind]]
    upper = [entry("x/y/z", content=b"1")]
    apply(root, *([archive(*lower, *upper)] if layers == "one" else [archive(*lower), archive(*upper)]))
    found = read_tree(root)
    assert found[b"x"] == directory(mode=0o755, mtime=0)
    assert found[b"x/y/z"].content == b"1"


def test_B3_3_a_parent_that_links_to_a_file_is_replaced_and_the_file_stays(root: Path) -> None:
    apply(root, archive(entry("f", content=b"keep"), entry("s", "link", link="f")), archive(entry("s/new")))
    found = read_tree(root)
    assert found[b"s"].type == "dir"
    assert found[b"f"].content == b"keep"


@pytest.mark.parametrize("links", [{"s": "s"}, {"s": "t", "t": "s"}, {"s": "t/x", "t": "s"}, {"s": "./s/s"}])
def test_B3_3_a_parent_that_is_a_loop_of_links_is_replaced(root: Path, links: dict[str, str]) -> None:
    apply(root, archive(*(entry(name, "link", link=to) for name, to in links.items()), entry("s/new")))
    found = read_tree(root)
    assert found[b"s"].type == "dir"
    assert found[b"s/new"].type == "file"


def test_B3_3_a_dangling_parent_link_is_followed_and_its_target_made(root: Path) -> None:
    apply(root, archive(entry("s", "link", link="/var/lib"), entry("s/new", content=b"n")))
    found = read_tree(root)
    assert found[b"s"].type == "link"
    assert found[b"var/lib/new"].content == b"n"


def test_B3_4_a_directorys_metadata_survive_everything_written_into_it(root: Path) -> None:
    parent = entry("d", "dir", mode=0o2550, uid=3, gid=4, mtime=11, xattrs={"user.x": b"v"})
    apply(root, archive(parent, entry("d/a"), entry("d/b", "dir")), archive(entry("d/c"), entry("d/.wh.a")))
    wanted = directory(mode=0o2550, uid=3, gid=4, mtime=11 * SECOND, xattrs={"user.x": b"v"})
    assert read_tree(root)[b"d"] == wanted


def test_B3_5_setuid_and_setgid_survive_the_change_of_owner(root: Path) -> None:
    apply(root, archive(entry("su", mode=0o6755, uid=1000, gid=1000), entry("d", "dir", mode=0o3777, gid=5)))
    found = read_tree(root)
    assert (found[b"su"].mode, found[b"d"].mode) == (0o6755, 0o3777)


def test_B3_5_file_capabilities_survive_owner_content_and_mode(root: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    member = entry("ping", content=b"elf", mode=0o4755, uid=7, xattrs={"security.capability": capability})
    apply(root, archive(member))
    assert read_tree(root)[b"ping"].xattrs == (("security.capability", capability),)


def test_B3_5_posix_acls_and_modes_agree(root: Path) -> None:
    tree(root, {"origin": file(mode=0o600)})
    acl = bytes.fromhex("0200000001000600ffffffff020004000500000004000400ffffffff10000400ffffffff20000000ffffffff")
    os.setxattr(root / "origin", "system.posix_acl_access", acl)
    mode = (root / "origin").stat().st_mode & 0o7777
    apply(root, archive(entry("f", mode=mode, xattrs={"system.posix_acl_access": acl})))
    found = read_tree(root)
    assert found[b"f"].xattrs == found[b"origin"].xattrs
    assert found[b"f"].mode == mode


@pytest.mark.parametrize("kind", ["file", "dir", "link", "fifo", "char"])
def test_B3_5_nanoseconds_of_mtime_and_atime_are_kept(root: Path, kind: str) -> None:
    times = {"mtime": "1000.123456789", "atime": "2000.987654321"}
    apply(root, archive(entry("x", kind, link="t" if kind == "link" else "", pax=times)))
    found = os.lstat(root / "x")
    assert (found.st_mtime_ns, found.st_atime_ns) == (1000123456789, 2000987654321)


def test_B3_5_atime_is_mtime_where_none_is_given(root: Path) -> None:
    apply(root, archive(entry("f", mtime=42), entry("d", "dir", mtime=43)))
    assert os.stat(root / "f").st_atime_ns == 42 * SECOND
    assert os.stat(root / "d").st_atime_ns == 43 * SECOND


def test_B3_6_a_hard_link_before_its_target_is_made_at_the_end(root: Path) -> None:
    target = entry("f", content=b"x", mode=0o751)
    apply(root, archive(entry("d/c", "hardlink", link="b"), entry("b", "hardlink", link="f"), target))
    assert read_tree(root)[b"f"].group == (b"b", b"d/c", b"f")


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_B3_6_a_chain_of_hard_links_to_later_links_takes_as_many_steps_as_links(root: Path, order: str) -> None:
    def chain(length: int) -> bytes:
        links = [entry(f"l{n}", "hardlink", link=f"l{n + 1}") for n in range(length)]
        if order == "shuffled":
            random.Random(length).shuffle(links)
        return archive(*(links[::-1] if order == "backwards" else links), entry(f"l{length}", content=b"x"))

    short, long = chain(50), chain(400)
    assert steps(lambda: Stack.of([read_members(io.BytesIO(long))])) < 9 * steps(
        lambda: Stack.of([read_members(io.BytesIO(short))])
    )
    apply(root, short)
    assert read_tree(root)[b"l0"].group == tuple(sorted(b"l%d" % n for n in range(51)))


def test_B3_6_hard_links_that_wait_for_each_other_are_an_error(root: Path) -> None:
    with pytest.raises(MalformedLayer, match="does not exist"):
        apply(root, archive(entry("a", "hardlink", link="b"), entry("b", "hardlink", link="c/../a")))


def test_B3_6_a_hard_link_through_a_link_that_comes_later_is_made(root: Path) -> None:
    layer = archive(
        entry("a", "hardlink", link="way/f"),
        entry("way", "hardlink", link="real"),
        entry("d/f", content=b"x"),
        entry("real", "link", link="d"),
    )
    apply(root, layer)
    assert read_tree(root)[b"a"].group == (b"a", b"d/f")


def test_B3_6_a_hard_link_whose_target_never_comes_is_an_error(root: Path) -> None:
    for links in (("h", "none"), ("h", "none/x"), ("h", "h")):
        with pytest.raises(MalformedLayer, match="does not exist: h"):
            apply(root, archive(entry(links[0], "hardlink", link=links[1]), entry("f")))
    with pytest.raises(MalformedLayer, match="does not exist"):
        apply(root, archive(entry("a", "hardlink", link="b"), entry("b", "hardlink", link="a")))


def test_B3_6_a_hard_link_to_itself_keeps_the_file(root: Path) -> None:
    apply(root, archive(entry("f", content=b"x")), archive(entry("f", "hardlink", link="f"), entry(".wh.f")))
    assert read_tree(root)[b"f"].content == b"x"


def test_B3_6_a_later_entry_of_the_same_name_replaces_a_waiting_link(root: Path) -> None:
    apply(root, archive(entry("a", "hardlink", link="b"), entry("a", content=b"own"), entry("b", content=b"other")))
    found = read_tree(root)
    assert (found[b"a"].content, found[b"a"].group) == (b"own", ())


def test_B3_7_a_hard_link_to_a_lower_layer_replaces_what_is_there(root: Path) -> None:
    lower = archive(entry("f", content=b"x"), entry("g", content=b"y"), entry("d/e", content=b"z"))
    apply(root, lower, archive(entry("g", "hardlink", link="f"), entry("d", "hardlink", link="f")))
    found = read_tree(root)
    assert found[b"f"].group == (b"d", b"f", b"g")
    assert set(found) == {b".", b"d", b"f", b"g"}


def test_B3_8_of_duplicate_names_the_last_wins(root: Path) -> None:
    layer = archive(
        entry("f", content=b"first", mode=0o600), entry("f", content=b"last", mode=0o640), entry("./f", "dir")
    )
    apply(root, archive(*[entry("f", content=b"first"), entry("./f", content=b"last", mode=0o640)]))
    assert read_tree(root)[b"f"].content == b"last"
    apply(root, layer)
    assert read_tree(root)[b"f"].type == "dir"


@pytest.mark.parametrize("flag", [b"7", b"\0"])
def test_B3_9_contiguous_and_old_regular_files_are_regular(root: Path, flag: bytes) -> None:
    apply(root, archive(entry("f", flag, b"content")))
    assert read_tree(root)[b"f"].content == b"content"


def test_B3_9_a_v7_entry_with_a_slash_at_its_end_is_a_directory_without_content(root: Path) -> None:
    layer = archive(entry("d", b"\0", mode=0o700, mtime=4), entry("f", content=b"after"))
    apply(root, _with_slash(layer))
    found = read_tree(root)
    assert found[b"d"] == directory(mode=0o700, mtime=4 * SECOND)
    assert found[b"f"].content == b"after"


@pytest.mark.parametrize("flag", [b"0", b"7"])
def test_B3_9_a_regular_file_with_a_slash_at_its_end_is_a_file(root: Path, flag: bytes) -> None:
    apply(root, _with_slash(archive(entry("d", flag, b"content"), entry("f", content=b"after"))))
    found = read_tree(root)
    assert (found[b"d"].content, found[b"f"].content) == (b"content", b"after")


def _with_slash(layer: bytes) -> bytes:
    """``layer`` whose first entry's name ends with a slash; tarfile would drop it."""
    block = bytearray(layer[:512])
    block[1:2] = b"/"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + layer[512:]


@pytest.mark.parametrize("flag", [b"V", b"M", b"N", b"D", b"A", b"8", b"Z"])
def test_B3_9_any_other_type_is_an_error_that_names_the_entry(root: Path, flag: bytes) -> None:
    with pytest.raises(UnsupportedEntry, match=flag.decode()) as caught:
        apply(root, archive(entry("odd", flag)))
    assert caught.value.where == "odd"


@pytest.mark.parametrize("kind", ["link", "hardlink", "char", "dir", "fifo"])
def test_B3_9_a_size_on_an_entry_without_content_is_ignored(root: Path, kind: str) -> None:
    info, _ = entry("x", kind, link="f", device=(1, 3))
    info.size = 5000
    lower = archive(entry("f", content=b"f"))[: 2 * 512]
    # tarfile would write content for it: the header alone is what such writers leave.
    raw = lower + info.tobuf(tarfile.USTAR_FORMAT) + archive(entry("after", content=b"after"))
    apply(root, raw)
    found = read_tree(root)
    assert found[b"after"].content == b"after"
    assert found[b"x"].type == ("file" if kind == "hardlink" else kind)


def test_B3_9_a_link_without_a_target_is_an_error(root: Path) -> None:
    with pytest.raises(MalformedLayer, match="no target"):
        apply(root, archive(entry("s", "link")))


def test_B3_10_devices_are_made_with_their_numbers(root: Path) -> None:
    apply(
        root, archive(entry("c", "char", device=(259, 1048575), mode=0o620, gid=5), entry("b", "block", device=(8, 1)))
    )
    found = read_tree(root)
    assert found[b"c"].device == (259, 1048575)
    assert (found[b"c"].mode, found[b"c"].gid) == (0o620, 5)
    assert (found[b"b"].type, found[b"b"].device) == ("block", (8, 1))


def test_B3_10_rootless_devices_are_empty_files_with_the_devices_mode_and_one_warning(root: Path) -> None:
    layer = archive(entry("c", "char", device=(1, 3), mode=0o666), entry("b", "block", mode=0), entry("p", "fifo"))
    said = apply(root, layer, options=ExtractOptions(rootless=True))
    found = read_tree(root)
    assert [(found[p].type, found[p].mode, found[p].content) for p in (b"c", b"b")] == [
        ("file", 0o666, b""),
        ("file", 0, b""),
    ]
    assert found[b"p"].type == "fifo"
    assert len(said) == 1 and "devices" in said[0]


@pytest.mark.parametrize("in_user_namespace", [True, False])
def test_B3_10_devices_that_a_container_forbids_are_empty_files_and_elsewhere_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, in_user_namespace: bool
) -> None:
    def forbidden(*args: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "mknod", forbidden)
    monkeypatch.setattr("layerfarm.jobs.layer.disk.in_user_namespace", lambda: in_user_namespace)
    layer = archive(entry("c", "char", device=(1, 3), mode=0o620), entry("after", content=b"x"))
    if in_user_namespace:
        (said,) = apply(root, layer)
        assert "devices cannot be created" in said
        found = read_tree(root)
        assert (found[b"c"].type, found[b"c"].mode, found[b"after"].content) == ("file", 0o620, b"x")
    else:
        with pytest.raises(RootfsError, match=r"Operation not permitted: c \(run as root, or use --rootless\)"):
            apply(root, layer)


@pytest.mark.parametrize(
    "layer",
    [
        archive(entry("c", "char", device=(4096, 0))),
        archive(entry("c", "char", device=(0, 1 << 20))),
        archive(entry("c", "char", device=(1 << 31, 1 << 31)), format=tarfile.GNU_FORMAT),
    ],
)
def test_B3_10_device_numbers_that_linux_does_not_have_are_an_error(root: Path, layer: bytes) -> None:
    with pytest.raises(LayerfarmError):
        apply(root, layer)


def test_B3_11_keep_dirlinks_keeps_a_link_to_a_directory_and_its_metadata(root: Path) -> None:
    lower = archive(entry("d/old"), entry("d", "dir", mtime=8), entry("s", "link", link="d", mtime=7))
    upper = archive(entry("s", "dir", mode=0o700, mtime=42), entry("s/new"), entry(".wh.s"))
    apply(root, lower, upper, options=ExtractOptions(keep_dirlinks=True))
    found = read_tree(root)
    assert found[b"s"] == symlink("d", mtime=7 * SECOND)
    assert found[b"d"].mtime == 8 * SECOND
    assert {b"d/old", b"d/new"} < set(found)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0), (2, 0, 1)])
@pytest.mark.parametrize("whiteout", ["lib/.wh.foo", "lib/.wh..wh..opq"])
@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "by"])
def test_B3_11_a_whiteout_below_a_kept_link_removes_what_lower_layers_have_there(
    root: Path, target: str, whiteout: str, order: tuple[int, ...]
) -> None:
    lower = archive(
        entry("usr/lib/foo"),
        entry("usr/lib/sub/x"),
        entry("by", "link", link="usr/lib"),
        entry("lib", "link", link=target),
    )
    upper = [entry("lib", "dir"), entry(whiteout), entry("lib/new", content=b"1")]
    if target == "by":
        upper[0:1] = [entry("by", "dir"), entry("lib", "dir")]
        order = (0, *(number + 1 for number in order))
    apply(root, lower, archive(*(upper[at] for at in order)), options=ExtractOptions(keep_dirlinks=True))
    found = read_tree(root)
    assert found[b"lib"] == symlink(target, mtime=LAYER_MTIME * SECOND)
    below = {b"usr/lib/new"} if "opq" in whiteout else {b"usr/lib/new", b"usr/lib/sub", b"usr/lib/sub/x"}
    assert {path for path in found if path.startswith(b"usr/lib/")} == below


def test_B3_11_whiteouts_do_not_follow_a_link_that_replaced_the_kept_one(root: Path) -> None:
    lower = archive(entry("d/foo"), entry("etc/foo"), entry("s", "link", link="d"))
    upper = archive(entry("s", "dir"), entry("s", "link", link="etc"), entry("s/.wh.foo"))
    apply(root, lower, upper, options=ExtractOptions(keep_dirlinks=True))
    assert {b"d/foo", b"etc/foo"} < set(read_tree(root))


def test_B3_11_a_link_kept_by_one_layer_is_a_lower_link_for_the_next(root: Path) -> None:
    lower = archive(entry("d/foo"), entry("d/bar"), entry("s", "link", link="d"))
    layers = [archive(entry("s", "dir"), entry("s/.wh.foo")), archive(entry("s/.wh.bar")), archive(entry(".wh.s"))]
    apply(root, lower, *layers, options=ExtractOptions(keep_dirlinks=True))
    assert set(read_tree(root)) == {b".", b"d"}


@pytest.mark.parametrize("target", ["f", "none", "s", "../.."])
def test_B3_11_keep_dirlinks_breaks_links_that_lead_to_no_directory(root: Path, target: str) -> None:
    layer = archive(entry("f"), entry("s", "link", link=target), entry("s", "dir", mode=0o700))
    apply(root, layer, options=ExtractOptions(keep_dirlinks=True))
    # The root is a directory too, so a link to it stays.
    assert read_tree(root)[b"s"].type == ("link" if target == "../.." else "dir")


def test_B3_11_without_keep_dirlinks_the_link_becomes_a_directory(root: Path) -> None:
    apply(root, archive(entry("d/x"), entry("s", "link", link="d")), archive(entry("s", "dir"), entry("s/new")))
    found = read_tree(root)
    assert found[b"s"].type == "dir"
    assert b"d/new" not in found


def test_B3_11_keep_dirlinks_works_on_a_link_found_on_disk(root: Path) -> None:
    tree(root, {"d/x": file(), "s": symlink("d")})
    apply(root, archive(entry("s", "dir"), entry("s/new"), entry(".wh.s")), options=ExtractOptions(keep_dirlinks=True))
    found = read_tree(root)
    assert found[b"s"].type == "link"
    assert b"d/new" in found


def test_B3_12_entries_and_whiteouts_go_through_links_of_lower_layers(root: Path) -> None:
    lower = archive(entry("d/a"), entry("d/b"), entry("s", "link", link="d"), entry("t", "link", link="/s"))
    apply(root, lower, archive(entry("t/new"), entry("t/.wh.a"), entry("s/b", content=b"b2")))
    found = read_tree(root)
    assert set(found) == {b".", b"d", b"d/b", b"d/new", b"s", b"t"}
    assert found[b"d/b"].content == b"b2"


@pytest.mark.parametrize("text", ["10000000000", "-1", "0", "-62135596800", "-5000.25", "9223372036.999999999"])
@pytest.mark.parametrize("kind", ["file", "dir", "link"])
def test_B3_13_times_before_1970_and_after_2262_are_kept(text: str, kind: str) -> None:
    # tmpfs holds any time; ext4 ends in 2446.
    with TemporaryDirectory(prefix="layerfarm-test-", dir="/dev/shm") as root:
        layer = archive(entry("x", kind, link="t" if kind == "link" else "", pax={"mtime": text}))
        (_, found) = applied_entries(Path(root), layer)
        whole, _, fraction = text.lstrip("-").partition(".")
        wanted = (-1 if text.startswith("-") else 1) * (int(whole) * SECOND + int((fraction or "0").ljust(9, "0")))
        assert os.lstat(f"{root}/x").st_mtime_ns == wanted
        assert found.mtime == wanted


@pytest.mark.parametrize("kind", ["file", "dir", "link"])
@pytest.mark.parametrize("text", ["99999999999999999", "-99999999999999999", str(2**63 - 1)])
def test_B3_13_a_time_that_the_filesystem_cannot_hold_is_clamped_with_a_warning(
    root: Path, kind: str, text: str
) -> None:
    layer = archive(entry("x", kind, link="t" if kind == "link" else "", pax={"mtime": text}))
    said = apply(root, layer)
    assert any("mtime" in line for line in said)


def test_B3_14_ids_outside_the_map_are_an_error(root: Path) -> None:
    maps = ExtractOptions(uid_map=IdMap.of((0, 1000, 10)), gid_map=IdMap.of((0, 1000, 10)))
    with pytest.raises(UnmappedId, match="container id 70000 cannot be mapped"):
        apply(root, archive(entry("f", uid=70000)), options=maps)
    with pytest.raises(UnmappedId):
        apply(root, archive(entry("d", "dir", gid=10)), options=maps)


@pytest.mark.parametrize("uid", [0xFFFFFFFF, 0x100000000, 2**62])
def test_B3_14_an_id_that_no_user_can_have_is_an_error(root: Path, uid: int) -> None:
    with pytest.raises(MalformedLayer, match="out of range"):
        apply(root, archive(entry("f", uid=uid)))


def test_entries_say_what_lies_on_disk_in_mtree_order(root: Path) -> None:
    layers = [
        archive(
            entry("b/x", content=b"1"),
            entry("a", content=b"22", mode=0o4755, uid=3, xattrs={"user.k": b"v"}),
            entry("h", "hardlink", link="a"),
            entry("i", "hardlink", link="a"),
            entry("l", "link", link="a\n"),
            entry("c", "char", device=(5, 1)),
            entry("p", "fifo"),
            entry("b", "dir", mode=0o1777, mtime=6, xattrs={"user.d": b"w"}),
        ),
        archive(entry(".wh.i"), entry("0/z", content=b""), entry("b/y", "hardlink", link="l")),
    ]
    os.utime(root, ns=(7, 7))
    found = applied_entries(root, *layers)
    on_disk = read_tree(root)
    paths = [e.path for e in found]
    assert paths == [b".", b"a", b"c", b"h", b"l", b"p", b"0", b"0/z", b"b", b"b/x", b"b/y"]
    assert paths == sorted(paths, key=lambda path: mtree_key(path, on_disk[path].type == "dir"))
    for e in found:
        node, there = on_disk[e.path], os.lstat(os.path.join(os.fsencode(root), e.path))
        assert (e.type, e.mode, e.uid, e.gid, e.mtime) == (node.type, node.mode, node.uid, node.gid, node.mtime)
        assert (e.size, e.nlink) == (there.st_size, there.st_nlink)
        assert e.link == node.link and e.device == node.device
        assert e.xattrs == tuple((os.fsencode(k), v) for k, v in node.xattrs)
        assert e.sha256 == (None if node.content is None else hashlib.sha256(node.content).hexdigest())


def test_without_hashing_entries_have_no_digest(root: Path) -> None:
    found = applied_entries(root, archive(entry("f", content=b"x")), options=ExtractOptions(hash_content=False))
    assert found[1].sha256 is None


def test_a_default_acl_or_setgid_around_the_root_does_not_leak_into_the_tree(tmp_path: Path) -> None:
    outer = tree(tmp_path / "outer", {})
    acl = bytes.fromhex("0200000001000700ffffffff020007000500000004000700ffffffff10000700ffffffff20000700ffffffff")
    os.setxattr(outer, "system.posix_acl_default", acl)
    os.chown(outer, 0, 55)
    os.chmod(outer, 0o2755)
    for name in ("empty", "filled"):
        root = outer / name
        root.mkdir()
        if name == "filled":
            (root / "there").mkdir()
        apply(root, archive(entry("f", mode=0o640), entry("d/e/g", "dir", mode=0o700), entry("d/l", "link", link="x")))
        found = read_tree(root)
        for path in (b"f", b"d", b"d/e", b"d/e/g", b"d/l"):
            assert (found[path].gid, found[path].xattrs) == (0, ()), path
        assert (found[b"f"].mode, found[b"d"].mode, found[b"d/e/g"].mode) == (0o640, 0o755, 0o700)
        assert b"there" not in found or found[b"there"].xattrs


def test_a_full_disk_is_an_error_that_names_the_entry(tmp_path: Path) -> None:
    import subprocess

    root = tree(tmp_path / "small", {})
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", root], check=True)
    try:
        with pytest.raises(RootfsError, match=r"No space left on device: big$"):
            apply(root, archive(entry("big", content=bytes(1 << 20))))
    finally:
        subprocess.run(["umount", root], check=True)


def test_more_layers_than_can_be_counted_are_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerfarm.jobs.layer.apply._MOST_LAYERS", 2)
    layers = [archive(entry(name)) for name in "abc"]
    with pytest.raises(LayerError, match="more than 2 layers"):
        apply(root, *layers)
    assert sorted(read_tree(root)) == [b".", b"a", b"b"]


def test_hard_links_over_layers_share_their_entry(root: Path) -> None:
    tree(root, {"f": file(b"x"), "g": hardlink("f"), "c": char(1, 3)})
    apply(root, archive(entry("h", "hardlink", link="g"), entry("k", "hardlink", link="c")))
    found = read_tree(root)
    assert found[b"h"].group == (b"f", b"g", b"h")
    assert found[b"k"].group == (b"c", b"k")
