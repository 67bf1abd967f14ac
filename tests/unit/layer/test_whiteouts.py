"""Whiteouts when unpacking: umoci.md B4, item by item."""

from __future__ import annotations

import io
import itertools
import tarfile
from pathlib import Path

import pytest

from layerfarm.jobs.errors import MalformedLayer
from layerfarm.jobs.layer.names import check_real_name, whiteout_name, whiteout_target
from layerfarm.jobs.layer.stack import Stack, read_members
from tests.trees import char, directory, file, read_tree, tree
from tests.unit.layer.archives import MTIME, apply, archive, entry, extra, generate, members


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tree(tmp_path / "root", {})


LOWER = archive(
    entry("d", "dir", mode=0o700, uid=9),
    entry("d/a", content=b"a"),
    entry("d/s", "dir", mode=0o711, mtime=1, xattrs={"user.x": b"1"}),
    entry("d/s/b", content=b"b"),
    entry("d/t/u", content=b"u"),
    entry("f", content=b"f"),
)


def paths(root: Path) -> set[bytes]:
    return set(read_tree(root)) - {b"."}


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    "members", list(itertools.permutations([entry("f", content=b"new"), entry(".wh.f"), entry(".wh.d")]))
)
def test_B4_1_a_whiteout_removes_only_lower_layers(root: Path, members: tuple[object, ...], on_disk: bool) -> None:
    upper = archive(*members)  # type: ignore[arg-type]
    if on_disk:
        apply(root, LOWER)
        apply(root, upper)
    else:
        apply(root, LOWER, upper)
    assert {path: node.content for path, node in read_tree(root).items() if path != b"."} == {b"f": b"new"}


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("members", list(itertools.permutations([entry("d/s/new", content=b"new"), entry(".wh.d")])))
def test_B4_2_ancestors_of_what_is_new_survive_as_implied_directories(
    root: Path, members: tuple[object, ...], on_disk: bool
) -> None:
    upper = archive(*members)  # type: ignore[arg-type]
    if on_disk:
        apply(root, LOWER)
        apply(root, upper)
    else:
        apply(root, LOWER, upper)
    found = read_tree(root)
    assert set(found) == {b".", b"d", b"d/s", b"d/s/new", b"f"}
    # The same in any order: as if the whiteout had come first.
    assert found[b"d"] == found[b"d/s"] == directory(mode=0o755, mtime=0)


def test_B4_2_a_directory_with_its_own_entry_keeps_its_metadata(root: Path) -> None:
    members = [entry("d", "dir", mode=0o750, mtime=3), entry("d/new"), entry(".wh.d")]
    for order in itertools.permutations(members):
        apply(root, archive(entry("d/old")), archive(*order))
        found = read_tree(root)
        assert set(found) == {b".", b"d", b"d/new"}
        assert found[b"d"] == directory(mode=0o750, mtime=3 * 10**9)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    "members",
    list(itertools.permutations([entry("d/.wh..wh..opq"), entry("d/a", content=b"a2"), entry("d/s/new")])),
)
def test_B4_3_opaque_removes_every_lower_child_but_not_the_directory(
    root: Path, members: tuple[object, ...], on_disk: bool
) -> None:
    upper = archive(*members)  # type: ignore[arg-type]
    if on_disk:
        apply(root, LOWER)
        apply(root, upper)
    else:
        apply(root, LOWER, upper)
    found = read_tree(root)
    assert set(found) == {b".", b"d", b"d/a", b"d/s", b"d/s/new", b"f"}
    assert (found[b"d"].mode, found[b"d"].uid) == (0o700, 9)
    assert found[b"d/s"] == directory(mode=0o755, mtime=0)
    assert found[b"d/a"].content == b"a2"


def test_B4_3_opaque_on_the_root_removes_everything_below(root: Path) -> None:
    apply(root, LOWER, archive(entry("new"), entry(".wh..wh..opq")))
    assert paths(root) == {b"new"}


@pytest.mark.parametrize("name", ["f/.wh..wh..opq", "none/.wh..wh..opq", "none/at/all/.wh..wh..opq"])
def test_B4_3_opaque_on_a_file_or_nothing_does_nothing(root: Path, name: str) -> None:
    apply(root, LOWER)
    before = read_tree(root)
    apply(root, archive(entry(name)))
    assert read_tree(root) == before


@pytest.mark.parametrize("name", [".wh.none", "d/.wh.none", "no/where/.wh.x", "f/.wh.x", "d/a/.wh.b"])
def test_B4_4_a_whiteout_of_nothing_does_nothing(root: Path, name: str) -> None:
    apply(root, LOWER)
    before = read_tree(root)
    apply(root, archive(entry(name)))
    assert read_tree(root) == before


@pytest.mark.parametrize("kind", ["dir", "link", "char", "fifo", "hardlink", b"Z"])
def test_B4_4_the_type_and_size_of_a_whiteout_do_not_matter(root: Path, kind: str) -> None:
    apply(root, LOWER, archive(entry(".wh.f", kind, link="x"), entry("d/.wh.a", content=b"content")))
    assert paths(root) == {b"d", b"d/s", b"d/s/b", b"d/t", b"d/t/u"}


@pytest.mark.parametrize("name", [".wh.", "d/.wh.", ".wh./", "d/.wh../", ".wh..", "d/.wh..", "d/.wh...", ".wh.x/y"])
def test_B4_5_a_whiteout_of_nothing_nameable_is_an_error(root: Path, name: str) -> None:
    apply(root, LOWER)
    before = read_tree(root)
    with pytest.raises(MalformedLayer):
        apply(root, archive(entry(name, pax={"path": name})))
    assert read_tree(root) == before


def test_B4_6_aufs_metadata_does_nothing(root: Path) -> None:
    layer = archive(entry(".wh..wh.plnk", "dir"), entry(".wh..wh.plnk/1.2", content=b"x"), entry(".wh..wh.aufs"))
    apply(root, LOWER, layer)
    assert paths(root) == {b"d", b"d/a", b"d/s", b"d/s/b", b"d/t", b"d/t/u", b"f"}


AUFS = archive(
    entry(".wh..wh.aufs"),
    entry(".wh..wh.orph/", "dir", mode=0o700),
    entry(".wh..wh.orph/9", content=b"orphan"),
    entry(".wh..wh.plnk/", "dir", mode=0o700),
    entry(".wh..wh.plnk/1.2", content=b"two names", mode=0o4755, uid=7),
    entry(".wh..wh.plnk/3.4", content=b"none"),
    entry("early", "hardlink", link=".wh..wh.plnk/5.6"),
    entry("x", "hardlink", link="/.wh..wh.plnk/1.2"),
    entry("d/y", "hardlink", link="./.wh..wh.plnk/1.2"),
    entry(".wh..wh.plnk/5.6", content=b"later"),
)


def test_B4_6_hard_links_to_the_files_that_aufs_keeps_for_them_are_made(root: Path) -> None:
    apply(root, LOWER, AUFS, archive(entry("z", content=b"z")))
    found = read_tree(root)
    assert set(found) == {b".", b"d", b"d/a", b"d/s", b"d/s/b", b"d/t", b"d/t/u", b"f", b"early", b"x", b"d/y", b"z"}
    assert found[b"early"].content == b"later" and found[b"early"].group == ()
    assert found[b"x"] == file(b"two names", mode=0o4755, uid=7, mtime=MTIME * 10**9, group=(b"d/y", b"x"))
    stack = Stack.of([read_members(io.BytesIO(layer)) for layer in (LOWER, AUFS)])
    assert {entry.path for entry in stack.entries()} == set(found) - {b"z"}
    assert sorted(stack.names().values()) == [(b"d/y", b"x")]


def test_B4_6_a_hard_link_to_a_file_of_aufs_that_the_layer_has_not_is_an_error(root: Path) -> None:
    with pytest.raises(MalformedLayer, match="does not exist"):
        apply(root, AUFS, archive(entry("x", "hardlink", link=".wh..wh.plnk/1.2")))


def test_B4_6_files_on_disk_with_a_name_of_aufs_stay(root: Path) -> None:
    tree(root, {".wh..wh.plnk/old": file(b"old")})
    apply(root, LOWER, archive(entry(".wh..wh.plnk/dir/", "dir"), entry(".wh..wh.plnk/fifo", "fifo")))
    assert {b".wh..wh.plnk", b".wh..wh.plnk/old"} <= paths(root)
    assert b".wh..wh.plnk/fifo" not in paths(root)


@pytest.mark.parametrize("name", [".wh..wh..opq", ".wh..wh.aufs", ".wh..wh.plnk", ".wh.x"])
def test_B4_6_a_link_leads_nothing_into_a_directory_that_no_layer_could_hold(root: Path, name: str) -> None:
    with pytest.raises(MalformedLayer, match="name that starts with") as caught:
        apply(root, archive(entry("s", "link", link=f"d/{name}"), entry("s/file")))
    assert caught.value.where == f"d/{name}"


def test_whiteouts_reach_every_lower_layer_and_none_above(root: Path) -> None:
    layers = [archive(entry("a/x")), archive(entry("a/y")), archive(entry(".wh.a")), archive(entry("a/z"))]
    apply(root, *layers)
    assert paths(root) == {b"a", b"a/z"}


def test_a_whiteout_in_a_hidden_directory_does_nothing_more(root: Path) -> None:
    apply(root, LOWER, archive(entry(".wh.d"), entry("d/.wh.a"), entry("d/s/.wh..wh..opq")))
    assert paths(root) == {b"f"}


def test_a_hard_link_of_this_layer_survives_the_whiteout_of_its_target(root: Path) -> None:
    apply(root, LOWER, archive(entry("g", "hardlink", link="f"), entry(".wh.f")))
    found = read_tree(root)
    assert found[b"g"].content == b"f" and found[b"g"].group == ()
    assert b"f" not in found


def test_a_directory_that_replaces_a_whited_out_one_has_only_new_children(root: Path) -> None:
    tree(root, {"d/old/x": file(), "d/keep": file()})
    apply(root, archive(entry(".wh.d"), entry("d", "dir"), entry("d/keep", content=b"2")))
    assert paths(root) == {b"d", b"d/keep"}


def test_a_name_with_the_prefix_of_whiteouts_inside_is_one_like_any_other(root: Path) -> None:
    apply(root, LOWER, archive(entry("d.wh.t/a.wh.f", content=b"x"), entry("f.wh.", content=b"y"), entry("./.wh.f/.")))
    found = read_tree(root)
    assert (found[b"d.wh.t/a.wh.f"].content, found[b"f.wh."].content) == (b"x", b"y")
    assert b"d/a" in found and b"f" not in found


def test_names_of_whiteouts() -> None:
    assert whiteout_name(b"a") == b".wh.a"
    assert whiteout_name(b"a/b") == b"a/.wh.b"
    assert whiteout_target(b".wh.x") == b"x"
    check_real_name(b"x.wh.y/z")


def test_B1_19_a_device_0_0_is_packed_as_a_device(root: Path) -> None:
    """overlayfs' own whiteouts mean nothing in a tree that is no overlay's upper directory."""
    tree(root, {"gone": char(0, 0), "d": directory(xattrs={"trusted.overlay.opaque": b"y"})})
    layer = generate(root, extra("d", "gone"))
    assert [(info.name, info.type) for info in members(layer)] == [("d", tarfile.DIRTYPE), ("gone", tarfile.CHRTYPE)]


def test_B4_7_a_device_0_0_is_unpacked_as_a_device(root: Path) -> None:
    apply(root, archive(entry("f", content=b"lower")), archive(entry("f", "char", device=(0, 0)), entry(".wh.none")))
    assert read_tree(root)[b"f"].device == (0, 0)
