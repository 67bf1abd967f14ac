"""xattrs and rootless owners when unpacking: umoci.md B5, item by item."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.layer import ExtractOptions
from layerfarm.jobs.layer.owners import decode_owner, encode_owner
from tests.trees import file, read_tree, tree
from tests.unit.layer.archives import applied_entries, apply, archive, entry

OWNERS = {
    "08e007107b": (992, 123),
    "08ffffffff0f10c803": (0xFFFFFFFF, 456),
    "086210ffffffff0f": (98, 0xFFFFFFFF),
    "08fb18108e12": (3195, 2318),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "root", {})


def test_B5_xattrs_of_files_directories_links_and_devices_are_set(root: Path) -> None:
    binary = bytes(range(256))
    layer = archive(
        entry("f", xattrs={"user.a": binary, "trusted.b": b"2", "trusted.overlay.opaque": b"y"}),
        entry("d", "dir", xattrs={"user.c": b"3"}),
        entry("l", "link", link="f", xattrs={"trusted.d": b"4"}),
        entry("c", "char", device=(1, 3), xattrs={"trusted.e": b"5"}),
    )
    assert apply(root, layer) == []
    found = read_tree(root)
    assert found[b"f"].xattrs == (("trusted.b", b"2"), ("trusted.overlay.opaque", b"y"), ("user.a", binary))
    assert found[b"d"].xattrs == (("user.c", b"3"),)
    assert found[b"l"].xattrs == (("trusted.d", b"4"),)
    assert found[b"c"].xattrs == (("trusted.e", b"5"),)


@pytest.mark.parametrize("name", ["security.selinux", "system.nfs4_acl"])
def test_B5_the_hosts_own_xattrs_are_not_taken_but_said_once(root: Path, name: str) -> None:
    said = apply(root, archive(entry("f", xattrs={name: b"x"}), entry("g", xattrs={name: b"y", "user.k": b"1"})))
    assert len(said) == 1 and name in said[0]
    found = read_tree(root)
    assert (found[b"f"].xattrs, found[b"g"].xattrs) == ((), (("user.k", b"1"),))


def test_B5_a_hosts_own_xattr_that_is_equal_already_is_not_said_and_not_cleared(root: Path) -> None:
    tree(root, {"d/x": file()})
    os.setxattr(root / "d", "security.selinux", b"label")
    os.setxattr(root / "d", "user.old", b"1")
    assert apply(root, archive(entry("d", "dir", xattrs={"security.selinux": b"label"}))) == []
    assert read_tree(root)[b"d"].xattrs == (("security.selinux", b"label"),)


def test_B5_other_xattrs_on_disk_are_cleared_by_an_entry(root: Path) -> None:
    tree(root, {"f": file(xattrs={"user.old": b"1"})})
    os.setxattr(root, "user.old", b"1")
    apply(root, archive(entry(".", "dir", xattrs={"user.new": b"2"}), entry("f")))
    found = read_tree(root)
    assert found[b"."].xattrs == (("user.new", b"2"),)
    assert found[b"f"].xattrs == ()


def test_B5_a_filesystem_without_xattrs_is_one_warning_and_they_are_not_listed(root: Path) -> None:
    # No filesystem has this namespace, so the kernel answers as one without xattrs does.
    layer = archive(entry("f", xattrs={"odd.x": b"1", "user.k": b"2"}), entry("g", xattrs={"odd.x": b"1"}))
    said: list[str] = []
    _, f, g = applied_entries(root, layer, options=ExtractOptions(warn=said.append))
    assert len(said) == 1 and "does not hold" in said[0]
    assert (f.xattrs, g.xattrs) == (((b"user.k", b"2"),), ())


def test_B5_a_user_xattr_that_no_link_or_device_can_hold_is_a_warning(root: Path) -> None:
    layer = archive(entry("l", "link", link="f", xattrs={"user.k": b"1"}), entry("p", "fifo", xattrs={"user.k": b"1"}))
    (said,) = apply(root, layer)
    assert "files and directories only" in said
    assert set(read_tree(root)) == {b".", b"l", b"p"}


def test_B5_libarchive_xattrs_are_not_read(root: Path) -> None:
    apply(root, archive(entry("f", pax={"LIBARCHIVE.xattr.user.k": "MQ"})))
    assert read_tree(root)[b"f"].xattrs == ()


def test_B5_an_xattr_record_without_a_value_sets_nothing(root: Path) -> None:
    apply(root, archive(entry("f", xattrs={"user.k": b"", "user.l": b"1"})))
    assert read_tree(root)[b"f"].xattrs == (("user.l", b"1"),)


@pytest.mark.parametrize("text", list(OWNERS))
def test_B5_rootless_owners_have_the_known_bytes(text: str) -> None:
    assert decode_owner(bytes.fromhex(text)) == OWNERS[text]
    assert encode_owner(*OWNERS[text]) == bytes.fromhex(text)


@pytest.mark.parametrize(
    ("owner", "text"), [((5, 0), "080510ffffffff0f"), ((0, 7), "08ffffffff0f1007"), ((5, 7), "08051007")]
)
def test_B5_an_id_0_is_recorded_as_umoci_does_by_the_no_op_value(owner: tuple[int, int], text: str) -> None:
    assert encode_owner(*owner) == bytes.fromhex(text)


def test_B5_an_id_that_is_left_out_is_0() -> None:
    """proto3 leaves a zero out: the form of other writers, and of layerfarm before."""
    assert (decode_owner(b"\x08\x05"), decode_owner(b"\x10\x07"), decode_owner(b"")) == ((5, 0), (0, 7), (0, 0))


@pytest.mark.parametrize("text", ["08", "08ff", "18e007", "0a0161", "08" + "ff" * 12])
def test_B5_a_broken_rootless_owner_is_an_error(text: str) -> None:
    with pytest.raises(MalformedLayer):
        decode_owner(bytes.fromhex(text))


def test_B5_rootless_owners_are_recorded_only_where_not_root(root: Path) -> None:
    layer = archive(
        entry("a", uid=992, gid=123),
        entry("b"),
        entry("d", "dir", uid=5),
        entry("e/f", gid=7, xattrs={"user.k": b"v"}),
    )
    assert apply(root, layer, options=ExtractOptions(rootless=True)) == []
    found = read_tree(root)
    assert found[b"a"].xattrs == (("user.rootlesscontainers", bytes.fromhex("08e007107b")),)
    assert (found[b"a"].uid, found[b"a"].gid) == (os.geteuid(), os.getegid())
    assert found[b"b"].xattrs == ()
    assert found[b"d"].xattrs == (("user.rootlesscontainers", bytes.fromhex("080510ffffffff0f")),)
    assert found[b"e/f"].xattrs == (("user.k", b"v"), ("user.rootlesscontainers", bytes.fromhex("08ffffffff0f1007")))


def test_B5_rootless_owner_xattr_in_a_layer_is_reported_and_dropped_only_when_rootless(root: Path) -> None:
    layer = archive(entry("f", xattrs={"user.rootlesscontainers": b"\x08\x05"}))
    assert len(apply(root, layer, options=ExtractOptions(rootless=True))) == 1
    assert read_tree(root)[b"f"].xattrs == ()
    assert len(apply(root, layer)) == 1
    assert read_tree(root)[b"f"].xattrs == (("user.rootlesscontainers", b"\x08\x05"),)


def test_B5_a_file_of_mode_000_keeps_its_owner_and_a_user_can_do_all_of_it(tmp_path: Path) -> None:
    """As uid 65534, for whom the order of calls matters: umoci loses this owner (BUG)."""
    root = tree(tmp_path / "root", {".": file().__class__("dir", 0o755)})
    layer = archive(
        entry("locked", "dir", mode=0o000, uid=1),
        entry("locked/secret", content=b"s", mode=0o000, uid=5, gid=6),
        entry("locked/sub/x", content=b"1", mode=0o400),
        entry("ro", "dir", mode=0o555),
        entry("ro/gone", content=b"1"),
        entry("su", mode=0o6755, uid=3),
        entry("dev", "char", device=(1, 3)),
        entry("l", "link", link="su", uid=4),
    )
    second = archive(entry("locked/late", content=b"2"), entry("ro/.wh.gone"), entry("locked/.wh.sub"))
    third = archive(entry(".wh.locked"))
    _as_nobody(root, tmp_path, [layer])
    found = read_tree(root)
    assert found[b"locked/secret"].xattrs == (("user.rootlesscontainers", bytes.fromhex("08051006")),)
    assert (found[b"locked/secret"].mode, found[b"locked"].mode, found[b"su"].mode) == (0, 0, 0o6755)
    assert {node.uid for node in found.values()} == {65534}
    _as_nobody(root, tmp_path, [second])
    found = read_tree(root)
    assert found[b"locked/late"].content == b"2"
    assert {b"ro/gone", b"locked/sub"}.isdisjoint(found)
    assert (found[b"ro"].mode, found[b"locked"].mode) == (0o555, 0)
    _as_nobody(root, tmp_path, [third])
    assert b"locked" not in read_tree(root)


_APPLY = """
import os, sys
sys.path[:] = eval(sys.argv[2])
from pathlib import Path
from layerfarm.jobs.layer import ExtractOptions, unpack_layer
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
for layer in sys.argv[3:]:
    with open(layer, "rb") as stream:
        unpack_layer(Path(sys.argv[1]), stream, ExtractOptions(rootless=True))
"""


def _as_nobody(root: Path, tmp_path: Path, layers: list[bytes]) -> None:
    """Apply layers in a process without any privilege."""
    for above in (root, *root.parents):
        if above.is_relative_to("/tmp") and above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o055)
    os.chown(root, 65534, 65534)
    files = []
    for number, layer in enumerate(layers):
        path = tmp_path / f"layer{number}"
        path.write_bytes(layer)
        path.chmod(0o644)
        files.append(str(path))
    path_list = repr([os.getcwd(), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", _APPLY, str(root), path_list, *files], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
