"""Unpacking layers, paths and safety: umoci.md B2, item by item."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from layerfarm.jobs.errors import LayerfarmError, LimitExceeded, MalformedLayer, RootfsNotFound
from layerfarm.jobs.layer import ExtractOptions, Extractor, unpack_layer
from layerfarm.jobs.layer.names import clean
from layerfarm.jobs.limits import Limits
from tests.leaks import Held
from tests.trees import directory, file, read_tree, symlink, tree
from tests.unit.layer.archives import apply, archive, entry

HOSTILE_NAMES = [
    "../../out",
    "/../../out",
    "a/../../../out",
    "/out",
    "//out",
    "./../out",
    "a/./../../out",
    "../root-sibling/out",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty root, with a canary beside it that every test finds untouched."""
    canary = tree(tmp_path / "canary", {"file": file(b"alive"), "dir/x": file(b"alive")})
    before = read_tree(canary)
    tree(tmp_path / "root", {})
    yield tmp_path / "root"  # type: ignore[misc]
    assert read_tree(canary) == before
    assert sorted(os.listdir(tmp_path)) == ["canary", "root"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_B2_1_names_are_cleaned_lexically(root: Path, name: str) -> None:
    apply(root, archive(entry(name, content=b"x")))
    paths = [path for path, node in read_tree(root).items() if node.type == "file"]
    assert len(paths) == 1 and paths[0].endswith(b"out")


@pytest.mark.parametrize("target", ["{canary}", "../canary", "../../../../../..{canary}", "a/../../canary"])
def test_B2_1_a_symlinked_parent_leads_inside_the_root(root: Path, target: str) -> None:
    target = target.format(canary=root.parent / "canary")
    apply(root, archive(entry("s", "link", link=target), entry("s/file", content=b"new"), entry("s/dir", "dir")))
    assert (root.parent / "canary/file").read_bytes() == b"alive"
    inside = [path for path, node in read_tree(root).items() if node.content == b"new"]
    assert len(inside) == 1 and b".." not in inside[0]


@pytest.mark.parametrize("link", ["{canary}/file", "../canary/file", "s/../../canary/file"])
def test_B2_1_the_last_component_is_never_followed(root: Path, link: str) -> None:
    link = link.format(canary=root.parent / "canary")
    apply(root, archive(entry("f", "link", link=link), entry("f", content=b"new")))
    assert not (root / "f").is_symlink()
    assert (root / "f").read_bytes() == b"new"


def test_B2_1_a_directory_swapped_for_a_link_between_layers_does_not_lead_out(root: Path) -> None:
    layers = [
        archive(entry("d", "dir"), entry("d/x", content=b"1")),
        archive(entry("d", "link", link=str(root.parent / "canary"))),
        archive(entry("d/file", content=b"2"), entry("d/.wh.dir")),
    ]
    apply(root, *layers)
    assert os.readlink(root / "d") == str(root.parent / "canary")


def test_B2_1_a_directory_swapped_for_a_link_leads_nowhere_else(root: Path) -> None:
    with Extractor(root) as extractor:
        extractor.apply(io.BytesIO(archive(entry("d/e", "dir"), entry("d/x", content=b"1"))))
        os.rename(root / "d", root / "gone")
        os.symlink(root.parent / "canary", root / "d")
        extractor._tree.close()  # forget descriptors, as a large layer does
        with pytest.raises(LayerfarmError):
            extractor.apply(io.BytesIO(archive(entry("d/file", content=b"2"))))


@pytest.mark.parametrize("name", [".", "./", "/", "/.", "a/..", "", "//", "../.."])
@pytest.mark.parametrize("type_", ["file", "link", "fifo", "char", "hardlink"])
def test_B2_2_the_root_may_only_be_a_directory(root: Path, name: str, type_: str) -> None:
    if type_ == "file" and name.endswith("/"):
        name += "."  # a regular file with a slash at its end is a directory (B3.9)
    info, content = entry("x", type_, link="/etc", pax={"path": name} if name else {})
    info.name = name
    with pytest.raises(MalformedLayer):
        apply(root, archive((info, content)))
    assert root.is_dir() and not root.is_symlink()


@pytest.mark.parametrize("name", [".", "./", "/", "/.", "a/../"])
def test_B2_2_a_root_entry_sets_the_roots_metadata(root: Path, name: str) -> None:
    info, content = entry("x", "dir", mode=0o1750, uid=3, gid=4, mtime=77, xattrs={"user.r": b"1"}, pax={"path": name})
    apply(root, archive((info, content), entry("f")))
    found = read_tree(root)[b"."]
    assert (found.mode, found.uid, found.gid, found.mtime) == (0o1750, 3, 4, 77 * 10**9)
    assert found.xattrs == (("user.r", b"1"),)


def test_B2_3_a_hard_link_to_a_symlink_is_one_more_name_of_it(root: Path) -> None:
    apply(root, archive(entry("s", "link", link="../canary/file"), entry("h", "hardlink", link="s")))
    assert os.readlink(root / "h") == "../canary/file"
    assert os.lstat(root / "h").st_ino == os.lstat(root / "s").st_ino


@pytest.mark.parametrize("link", ["/canary/file", "../canary/file", "../../../../canary/file", "s/file"])
def test_B2_3_hard_link_targets_stay_inside_the_root(root: Path, link: str) -> None:
    layers = [
        archive(entry("canary/file", content=b"inside"), entry("s", "link", link="../canary")),
        archive(entry("h", "hardlink", link=link)),
    ]
    apply(root, *layers)
    assert (root / "h").stat().st_ino == (root / "canary/file").stat().st_ino


def test_B2_3_a_hard_link_to_a_file_outside_is_an_error(root: Path) -> None:
    with pytest.raises(MalformedLayer, match="does not exist: h"):
        apply(root, archive(entry("h", "hardlink", link=str(root.parent / "canary/file"))))


def test_B2_3_no_metadata_is_applied_for_a_hard_link(root: Path) -> None:
    link = entry("h", "hardlink", link="f", mode=0o777, uid=9, gid=9, mtime=1)
    apply(root, archive(entry("f", content=b"x", mode=0o600, mtime=5), link))
    found = read_tree(root)[b"h"]
    assert (found.mode, found.uid, found.mtime, found.group) == (0o600, 0, 5 * 10**9, (b"f", b"h"))


@pytest.mark.parametrize("link", [".", "/", "../..", "d", "d/"])
def test_B2_3_a_hard_link_to_a_directory_is_an_error(root: Path, link: str) -> None:
    with pytest.raises(MalformedLayer, match="hard link to"):
        apply(root, archive(entry("d", "dir"), entry("h", "hardlink", link=link)))


def test_B2_7_a_stream_larger_than_allowed_is_an_error(root: Path) -> None:
    layer = archive(entry("f", content=bytes(100_000)))
    with pytest.raises(LimitExceeded):
        apply(root, layer, options=ExtractOptions(limits=Limits(stream_bytes=50_000)))


def test_B2_7_more_entries_than_allowed_are_an_error(root: Path) -> None:
    options = ExtractOptions(limits=Limits(entries=3))
    apply(root, archive(*(entry(f"f{n}") for n in range(3))), options=options)
    with pytest.raises(LimitExceeded, match="3 entries"):
        apply(root, archive(*(entry(f"f{n}") for n in range(4))), options=options)


def test_B2_7_implied_parents_count_as_entries(root: Path) -> None:
    with pytest.raises(LimitExceeded, match="directories"):
        apply(root, archive(entry("a/b/c/d/e")), options=ExtractOptions(limits=Limits(entries=3)))


def test_B2_7_a_longer_path_or_target_than_allowed_is_an_error(root: Path) -> None:
    options = ExtractOptions(limits=Limits(path_bytes=300))
    for member in (entry("d/" * 151 + "f"), entry("s", "link", link="x" * 301), entry("h", "hardlink", link="x" * 301)):
        with pytest.raises(LimitExceeded, match="300 bytes"):
            apply(root, archive(member), options=options)


def test_B2_7_larger_extended_headers_than_allowed_are_an_error(root: Path) -> None:
    options = ExtractOptions(limits=Limits(pax_bytes=1000, path_bytes=10_000))
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with pytest.raises(LimitExceeded, match="1000 bytes"):
            apply(root, archive(entry("d/" * 600 + "f"), format=format), options=options)


def test_B2_7_more_xattr_bytes_than_allowed_are_an_error(root: Path) -> None:
    with pytest.raises(LimitExceeded, match="xattrs"):
        apply(
            root,
            archive(entry("f", xattrs={"user.a": b"x" * 100})),
            options=ExtractOptions(limits=Limits(xattr_bytes=100)),
        )


def test_names_of_255_bytes_work_and_longer_ones_are_an_error(root: Path) -> None:
    apply(root, archive(entry("n" * 255)))
    for name in ("n" * 256, "d/" + "n" * 256 + "/f"):
        with pytest.raises(LayerfarmError):
            apply(root, archive(entry(name)))


def test_a_path_beyond_path_max_is_unpacked_and_removed_again(root: Path) -> None:
    deep = "/".join(["d" * 200] * 30)
    apply(root, archive(entry(deep + "/f", content=b"deep"), entry(deep + "/s", "dir", mtime=5)))
    here = os.open(root, os.O_RDONLY)
    for part in deep.split("/"):
        below = os.open(part, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with os.fdopen(os.open("f", os.O_RDONLY, dir_fd=here), "rb") as stream:
        assert stream.read() == b"deep"
    assert os.stat("s", dir_fd=here).st_mtime == 5
    os.close(here)
    apply(root, archive(entry(".wh." + "d" * 200)))
    assert os.listdir(root) == []


def test_four_thousand_nested_directories_are_unpacked_and_removed_without_recursion(root: Path) -> None:
    apply(root, archive(entry("d/" * 4000 + "f")))
    apply(root, archive(entry("d")))
    assert (root / "d").is_file()


def test_links_that_lead_through_too_many_directories_are_an_error_not_a_hang(root: Path) -> None:
    layers = [entry("d/e", "dir")]
    layers += [entry(f"l{n}", "link", link=f"l{n + 1}/" + "d/../" * 700) for n in range(30)]
    layers += [entry("l30", "link", link="d"), entry("l0/f")]
    with pytest.raises(LayerfarmError, match="symbolic links lead"):
        apply(root, archive(*layers))


def test_a_name_with_a_nul_is_an_error(root: Path) -> None:
    raw = archive(entry("s", "link", link="x"), entry("aXb", pax={"path": "aXb"}))
    with pytest.raises(MalformedLayer, match="NUL"):
        apply(root, raw.replace(b"path=aXb", b"path=a\0b"))
    with pytest.raises(MalformedLayer, match="NUL"):
        clean(b"a/b\0c")


def test_a_root_that_is_none_is_an_error(tmp_path: Path) -> None:
    tree(tmp_path, {"f": file(), "s": symlink("nowhere")})
    for name in ("none", "f", "s"):
        with pytest.raises(RootfsNotFound):
            unpack_layer(tmp_path / name, io.BytesIO(b""))


def test_untouched_directories_of_an_existing_tree_keep_their_metadata(tmp_path: Path) -> None:
    lower = tree(
        tmp_path / "lower",
        {
            "a": directory(mode=0o2751, uid=5, mtime=1, xattrs={"user.x": b"y"}),
            "a/b/c": file(b"old", mtime=2),
            "k": file(b"keep"),
        },
    )
    before = read_tree(lower)
    unpack_layer(lower, io.BytesIO(archive(entry("a/b/new", content=b"n"), entry("a/.wh.no"), entry("a/b/.wh.c"))))
    after = read_tree(lower)
    new = after.pop(b"a/b/new")
    before.pop(b"a/b/c")
    assert after == before
    assert (new.content, new.gid) == (b"n", 0)


def test_every_descriptor_is_closed_again(root: Path) -> None:
    held = Held()
    apply(root, archive(*(entry(f"d{n}/e{n}/f") for n in range(200)), entry(".wh.d7")))
    with pytest.raises(LayerfarmError):
        apply(root, archive(entry("x/y"), entry("h", "hardlink", link="none")))
    assert not held.new()


def test_nothing_can_be_applied_after_the_end(root: Path) -> None:
    with Extractor(root) as extractor:
        extractor.apply(io.BytesIO(archive(entry("f"))))
        with pytest.raises(LayerfarmError, match="finished"):
            extractor.entries()
        extractor.finish()
        extractor.finish()
        with pytest.raises(LayerfarmError, match="finished"):
            extractor.apply(io.BytesIO(b""))


def test_entries_are_not_known_of_a_tree_that_was_not_empty(root: Path) -> None:
    tree(root, {"f": file()})
    with Extractor(root) as extractor:
        extractor.finish()
        with pytest.raises(LayerfarmError, match="empty"):
            extractor.entries()
